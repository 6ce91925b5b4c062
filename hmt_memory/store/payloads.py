"""Content: what was said, its tokens and embeddings, names. Every other column of the store is a number or a digest.

SQLite clears what it deletes, but not the copies it leaves behind where it moves rows from page to page. So content stands in
a table of its own whose rows never move: they are appended, or overwritten where they are in the same length. What is erased is
overwritten with zeros, and was then nowhere else. Its room is given to later content of about the same length.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from .rows import damaged

_SLACK = 5 / 4  # content takes over room that is at most so many times its length
_PER_STEP = 512


class Payload(NamedTuple):
    """Where content stands, as the row it belongs to says."""

    id: int
    size: int
    check: int  # crc32 of the content


def put(db: sqlite3.Connection, data: bytes) -> Payload:
    """Write content, into room that was given back where some fits."""
    fitting = "SELECT room, payload FROM vacant WHERE room BETWEEN ? AND ? ORDER BY room LIMIT 1"
    vacant = db.execute(fitting, (len(data), int(len(data) * _SLACK))).fetchone()
    if vacant is None:
        id = int(db.execute("INSERT INTO payloads (data) VALUES (?)", (data,)).lastrowid or 0)
    else:
        room, id = vacant
        db.execute("DELETE FROM vacant WHERE room = ? AND payload = ?", vacant)
        db.execute("UPDATE payloads SET data = ? WHERE id = ?", (data.ljust(room, b"\0"), id))
    return Payload(id, len(data), zlib.crc32(data))


def content(what: str, data: bytes, size: int, check: int) -> bytes:
    """Return the content that a payload's `data` begins with. Raises StoreDamagedError if it is not what was written."""
    said = data[:size]
    if len(said) != size or zlib.crc32(said) != check:
        raise damaged(what)
    return said


def share(db: sqlite3.Connection, payloads: Iterable[int]) -> None:
    """Note that one row more refers to each."""
    more = "INSERT INTO shares VALUES (?, 1) ON CONFLICT (payload) DO UPDATE SET others = others + 1"
    db.executemany(more, ((payload,) for payload in payloads))


def release(db: sqlite3.Connection, erasure: int, payloads: Iterable[int]) -> None:
    """Note that one row less refers to each; content that no row refers to any more is to be overwritten."""
    unshared = [payload for payload in payloads if not _unshare(db, payload)]
    db.executemany(
        "INSERT OR IGNORE INTO released (erasure, payload) VALUES (?, ?)", ((erasure, payload) for payload in unshared)
    )


def _unshare(db: sqlite3.Connection, payload: int) -> bool:
    """Note that one row less refers to a payload, if several do; return whether they did."""
    shared = db.execute("SELECT others FROM shares WHERE payload = ?", (payload,)).fetchone()
    if shared is None:
        return False
    if shared[0] > 1:
        db.execute("UPDATE shares SET others = others - 1 WHERE payload = ?", (payload,))
    else:
        db.execute("DELETE FROM shares WHERE payload = ?", (payload,))
    return True


def overwrite(db: sqlite3.Connection, erasure: int, most: int) -> int:
    """Overwrite about `most` bytes of what an erasure has released; return how many payloads and bytes that was together."""
    query = "SELECT payload, length(data) FROM released JOIN payloads ON id = payload WHERE erasure = ? LIMIT ?"
    done = 0
    for payload, room in db.execute(query, (erasure, _PER_STEP)).fetchall():
        db.execute("UPDATE payloads SET data = zeroblob(?) WHERE id = ?", (room, payload))
        db.execute("INSERT INTO vacant VALUES (?, ?)", (room, payload))
        db.execute("DELETE FROM released WHERE erasure = ? AND payload = ?", (erasure, payload))
        done += room + 1
        if done >= most:
            break
    return done


def vacant_bytes(db: sqlite3.Connection) -> int:
    """Count the bytes that were given back and hold nothing."""
    return int(db.execute("SELECT coalesce(sum(room), 0) FROM vacant").fetchone()[0])


def drop_vacant(db: sqlite3.Connection) -> None:
    """Delete the rows that hold nothing. Others may move then: the file has to be rewritten before anything else is erased."""
    db.execute("DELETE FROM payloads WHERE id IN (SELECT payload FROM vacant)")
    db.execute("DELETE FROM vacant")
