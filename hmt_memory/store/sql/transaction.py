"""A transaction on a SQL database: all kinds of rows. Messages, tokens and segments are in this file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ...engine.mxint8 import pack, unpack
from ..rows import Kept, MessageRow, Payload, SegmentRow, TokenRow, as_json, checked, content, crc_of, damaged
from .catalogue import Catalogue

_SPANS = "token_start, token_stop, content_start, content_stop"
_MESSAGE_ROW = f"seq, m.id, batch, pinned, body, body_size, body_check, created_at, {_SPANS}, crc"
_MESSAGE = f"{_MESSAGE_ROW}, data FROM messages m JOIN payloads p ON p.id = body"
_TOKENS = (
    "SELECT start, ids, ids_size, ids_check, crc, data FROM tokens t JOIN payloads p ON p.id = ids WHERE stream = ? AND"
    " start >= coalesce((SELECT max(start) FROM tokens WHERE stream = ? AND start <= ?), 0) AND start < ? ORDER BY start"
)
_TOKEN_ROW = (
    "SELECT start, ids, ids_size, ids_check, crc FROM tokens WHERE stream = ? AND start >= ? AND start < ? ORDER BY start"
)
# Named, because a column that a step adds may come behind one that a database has added itself.
_SEGMENT_COLUMNS = "stream, seq, token_start, token_stop, memory, memory_size, memory_check, keys_size, digest, crc, bits"
_SEGMENT = (
    "seq, token_start, token_stop, memory, memory_size, memory_check, keys_size, digest, bits, crc, data"
    " FROM segments s JOIN payloads p ON p.id = memory"
)
_PINNED_AT_ONCE, _SEGMENTS_AT_ONCE = 16, 1024


class SqlTransaction(Catalogue):
    """Everything that `backend.Transaction` asks for."""

    def add_message(self, stream: int, message: MessageRow) -> None:
        """Add a message at its place."""
        self._add_message(stream, message, self.put(as_json(message.body)))

    def _add_message(self, stream: int, message: MessageRow, body: Payload) -> None:
        names = (message.seq, message.id, message.batch, int(message.pinned))
        values = (*names, *body, message.created_at, *message.tokens, *message.content)
        self.execute(f"INSERT INTO messages VALUES ({', '.join('?' * 14)})", (stream, *values, crc_of(*values)))

    def messages(self, stream: int, start: int, stop: int) -> list[MessageRow]:
        """Return a stream's own messages [start, stop), in order."""
        query = f"SELECT {_MESSAGE} WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
        return [_message(row) for row in self.all(query, (stream, start, stop))]

    def messages_between(self, stream: int, tokens: tuple[int, int], before: int) -> list[MessageRow]:
        """Return a stream's own messages before message `before` that tokens [low, high) belong to; of no tokens none does."""
        low, high = tokens
        query = "SELECT max(token_start) FROM messages WHERE stream = ? AND token_start <= ? AND seq < ?"
        (first,) = self.one(query, (stream, low, before))
        query = (
            f"SELECT {_MESSAGE} WHERE stream = ? AND token_start >= ? AND token_start < ? AND token_stop > ?"
            " AND token_stop > token_start AND +seq < ? ORDER BY token_start"  # the sign: SQLite would go by the primary key
        )
        values = (stream, low if first is None else first, high, low, before)
        return [_message(row) for row in self.all(query, values)]

    def pinned(self, stream: int, start: int, stop: int) -> Iterator[MessageRow]:
        """Yield a stream's own pinned messages of [start, stop), the latest first."""
        query = (
            f"SELECT {_MESSAGE_ROW}, data FROM messages m {self.pinned_index} JOIN payloads p ON p.id = body"
            f" WHERE stream = ? AND seq >= ? AND seq < ? AND pinned = 1 ORDER BY seq DESC LIMIT {_PINNED_AT_ONCE}"
        )
        while rows := self.all(query, (stream, start, stop)):
            yield from map(_message, rows)
            stop = rows[-1][0]

    def position(self, stream: int, message: int, before: int) -> int | None:
        """Return the place of a stream's own message, if it stands before message `before`."""
        query = "SELECT seq FROM messages WHERE stream = ? AND id = ? AND seq < ?"
        row = self.one(query, (stream, message, before))
        return None if row is None else int(row[0])

    def earliest(self, stream: int, start: int, stop: int) -> float | None:
        """Return when the oldest turn among a stream's own messages [start, stop) was said."""
        query = "SELECT min(created_at) FROM messages WHERE stream = ? AND seq >= ? AND seq < ? AND pinned = 0"
        time: float | None = self.one(query, (stream, start, stop))[0]
        return time

    def add_tokens(self, stream: int, start: int, ids: bytes) -> None:
        """Add token ids (uint32, little-endian) at their place."""
        self._add_tokens(stream, self.new_tokens(start, ids))

    def new_tokens(self, start: int, ids: bytes) -> TokenRow:
        """Write token ids for a row that is about to refer to them."""
        return TokenRow(start, self.put(ids))

    def _add_tokens(self, stream: int, row: TokenRow) -> None:
        values = (row.start, *row.ids)
        self.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)", (stream, *values, crc_of(*values)))

    def tokens(self, stream: int, low: int, high: int) -> list[tuple[int, bytes]]:
        """Return the rows of a stream's own tokens that reach into [low, high): the start of each, and its ids."""
        rows = []
        for *row, data in self.all(_TOKENS, (stream, stream, low, high)) if low < high else ():
            what = f"tokens {row[0]} of stream {stream}"
            start, _, size, check = checked(what, row)
            rows.append((int(start), content(what, data, size, check)))
        return rows

    def kept(self, stream: int, start: int, stop: int) -> list[Kept]:
        """Return a stream's own messages [start, stop) without their content."""
        query = f"SELECT {_MESSAGE_ROW} FROM messages m WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
        messages: list[Kept] = []
        for values in self.all(query, (stream, start, stop)):
            seq, number, batch, pinned, body, size, check, created, *spans = checked(f"message {values[1]}", values)
            row = MessageRow(seq, number, batch, bool(pinned), {}, created, (spans[0], spans[1]), (spans[2], spans[3]))
            messages.append(Kept(row, Payload(body, size, check), self._token_rows(stream, *row.tokens)))
        return messages

    def _token_rows(self, stream: int, start: int, stop: int) -> tuple[TokenRow, ...]:
        rows = self.all(_TOKEN_ROW, (stream, start, stop))
        values = (checked(f"tokens {row[0]} of stream {stream}", row) for row in rows)
        return tuple(TokenRow(row[0], Payload(*row[1:])) for row in values)

    def add_kept(self, stream: int, message: Kept) -> None:
        """Add a message of another stream at its place; both refer to the same content."""
        self._add_message(stream, message.row, message.body)
        for row in message.tokens:
            self._add_tokens(stream, row)
        self.share([message.body.id, *(row.ids.id for row in message.tokens if row.ids.id not in message.new)])

    def add_segment(self, stream: int, segment: SegmentRow) -> None:
        """Add a closed segment at its place."""
        memory, keys, bits = segment.memory, segment.keys, None if segment.bits == 16 else segment.bits
        if bits is not None:
            memory, keys = pack(memory), None if keys is None else pack(keys)
        size = None if keys is None else len(keys)
        values = (segment.seq, *segment.tokens, *self.put(memory + (keys or b"")), size, segment.digest)
        insert = f"INSERT INTO segments ({_SEGMENT_COLUMNS}) VALUES ({', '.join('?' * 11)})"
        self.execute(insert, (stream, *values, _segment_crc(values, bits), bits))

    def segments(self, stream: int, start: int, stop: int) -> Iterator[SegmentRow]:
        """Yield a stream's own segments [start, stop), in order; fetch them before the transaction ends."""
        query = f"SELECT {_SEGMENT} WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq LIMIT {_SEGMENTS_AT_ONCE}"
        while rows := self.all(query, (stream, start, stop)) if start < stop else ():
            for row in rows:
                yield _segment(row, stream)
            start = rows[-1][0] + 1 if len(rows) == _SEGMENTS_AT_ONCE else stop

    def last_segment(self, stream: int, start: int, stop: int) -> int | None:
        """Return the number of the last of a stream's own segments [start, stop)."""
        query = "SELECT max(seq) FROM segments WHERE stream = ? AND seq >= ? AND seq < ?"
        last: int | None = self.one(query, (stream, start, stop))[0]
        return last


def _message(row: Sequence[Any]) -> MessageRow:
    *rest, data = row
    what = f"message {row[1]}"
    seq, number, batch, pinned, _, size, check, created, *spans = checked(what, rest)
    body = json.loads(content(what, data, size, check))
    return MessageRow(seq, number, batch, bool(pinned), body, created, (spans[0], spans[1]), (spans[2], spans[3]))


def _segment(row: Sequence[Any], stream: int) -> SegmentRow:
    *values, bits, crc, data = row
    what = f"segment {row[0]} of stream {stream}"
    if _segment_crc(values, bits) != crc:
        raise damaged(what)
    seq, start, stop, _, size, check, keys_size, digest = values
    held = content(what, data, size, check)
    split = size - (keys_size or 0)
    memory, keys = held[:split], None if keys_size is None else held[split:]
    if bits is None:
        return SegmentRow(seq, (start, stop), memory, keys, digest)
    return SegmentRow(seq, (start, stop), unpack(memory), None if keys is None else unpack(keys), digest, bits)


def _segment_crc(values: Sequence[Any], bits: int | None) -> int:
    """Compute the crc32 of a segment's row; one of 16 bits has the same as before rows said their bits."""
    return crc_of(*values) if bits is None else crc_of(*values, bits)
