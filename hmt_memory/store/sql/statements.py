"""What the databases say in different ways: running statements, new ids, content. The statements above are the same for all.

Values stand for `?`. A row comes back as a sequence of int, float, str, bytes and None: checksums tell these types apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..rows import Payload

Row = Sequence[Any]


class Statements:
    """One connection inside one transaction. A database's own class says how."""

    pinned_index = ""  # follows "messages m" where a database has to be told which index finds pinned messages

    @property
    def changes(self) -> int:
        """The number of rows that this connection has changed so far."""
        raise NotImplementedError

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement. Returns the driver's cursor."""
        raise NotImplementedError

    def each(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement that returns no rows once for each of `rows`."""
        raise NotImplementedError

    def one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row of a result; None if there is none."""
        return self.execute(statement, values).fetchone()

    def all(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Return all rows of a result."""
        return self.execute(statement, values).fetchall()

    def lazily(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of a result, however large, without holding all of them."""
        raise NotImplementedError

    def insert(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Insert one row that gets its id from the database. Returns the id."""
        raise NotImplementedError

    def script(self, statements: str) -> None:
        """Run statements that define tables, written for SQLite."""
        raise NotImplementedError

    def columns(self, table: str) -> str:
        """Return the names of a table's columns, in the order in which its rows are written."""
        raise NotImplementedError

    def on_conflict(self, table: str, key: str) -> str:
        """Return the beginning of what is done where a row with the same primary key is there.

        Args:
            table: its name.
            key: the column of its primary key.
        """
        return f"ON CONFLICT ({key})"

    def last_id(self, table: str) -> int:
        """Return the last id that a table has given, to a row that may be gone; 0: none."""
        raise NotImplementedError

    def continue_ids(self, table: str, after: int) -> None:
        """Let the ids of a table whose rows brought their own go on.

        Args:
            table: its name.
            after: the last id that was given.
        """
        raise NotImplementedError

    def version(self) -> int:
        """Return how many steps the schema has been through; 0: the database is blank.

        Raises:
            StoreError: the database is another program's.
        """
        raise NotImplementedError

    def set_version(self, steps: int) -> None:
        """Note how many steps the schema has been through."""
        raise NotImplementedError

    def put(self, data: bytes) -> Payload:
        """Write content."""
        raise NotImplementedError

    def overwrite(self, erasure: int, most: int) -> int:
        """Erase about `most` bytes of released content. Returns the sum of payloads and bytes.

        Args:
            erasure: whose content it is.
            most: bytes, about.
        """
        raise NotImplementedError

    def vacant_bytes(self) -> int:
        """Count the bytes of vacant room."""
        raise NotImplementedError

    def share(self, payloads: Iterable[int]) -> None:
        """Note that one more row refers to each payload."""
        again = f"{self.on_conflict('shares', 'payload')} DO UPDATE SET others = shares.others + 1"
        self.each(f"INSERT INTO shares VALUES (?, 1) {again}", ((payload,) for payload in payloads))

    def release(self, erasure: int, payloads: Iterable[int]) -> None:
        """Note that one row fewer refers to each payload; content without any row is to be erased."""
        unshared = [payload for payload in payloads if not self._unshare(payload)]
        release = "INSERT INTO released (erasure, payload) VALUES (?, ?) ON CONFLICT DO NOTHING"
        self.each(release, ((erasure, payload) for payload in unshared))

    def _unshare(self, payload: int) -> bool:
        """Note that one row fewer refers to a payload, if several do. Returns whether several did."""
        shared = self.one("SELECT others FROM shares WHERE payload = ?", (payload,))
        if shared is None:
            return False
        if shared[0] > 1:
            self.execute("UPDATE shares SET others = others - 1 WHERE payload = ?", (payload,))
        else:
            self.execute("DELETE FROM shares WHERE payload = ?", (payload,))
        return True
