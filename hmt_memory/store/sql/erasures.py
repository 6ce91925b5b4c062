"""The record of erasures under way, and the deletion of rows that nobody shows any more."""

from __future__ import annotations

from collections.abc import Iterable

from ..transaction import Sweep
from .statements import Statements

# Tables of rows that belong to streams: the column of the place in the stream, and that of the content.
_TABLES = (("messages", "seq", "body"), ("tokens", "start", "ids"), ("segments", "seq", "memory"))


class Erasures(Statements):
    """Erasures in SQL."""

    def begin_erasure(self) -> int:
        """Begin an erasure; return its number."""
        return self.insert("INSERT INTO erasures DEFAULT VALUES")

    def end_erasure(self, erasure: int) -> None:
        """Note that nothing is left of what was erased."""
        self.execute("DELETE FROM erasures WHERE id = ?", (erasure,))

    def erasures(self) -> list[int]:
        """List the erasures that are under way, or were left by a crash."""
        return [int(erasure) for (erasure,) in self.all("SELECT id FROM erasures ORDER BY id")]

    def last_erasure(self) -> int:
        """Return the number of the latest erasure that was begun."""
        return self.last_id("erasures")

    def sweep_later(self, erasure: int, kind: str, number: int) -> None:
        """Say that a "stream", or the documents of a "corpus", may hold rows that nobody shows any more."""
        self.execute("INSERT INTO sweeps VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (erasure, kind, number))

    def next_sweep(self, erasure: int) -> Sweep | None:
        """Return a stream or corpus that an erasure has still to go through."""
        row = self.one("SELECT kind, id FROM sweeps WHERE erasure = ? LIMIT 1", (erasure,))
        return None if row is None else Sweep(*row)

    def end_sweep(self, erasure: int, sweep: Sweep) -> None:
        """Note that an erasure has gone through a stream or corpus."""
        self.execute("DELETE FROM sweeps WHERE erasure = ? AND kind = ? AND id = ?", (erasure, *sweep))

    def is_swept(self, streams: Iterable[int]) -> bool:
        """Return whether an erasure has still to go through one of these streams."""
        query = "SELECT 1 FROM sweeps WHERE kind = 'stream' AND id = ?"
        return any(self.one(query, (stream,)) for stream in streams)

    def delete_rows(self, stream: int, ends: tuple[int, int, int], erasure: int, most: int) -> int:
        """Delete some of a stream's rows from so many messages, tokens and segments on. Returns how many there were.

        Args:
            stream: the stream whose rows are deleted.
            ends: where messages, tokens and segments are to end.
            erasure: overwrites their content.
            most: the largest number of rows to delete; a smaller result means that none are left.
        """
        done = 0
        for (table, place, content), end in zip(_TABLES, ends, strict=True):
            query = f"SELECT {place}, {content} FROM {table} WHERE stream = ? AND {place} >= ? LIMIT ?"
            rows = self.all(query, (stream, end, most - done))
            delete = f"DELETE FROM {table} WHERE stream = ? AND {place} = ?"
            self.each(delete, ((stream, position) for position, _ in rows))
            self.release(erasure, [payload for _, payload in rows])
            done += len(rows)
        return done
