"""Content: texts, tokens, embeddings and names. Every other column of the store is a number or a digest.

SQLite clears what it deletes, but not the copies it leaves behind where it moves rows from page to page. So content stands in
a table of its own whose rows never move: they are appended, or overwritten in place with the same length. Erased content is
overwritten with zeros, and no copy exists elsewhere. Its room is given to later content of about the same length.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from ..rows import Payload

_SLACK = 5 / 4  # content takes over room that is at most so many times its length
_PER_STEP = 512


class Payloads:
    """Content over one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def execute(self, statement: str, values: Sequence[Any] | dict[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement of this database's own SQL."""
        return self._db.execute(statement, values)

    @property
    def changes(self) -> int:
        """The number of rows that this connection has changed so far."""
        return self._db.total_changes

    def put(self, data: bytes) -> Payload:
        """Write content, into vacant room if some fits."""
        fitting = "SELECT room, payload FROM vacant WHERE room BETWEEN ? AND ? ORDER BY room LIMIT 1"
        vacant = self.execute(fitting, (len(data), int(len(data) * _SLACK))).fetchone()
        if vacant is None:
            payload = int(self.execute("INSERT INTO payloads (data) VALUES (?)", (data,)).lastrowid or 0)
        else:
            room, payload = vacant
            self.execute("DELETE FROM vacant WHERE room = ? AND payload = ?", vacant)
            self.execute("UPDATE payloads SET data = ? WHERE id = ?", (data.ljust(room, b"\0"), payload))
        return Payload(payload, len(data), zlib.crc32(data))

    def share(self, payloads: Iterable[int]) -> None:
        """Note that one more row refers to each payload."""
        more = "INSERT INTO shares VALUES (?, 1) ON CONFLICT (payload) DO UPDATE SET others = others + 1"
        self._db.executemany(more, ((payload,) for payload in payloads))

    def release(self, erasure: int, payloads: Iterable[int]) -> None:
        """Note that one row fewer refers to each payload; content without any row is to be overwritten."""
        unshared = [payload for payload in payloads if not self._unshare(payload)]
        self._db.executemany(
            "INSERT OR IGNORE INTO released (erasure, payload) VALUES (?, ?)", ((erasure, payload) for payload in unshared)
        )

    def _unshare(self, payload: int) -> bool:
        """Note that one row fewer refers to a payload, if several do. Returns whether several did."""
        shared = self.execute("SELECT others FROM shares WHERE payload = ?", (payload,)).fetchone()
        if shared is None:
            return False
        if shared[0] > 1:
            self.execute("UPDATE shares SET others = others - 1 WHERE payload = ?", (payload,))
        else:
            self.execute("DELETE FROM shares WHERE payload = ?", (payload,))
        return True

    def overwrite(self, erasure: int, most: int) -> int:
        """Overwrite about `most` bytes of released content. Returns the sum of payloads and bytes."""
        query = "SELECT payload, length(data) FROM released JOIN payloads ON id = payload WHERE erasure = ? LIMIT ?"
        done = 0
        for payload, room in self.execute(query, (erasure, _PER_STEP)).fetchall():
            self.execute("UPDATE payloads SET data = zeroblob(?) WHERE id = ?", (room, payload))
            self.execute("INSERT INTO vacant VALUES (?, ?)", (room, payload))
            self.execute("DELETE FROM released WHERE erasure = ? AND payload = ?", (erasure, payload))
            done += room + 1
            if done >= most:
                break
        return done

    def vacant_bytes(self) -> int:
        """Count the bytes of vacant room."""
        return int(self.execute("SELECT coalesce(sum(room), 0) FROM vacant").fetchone()[0])

    def drop_vacant(self) -> None:
        """Delete vacant rows. Others may move: the file has to be rewritten before anything else is erased."""
        self.execute("DELETE FROM payloads WHERE id IN (SELECT payload FROM vacant)")
        self.execute("DELETE FROM vacant")
