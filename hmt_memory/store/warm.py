"""Index files on this machine's disk, which hold what was made of rows: bounded, and deleted with what they were made of.

The store's own folder is cleared by whoever erases. In another one, such as that of a store which many machines use, lie files
of what others have erased since; the numbers of erasures tell. Knows file names and rows; the content is `index.derived`'s.
Whoever writes an index file holds the lock of writers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from ..errors import HMTError, StoreDamagedError, StoreError
from ..files import replacing
from .backend import Backend
from .index.derived import outdated
from .shelf import shelf_of
from .transaction import Transaction

_SEEN = "erasures"  # the file that holds the number of the last erasure which the others were compared with


def folder_of(database: Backend, chosen: Path | None) -> Path:
    """Return the folder of a store's index files: its own one in a folder that was chosen for all stores, or the database's."""
    if chosen is None:
        return database.cache
    return chosen / _own_name(database.cache)


def _own_name(cache: Path) -> str:
    return hashlib.blake2b(str(cache.absolute()).encode(), digest_size=12).hexdigest()


def open_folder(folder: Path, database: Backend) -> None:
    """Make a folder of index files, and delete those in it that hold anything else than the record does.

    Raises:
        StoreError: it cannot be written.
        SessionBusyError: others kept writing to the store; the folder is made, and nothing is deleted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        drop_outdated(folder, database)
    except HMTError:
        raise
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error}. Point HMT_CACHE, or HMT_WARM_FOLDER if it is set, to a folder that can."
        ) from error


def drop_outdated(folder: Path, database: Backend) -> None:
    """Delete the files that hold anything else than the record does, if anything was erased since this was last done."""
    with database.reading() as db:
        if _is_current(folder, db):
            return
    with database.exclusive(), database.reading() as db:
        last = str(db.last_erasure())  # all up to it have ended: a number is seen before its transaction has ended
        for path in filter(_is_scratch, _files(folder)):  # nobody writes it
            path.unlink(missing_ok=True)
    with database.reading() as db:
        for path in _files(folder):
            if not _is_scratch(path) and _is_outdated(path, db):
                path.unlink(missing_ok=True)
    with contextlib.suppress(OSError), replacing(folder / _SEEN, private=True) as file:  # of a full disk: it only saves looking
        file.write(last.encode())


def drop_former(database: Backend, chosen: Path | None) -> None:
    """Delete the folders of the time before a store kept tenants apart, which lie elsewhere."""
    if (former := database.former_cache) is not None:
        for folder in (former, *([] if chosen is None else [chosen / _own_name(former)])):
            shutil.rmtree(folder, ignore_errors=True)


def trim(folder: Path, limit: int) -> None:
    """Delete the least recently used files until the others fit; those of a collection go together.

    A file that cannot be deleted stays.

    Args:
        folder: of the files.
        limit: bytes.
    """
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    for path in _files(folder):
        with contextlib.suppress(OSError):  # another process deletes, too
            status, number = path.stat(), _number(path)
            sizes[number] = sizes.get(number, 0) + status.st_size
            used[number] = max(used.get(number, 0.0), status.st_mtime)
    total = sum(sizes.values())
    for number in sorted(sizes, key=lambda number: used[number]):
        if total <= limit:
            return
        total -= sizes[number]
        for path in _files(folder):
            if _number(path) == number:
                with contextlib.suppress(OSError):
                    path.unlink()


def touch(path: Path) -> None:
    """Note that a file was used."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _files(folder: Path) -> list[Path]:
    """Return the index files, and what is left of writing them."""
    return [path for path in folder.iterdir() if _number(path) != _SEEN and path.is_file()] if folder.is_dir() else []


def _is_scratch(path: Path) -> bool:
    return path.name.startswith(".")


def _number(path: Path) -> str:
    """Return the collection that a file is of, as its name says."""
    return path.name.lstrip(".").partition(".")[0]


def _is_current(folder: Path, db: Transaction) -> bool:
    with contextlib.suppress(OSError):
        return (folder / _SEEN).read_text(encoding="ascii") == str(db.last_erasure())
    return False


def _is_outdated(path: Path, db: Transaction) -> bool:
    number = path.name.partition(".")[0]
    try:
        row = db.collection(int(number)) if number.isdecimal() else None
        return row is None or outdated(path, db, shelf_of(db, row))
    except StoreDamagedError:
        return True
