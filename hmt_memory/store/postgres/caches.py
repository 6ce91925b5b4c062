"""Index files on this machine of what another machine has erased since: they are deleted when the store is opened."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ...errors import StoreDamagedError
from ...files import replacing
from ..index.derived import outdated
from ..shelf import shelf_of
from .transaction import PostgresTransaction

_SEEN = "erasures"  # the file that holds the number of the last erasure which the others were compared with


def is_current(folder: Path, db: PostgresTransaction) -> bool:
    """Return whether nothing was erased since `drop_outdated`."""
    with contextlib.suppress(OSError):
        return (folder / _SEEN).read_text(encoding="ascii") == str(db.last_erasure())
    return False


def drop_outdated(folder: Path, db: PostgresTransaction) -> None:
    """Delete the files that hold anything else than the record does.

    Nobody may write meanwhile: the number of an erasure is seen before its transaction has ended, and the rows are still there.
    """
    seen, last = folder / _SEEN, str(db.last_erasure())
    for path in folder.iterdir():
        if path != seen and _is_outdated(path, db):
            path.unlink(missing_ok=True)
    with replacing(seen, private=True) as file:
        file.write(last.encode())


def _is_outdated(path: Path, db: PostgresTransaction) -> bool:
    number = path.name.partition(".")[0]
    try:
        row = db.collection(int(number)) if number.isdecimal() else None
        return row is None or outdated(path, db, shelf_of(db, row))
    except StoreDamagedError:
        return True
