"""The rows of streams: beginnings in their parents, ends, who shows them, which are being written."""

from __future__ import annotations

from ...errors import StoreDamagedError
from ..rows import StreamRow, checked, crc_of
from .erasures import Erasures

_STREAM = "id, parent, parent_messages, parent_tokens, parent_segments, messages, tokens, crc"
_SHOWING = """
WITH RECURSIVE below (id, shown) AS (
    SELECT id, messages FROM streams WHERE id = ?
    UNION ALL
    SELECT s.id, CASE WHEN shown < s.parent_messages THEN shown ELSE s.parent_messages END
    FROM streams s JOIN below ON s.parent = below.id WHERE s.parent_messages > ?
)
SELECT data, name_size FROM collections c JOIN below ON c.stream = below.id JOIN payloads p ON p.id = c.name
WHERE shown > ? AND c.id != ? ORDER BY c.id
"""


class Streams(Erasures):
    """Streams in SQL."""

    def stream(self, stream: int) -> StreamRow:
        """Return the stream of that id."""
        row = self.one(f"SELECT {_STREAM} FROM streams WHERE id = ?", (stream,))
        if row is None:
            raise StoreDamagedError(f"the record of stream {stream} is missing. Restore a backup or an export.")
        return StreamRow(stream, *checked(f"the record of stream {stream}", row[1:]))

    def has_stream(self, stream: int) -> bool:
        """Return whether there is a stream of that id."""
        return self.one("SELECT 1 FROM streams WHERE id = ?", (stream,)) is not None

    def children(self, stream: int) -> list[StreamRow]:
        """Return the streams that continue a stream."""
        rows = self.all(f"SELECT {_STREAM} FROM streams WHERE parent = ?", (stream,))
        return [StreamRow(row[0], *checked(f"the record of stream {row[0]}", row[1:])) for row in rows]

    def add_stream(self, row: StreamRow) -> int:
        """Add a stream; its own id is ignored. Returns the new id."""
        columns = "parent, parent_messages, parent_tokens, parent_segments, messages, tokens, crc"
        values = (*row[1:], crc_of(*row[1:]))
        return self.insert(f"INSERT INTO streams ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def update_stream(self, row: StreamRow) -> None:
        """Write a stream back."""
        columns = "parent = ?, parent_messages = ?, parent_tokens = ?, parent_segments = ?, messages = ?, tokens = ?, crc = ?"
        self.execute(f"UPDATE streams SET {columns} WHERE id = ?", (*row[1:], crc_of(*row[1:]), row.id))

    def delete_stream(self, stream: int) -> None:
        """Delete the record of a stream that has no rows and that nothing continues."""
        self.execute("DELETE FROM streams WHERE id = ?", (stream,))

    def give_rows(self, stream: int, to: int) -> None:
        """Give all rows of a stream to another one that has none at their places."""
        for table in ("messages", "tokens", "segments"):
            self.execute(f"UPDATE {table} SET stream = ? WHERE stream = ?", (to, stream))

    def is_shown(self, stream: int) -> bool:
        """Return whether a stream is the whole of a session or document, or is being written to become a session's."""
        tables = ("collections", "documents", "drafts")
        query = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE stream = ?)" for table in tables)
        return bool(self.one(f"SELECT {query}", (stream,) * len(tables))[0])

    def showing(self, stream: int, seq: int, *, besides: int) -> list[str]:
        """Return the names of sessions, besides one, that show a stream's own message at `seq`."""
        rows = self.all(_SHOWING, (stream, seq, seq, besides))
        return [data[:size].decode() for data, size in rows]

    def add_draft(self, stream: int, collection: int) -> None:
        """Note that a stream is being written to take the place of a session's."""
        self.execute("INSERT INTO drafts VALUES (?, ?)", (stream, collection))

    def remove_draft(self, stream: int) -> None:
        """Note that a stream is no longer a draft."""
        self.execute("DELETE FROM drafts WHERE stream = ?", (stream,))

    def drafts(self, collection: int) -> list[int]:
        """List the streams that are, or were, being written for a session."""
        return [int(stream) for (stream,) in self.all("SELECT stream FROM drafts WHERE collection = ?", (collection,))]

    def drafted(self) -> list[int]:
        """List the sessions that streams are, or were, being written for."""
        return [int(session) for (session,) in self.all("SELECT DISTINCT collection FROM drafts")]
