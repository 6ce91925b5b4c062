"""The steps of an erasure: delete rows that nobody shows any more, then overwrite their content.

Each step is one short transaction: whoever else wants to write waits for one step at most.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from . import erasing, payloads, records
from .database import Database
from .erasing import sweep_later
from .rows import StreamRow

_ROWS_PER_STEP = 512
_BYTES_PER_STEP = 1 << 20


class _Table(NamedTuple):
    """A table of rows that belong to streams."""

    name: str
    place: str  # column of the place in the stream
    content: str  # column of the payload


_TABLES = (
    _Table("messages", "seq", "body"),
    _Table("tokens", "start", "ids"),
    _Table("segments", "seq", "memory"),
)


def finish(database: Database, erasure: int, *, wait: bool = True) -> None:
    """Go through an erasure to its end: what was erased is then in no file.

    Args:
        wait: whether to wait for another process that is at it; else it is left to it.

    Raises:
        SessionBusyError: somebody kept reading or writing. StoreError: the disk is failing.
    """
    with contextlib.suppress(Timeout), database.lock(f"erasure-{erasure}", timeout=None if wait else 0) as lock:
        while database.erasing(lambda db: _some_steps(db, erasure)):
            database.let_others_write()
        database.empty_log()
        database.erasing(lambda db: erasing.finish(db, erasure))
        Path(lock.lock_file).unlink(missing_ok=True)


def _some_steps(db: sqlite3.Connection, erasure: int) -> bool:
    """Take as many steps as fit into a short transaction; return whether there is anything left to do."""
    rows, written = db.total_changes, 0
    while db.total_changes - rows < _ROWS_PER_STEP and written < _BYTES_PER_STEP:
        swept = _sweep(db, erasure)
        taken = 0 if swept else payloads.overwrite(db, erasure, _BYTES_PER_STEP)
        if not swept and not taken:
            return False
        written += taken
    return True


def _sweep(db: sqlite3.Connection, erasure: int) -> bool:
    """Go on with what an erasure has to go through; return whether there was anything."""
    found = db.execute("SELECT kind, id FROM sweeps WHERE erasure = ? LIMIT 1", (erasure,)).fetchone()
    if found is None:
        return False
    kind, id = found
    done = _sweep_stream(db, erasure, id) if kind == "stream" else _sweep_corpus(db, erasure, id)
    if done:
        db.execute("DELETE FROM sweeps WHERE erasure = ? AND kind = ? AND id = ?", (erasure, kind, id))
    return True


def _sweep_corpus(db: sqlite3.Connection, erasure: int, id: int) -> bool:
    """Delete some documents of a corpus that is gone; return whether they were the last."""
    found = db.execute("SELECT id, stream, body FROM documents WHERE collection = ? LIMIT ?", (id, _ROWS_PER_STEP)).fetchall()
    for document, stream, body in found:
        payloads.release(db, erasure, [body])
        db.execute("DELETE FROM documents WHERE collection = ? AND id = ?", (id, document))
        sweep_later(db, erasure, "stream", stream)
    return len(found) < _ROWS_PER_STEP


def _sweep_stream(db: sqlite3.Connection, erasure: int, id: int) -> bool:
    """Delete some rows of a stream that no session, document or other stream shows; return whether they were the last."""
    if not records.has_stream(db, id) or records.is_shown(db, id):
        return True
    row, children = records.stream(db, id), records.children(db, id)
    ends = _ends(children)
    for table, end in zip(_TABLES, ends, strict=True):
        if _delete_rows(db, erasure, table, id, end) == _ROWS_PER_STEP:
            return False
    if children:
        records.update_stream(db, row._replace(messages=ends[0], tokens=ends[1]))
    else:
        records.delete_stream(db, id)
        if row.parent is not None:
            sweep_later(db, erasure, "stream", row.parent)
    return True


def _ends(children: list[StreamRow]) -> tuple[int, int, int]:
    """How many messages, tokens and segments of a stream its children show."""
    return (
        max((child.parent_messages for child in children), default=0),
        max((child.parent_tokens for child in children), default=0),
        max((child.parent_segments for child in children), default=0),
    )


def _delete_rows(db: sqlite3.Connection, erasure: int, table: _Table, stream: int, end: int) -> int:
    """Delete up to a step's rows of a stream from `end` on, and release their content; return how many there were."""
    query = f"SELECT {table.place}, {table.content} FROM {table.name} WHERE stream = ? AND {table.place} >= ? LIMIT ?"
    found = db.execute(query, (stream, end, _ROWS_PER_STEP)).fetchall()
    db.executemany(f"DELETE FROM {table.name} WHERE stream = ? AND {table.place} = ?", ((stream, place) for place, _ in found))
    payloads.release(db, erasure, [content for _, content in found])
    return len(found)
