"""A transaction on SQLite: its statements, and content. Every other column of the store is a number or a digest.

SQLite clears what it deletes, but not the copies it leaves behind where it moves rows from page to page. So content stands in
a table of its own whose rows never move: they are appended, or overwritten in place with the same length. Erased content is
overwritten with zeros, and no copy exists elsewhere. Its room is given to later content of about the same length.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...errors import StoreError
from ..rows import Payload
from ..sql.transaction import SqlTransaction

APPLICATION_ID = 0x484D544D  # "HMTM", so that other tools can tell what the file is
_SLACK = 5 / 4  # content takes over room that is at most so many times its length
_PER_STEP = 512


class SqliteTransaction(SqlTransaction):
    """Everything that `backend.Transaction` asks for, over one connection."""

    pinned_index = "INDEXED BY messages_pinned"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @property
    def changes(self) -> int:
        """The number of rows that this connection has changed so far."""
        return self._db.total_changes

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement. Returns SQLite's cursor."""
        return self._db.execute(statement, values)

    def each(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement that returns no rows once for each of `rows`."""
        self._db.executemany(statement, rows)

    def lazily(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of a result, however large, without holding all of them."""
        return self.execute(statement, values)

    def insert(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Insert one row that gets its id from the database. Returns the id."""
        return int(self.execute(statement, values).lastrowid or 0)

    def script(self, statements: str) -> None:
        """Run statements that define tables."""
        for statement in statements.split(";\n"):
            if statement.strip():
                self._db.execute(statement)

    def columns(self, table: str) -> str:
        """Return the names of a table's columns, in the order in which its rows are written."""
        return ", ".join(name for (name,) in self.all("SELECT name FROM pragma_table_info(?)", (table,)))

    def last_id(self, table: str) -> int:
        """Return the last id that a table has given, to a row that may be gone; 0: none."""
        given = f"SELECT seq FROM sqlite_sequence WHERE name = ? UNION ALL SELECT max(id) FROM {table}"
        return int(self.one(f"SELECT coalesce(max(seq), 0) FROM ({given})", (table,))[0])

    def continue_ids(self, table: str, after: int) -> None:
        """Let the ids of a table whose rows brought their own go on. Those without AUTOINCREMENT go on from the largest."""
        self.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, after))

    def version(self) -> int:
        """Return how many steps the schema has been through; 0: the file is blank.

        Raises:
            StoreError: the file is another program's.
        """
        (version,), (application,) = self.one("PRAGMA user_version"), self.one("PRAGMA application_id")
        (tables,) = self.one("SELECT count(*) FROM sqlite_master")
        if tables and application != APPLICATION_ID:
            raise StoreError("the database is another program's. Choose another folder.")
        return int(version)

    def set_version(self, steps: int) -> None:
        """Note how many steps the schema has been through."""
        self.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.execute(f"PRAGMA user_version = {steps}")

    def put(self, data: bytes) -> Payload:
        """Write content, into vacant room if some fits."""
        fitting = "SELECT room, payload FROM vacant WHERE room BETWEEN ? AND ? ORDER BY room LIMIT 1"
        vacant = self.one(fitting, (len(data), int(len(data) * _SLACK)))
        if vacant is None:
            payload = self.insert("INSERT INTO payloads (data) VALUES (?)", (data,))
        else:
            room, payload = vacant
            self.execute("DELETE FROM vacant WHERE room = ? AND payload = ?", vacant)
            self.execute("UPDATE payloads SET data = ? WHERE id = ?", (data.ljust(room, b"\0"), payload))
        return Payload(payload, len(data), zlib.crc32(data))

    def overwrite(self, erasure: int, most: int) -> int:
        """Overwrite about `most` bytes of released content. Returns the sum of payloads and bytes."""
        query = "SELECT payload, length(data) FROM released JOIN payloads ON id = payload WHERE erasure = ? LIMIT ?"
        done = 0
        for payload, room in self.all(query, (erasure, _PER_STEP)):
            self.execute("UPDATE payloads SET data = zeroblob(?) WHERE id = ?", (room, payload))
            self.execute("INSERT INTO vacant VALUES (?, ?)", (room, payload))
            self.execute("DELETE FROM released WHERE erasure = ? AND payload = ?", (erasure, payload))
            done += room + 1
            if done >= most:
                break
        return done

    def vacant_bytes(self) -> int:
        """Count the bytes of vacant room."""
        return int(self.one("SELECT coalesce(sum(room), 0) FROM vacant")[0])

    def drop_vacant(self) -> None:
        """Delete vacant rows. Others may move: the file has to be rewritten before anything else is erased."""
        self.execute("DELETE FROM payloads WHERE id IN (SELECT payload FROM vacant)")
        self.execute("DELETE FROM vacant")
