"""The rows: sessions and corpora, their streams, messages, tokens and segments. SQL stands here and nowhere else.

Every function takes a connection inside a transaction of `database`. Every row is checked against its crc32 when it is
read, and what must be contiguous is checked to be: a damaged row is an error, never a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError

TOKENS_PER_ROW = 4096


class ModelRow(NamedTuple):
    """A model that made memories."""

    id: int
    digest: str
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class CollectionRow:
    """A session or a corpus."""

    id: int
    kind: str
    name: str
    model: int | None
    stream: int | None
    next_id: int
    revision: int
    epoch: int
    created_at: float
    updated_at: float
    settings: Mapping[str, Any]

    def values(self) -> tuple[Any, ...]:
        settings = json.dumps(self.settings, sort_keys=True)
        times = (self.created_at, self.updated_at)
        counts = (self.next_id, self.revision, self.epoch)
        return (self.kind, self.name, self.model, self.stream, *counts, *times, settings)


class StreamRow(NamedTuple):
    """Where a stream begins in its parent, and where it ends."""

    id: int
    parent: int | None
    parent_messages: int
    parent_tokens: int
    parent_segments: int
    messages: int
    tokens: int


class Part(NamedTuple):
    """A stretch of one stream's own rows within a lineage: [start, stop) of each."""

    stream: int
    messages: tuple[int, int]
    tokens: tuple[int, int]
    segments: tuple[int, int | None]  # None: as many as there are


Lineage = tuple[Part, ...]


class MessageRow(NamedTuple):
    """One message."""

    seq: int
    id: int
    batch: int
    pinned: bool
    body: Mapping[str, Any]
    created_at: float
    tokens: tuple[int, int]
    content: tuple[int, int]


class SegmentRow(NamedTuple):
    """One closed segment."""

    seq: int
    tokens: tuple[int, int]
    memory: bytes
    keys: bytes | None
    digest: bytes


class DocumentRow(NamedTuple):
    """One document of a corpus."""

    id: int
    stream: int
    body: Mapping[str, Any]
    created_at: float


def crc_of(*values: Any) -> int:
    """crc32 over values of a row, their types and lengths included."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        crc = zlib.crc32(data, zlib.crc32(f"{type(value).__name__}{len(data)}:".encode(), crc))
    return crc


def _checked(what: str, row: Sequence[Any]) -> Sequence[Any]:
    """The columns of `row` without its last, their crc."""
    if crc_of(*row[:-1]) != row[-1]:
        raise StoreDamagedError(f"{what} is damaged: its checksum does not fit. Restore a backup or an export.")
    return row[:-1]


# --- facts about the store ------------------------------------------------------------------------------------------


def set_fact(db: sqlite3.Connection, name: str, value: str | None) -> None:
    """Remember `value` under `name`; None forgets it."""
    if value is None:
        db.execute("DELETE FROM facts WHERE name = ?", (name,))
    else:
        db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def fact(db: sqlite3.Connection, name: str) -> str | None:
    """What is remembered under `name`."""
    row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


# --- models ---------------------------------------------------------------------------------------------------------


def add_model(db: sqlite3.Connection, digest: str, parts: Mapping[str, Any]) -> int:
    """The id of the model with this digest, recorded if it is new."""
    row = db.execute("SELECT id FROM models WHERE digest = ?", (digest,)).fetchone()
    if row is not None:
        return int(row[0])
    text = json.dumps(parts, sort_keys=True)
    cursor = db.execute("INSERT INTO models (digest, parts, crc) VALUES (?, ?, ?)", (digest, text, crc_of(digest, text)))
    return int(cursor.lastrowid or 0)


def model(db: sqlite3.Connection, id: int) -> ModelRow:
    """The model of that id."""
    row = db.execute("SELECT digest, parts, crc FROM models WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise StoreDamagedError(f"the record of model {id} is missing. Restore a backup or an export.")
    digest, parts = _checked(f"the record of model {id}", row)
    return ModelRow(id, digest, json.loads(parts))


# --- collections ----------------------------------------------------------------------------------------------------

_COLLECTION = "id, kind, name, model, stream, next_id, revision, epoch, created_at, updated_at, settings, crc"


def _collection(row: Sequence[Any]) -> CollectionRow:
    id, *rest = row
    *values, settings = _checked(f"the record of {row[1]} {row[2]!r}", rest)
    return CollectionRow(id, *[*values, json.loads(settings)])


def collections(db: sqlite3.Connection, kind: str) -> list[CollectionRow]:
    """All of a kind, by name."""
    rows = db.execute(f"SELECT {_COLLECTION} FROM collections WHERE kind = ? ORDER BY name", (kind,)).fetchall()
    return [_collection(row) for row in rows]


def find_collection(db: sqlite3.Connection, kind: str, name: str) -> CollectionRow | None:
    """The session or corpus of that name."""
    row = db.execute(f"SELECT {_COLLECTION} FROM collections WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return None if row is None else _collection(row)


def collection(db: sqlite3.Connection, id: int) -> CollectionRow | None:
    """The session or corpus of that id."""
    row = db.execute(f"SELECT {_COLLECTION} FROM collections WHERE id = ?", (id,)).fetchone()
    return None if row is None else _collection(row)


def add_collection(db: sqlite3.Connection, kind: str, name: str, *, stream: int | None, now: float) -> CollectionRow:
    """A new, empty one."""
    new = CollectionRow(0, kind, name, None, stream, 1, 0, 0, now, now, {})
    cursor = db.execute(
        "INSERT INTO collections (kind, name, model, stream, next_id, revision, epoch, created_at, updated_at, settings, crc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*new.values(), crc_of(*new.values())),
    )
    return replace(new, id=int(cursor.lastrowid or 0))


def update_collection(db: sqlite3.Connection, row: CollectionRow) -> CollectionRow:
    """Write `row` back as its next revision."""
    new = replace(row, revision=row.revision + 1)
    db.execute(
        "UPDATE collections SET kind = ?, name = ?, model = ?, stream = ?, next_id = ?, revision = ?, epoch = ?,"
        " created_at = ?, updated_at = ?, settings = ?, crc = ? WHERE id = ?",
        (*new.values(), crc_of(*new.values()), row.id),
    )
    return new


def delete_collection(db: sqlite3.Connection, row: CollectionRow) -> None:
    """Delete it with everything that no other session shares."""
    documents_of = documents(db, row.id)
    db.execute("DELETE FROM documents WHERE collection = ?", (row.id,))
    db.execute("DELETE FROM collections WHERE id = ?", (row.id,))
    for stream in [row.stream] if row.stream is not None else [document.stream for document in documents_of]:
        prune(db, stream)


# --- documents ------------------------------------------------------------------------------------------------------


def documents(db: sqlite3.Connection, collection: int) -> list[DocumentRow]:
    """A corpus's documents in the order they were added."""
    query = "SELECT id, stream, body, created_at, crc FROM documents WHERE collection = ? ORDER BY id"
    rows = db.execute(query, (collection,)).fetchall()
    found = (_checked(f"the record of document {row[0]}", row) for row in rows)
    return [DocumentRow(id, stream, json.loads(body), created) for id, stream, body, created in found]


def document_streams(db: sqlite3.Connection, collection: int) -> list[tuple[int, int]]:
    """Id and stream of a corpus's documents in the order they were added, without their texts."""
    rows = db.execute("SELECT id, stream FROM documents WHERE collection = ? ORDER BY id", (collection,)).fetchall()
    return [(int(id), int(stream)) for id, stream in rows]


def document(db: sqlite3.Connection, collection: int, id: int) -> DocumentRow:
    """One document of a corpus."""
    query = "SELECT id, stream, body, created_at, crc FROM documents WHERE collection = ? AND id = ?"
    row = db.execute(query, (collection, id)).fetchone()
    if row is None:
        raise StoreDamagedError(f"document {id} is missing from the store. Restore a backup.")
    id, stream, body, created = _checked(f"the record of document {id}", row)
    return DocumentRow(id, stream, json.loads(body), created)


def add_document(db: sqlite3.Connection, collection: int, document: DocumentRow) -> None:
    """Add one under its id."""
    values = (document.id, document.stream, _json(document.body), document.created_at)
    db.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?)", (collection, *values, crc_of(*values)))


def delete_document(db: sqlite3.Connection, collection: int, document: DocumentRow) -> None:
    """Delete one with its stream."""
    db.execute("DELETE FROM documents WHERE collection = ? AND id = ?", (collection, document.id))
    prune(db, document.stream)


# --- streams --------------------------------------------------------------------------------------------------------

_STREAM = "id, parent, parent_messages, parent_tokens, parent_segments, messages, tokens, crc"


def stream(db: sqlite3.Connection, id: int) -> StreamRow:
    """The stream of that id."""
    row = db.execute(f"SELECT {_STREAM} FROM streams WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise StoreDamagedError(f"the record of stream {id} is missing. Restore a backup or an export.")
    return StreamRow(id, *_checked(f"the record of stream {id}", row[1:]))


def add_stream(db: sqlite3.Connection, parent: Lineage = (), *, messages: int = 0, tokens: int = 0, segments: int = 0) -> int:
    """A new stream that continues `parent` after so many messages, tokens and closed segments.

    It hangs from the ancestor that owns the last of what is continued.
    """
    owner = next((part.stream for part in reversed(parent) if messages > part.messages[0]), None)
    values = (owner, messages, tokens, segments, messages, tokens)
    cursor = db.execute(
        "INSERT INTO streams (parent, parent_messages, parent_tokens, parent_segments, messages, tokens, crc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*values, crc_of(*values)),
    )
    return int(cursor.lastrowid or 0)


def _update_stream(db: sqlite3.Connection, row: StreamRow) -> None:
    db.execute(
        "UPDATE streams SET parent = ?, parent_messages = ?, parent_tokens = ?, parent_segments = ?, messages = ?, tokens = ?,"
        " crc = ? WHERE id = ?",
        (*row[1:], crc_of(*row[1:]), row.id),
    )


def lineage(db: sqlite3.Connection, tip: int) -> Lineage:
    """The stretches of a stream and its ancestors that make up its whole history, from the root."""
    parts: list[Part] = []
    messages, tokens, segments = None, None, None
    id: int | None = tip
    while id is not None:
        row = stream(db, id)
        own = (row.parent_messages, row.parent_tokens, row.parent_segments)
        ends = (messages if messages is not None else row.messages, tokens if tokens is not None else row.tokens)
        if any(stop < start for start, stop in zip(own, ends, strict=False)) or ends[0] > row.messages or ends[1] > row.tokens:
            raise StoreDamagedError(f"the record of stream {id} is damaged: it ends before it begins. Restore a backup.")
        parts.insert(0, Part(id, (own[0], ends[0]), (own[1], ends[1]), (own[2], segments)))
        messages, tokens, segments = own
        id = row.parent
    if (messages, tokens, segments) != (0, 0, 0):
        raise StoreDamagedError(f"stream {tip} continues one that is gone. Restore a backup or an export.")
    return tuple(parts)


def size(parts: Lineage) -> tuple[int, int]:
    """How many messages and tokens a lineage has."""
    return parts[-1].messages[1], parts[-1].tokens[1]


def until(parts: Lineage, messages: int, tokens: int, segments: int) -> Lineage:
    """The beginning of a lineage: so many messages, tokens and closed segments of it."""
    kept: list[Part] = []
    for part in parts:
        if kept and (part.messages[0] > messages or part.tokens[0] > tokens or part.segments[0] > segments):
            break
        closed = segments if part.segments[1] is None else min(segments, part.segments[1])
        kept.append(
            part._replace(
                messages=(part.messages[0], min(messages, part.messages[1])),
                tokens=(part.tokens[0], min(tokens, part.tokens[1])),
                segments=(part.segments[0], closed),
            )
        )
    return tuple(kept)


def prune(db: sqlite3.Connection, id: int | None) -> None:
    """Delete the rows of a stream, and of its ancestors, that no session, document or other stream shows any more."""
    while id is not None:
        row = stream(db, id)
        query = (
            "SELECT EXISTS (SELECT 1 FROM collections WHERE stream = ?) OR EXISTS (SELECT 1 FROM documents WHERE stream = ?)"
        )
        if db.execute(query, (id, id)).fetchone()[0]:
            return
        children = [stream(db, child) for (child,) in db.execute("SELECT id FROM streams WHERE parent = ?", (id,)).fetchall()]
        messages = max((child.parent_messages for child in children), default=0)
        tokens = max((child.parent_tokens for child in children), default=0)
        segments = max((child.parent_segments for child in children), default=0)
        db.execute("DELETE FROM messages WHERE stream = ? AND seq >= ?", (id, messages))
        db.execute("DELETE FROM tokens WHERE stream = ? AND start >= ?", (id, tokens))
        db.execute("DELETE FROM segments WHERE stream = ? AND seq >= ?", (id, segments))
        if not children:
            db.execute("DELETE FROM streams WHERE id = ?", (id,))
            id = row.parent
            continue
        _update_stream(db, row._replace(messages=messages, tokens=tokens))
        return


def compact(db: sqlite3.Connection, row: CollectionRow) -> CollectionRow:
    """Join a session's stream with ancestors that only it continues, so that rewriting does not grow a chain.

    Only for a session that is being rewritten: for any other, what it read a moment ago must stay where it was.
    """
    while row.stream is not None and (parent := stream(db, row.stream).parent) is not None:
        shown = "SELECT EXISTS (SELECT 1 FROM collections WHERE stream = ?), (SELECT count(*) FROM streams WHERE parent = ?)"
        if db.execute(shown, (parent, parent)).fetchone() != (0, 1):
            break
        _join(db, stream(db, parent), stream(db, row.stream))
        row = update_collection(db, replace(row, stream=parent))
    return row


def _join(db: sqlite3.Connection, parent: StreamRow, child: StreamRow) -> None:
    """Give the rows of an only child to its parent."""
    for table in ("messages", "tokens", "segments"):
        column = "start" if table == "tokens" else "seq"
        rows = db.execute(f"SELECT * FROM {table} WHERE stream = ? ORDER BY {column}", (child.id,)).fetchall()
        db.execute(f"DELETE FROM {table} WHERE stream = ?", (child.id,))
        marks = ", ".join("?" * len(rows[0])) if rows else ""
        for row in rows:
            db.execute(f"INSERT INTO {table} VALUES ({marks})", (parent.id, *row[1:]))
    _update_stream(db, parent._replace(messages=child.messages, tokens=child.tokens))
    for (grandchild,) in db.execute("SELECT id FROM streams WHERE parent = ?", (child.id,)).fetchall():
        _update_stream(db, stream(db, grandchild)._replace(parent=parent.id))
    db.execute("UPDATE collections SET stream = NULL WHERE stream = ?", (child.id,))
    db.execute("DELETE FROM streams WHERE id = ?", (child.id,))


# --- messages and tokens --------------------------------------------------------------------------------------------

_MESSAGE = "seq, id, batch, pinned, body, created_at, token_start, token_stop, content_start, content_stop, crc"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()


def _message(row: Sequence[Any]) -> MessageRow:
    seq, id, batch, pinned, body, created, *spans = _checked(f"message {row[1]}", row)
    return MessageRow(seq, id, batch, bool(pinned), json.loads(body), created, (spans[0], spans[1]), (spans[2], spans[3]))


def append_messages(db: sqlite3.Connection, tip: int, messages: Sequence[MessageRow], ids: NDArray[np.uint32]) -> None:
    """Continue a stream: `messages` follow its last, and `ids` [t] are the tokens of all of them.

    Token rows end where messages end, so that a cut before any message splits no row.
    """
    row = stream(db, tip)
    for message in messages:
        names = (message.seq, message.id, message.batch, int(message.pinned))
        values = (*names, _json(message.body), message.created_at, *message.tokens, *message.content)
        db.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (tip, *values, crc_of(*values)))
        start, stop = message.tokens
        _append_tokens(db, tip, start, ids[start - row.tokens : stop - row.tokens])
    if not messages:
        _append_tokens(db, tip, row.tokens, ids)  # of a document
    _update_stream(db, row._replace(messages=row.messages + len(messages), tokens=row.tokens + len(ids)))


def _append_tokens(db: sqlite3.Connection, tip: int, start: int, ids: NDArray[np.uint32]) -> None:
    for at in range(0, len(ids), TOKENS_PER_ROW):
        data = ids[at : at + TOKENS_PER_ROW].astype("<u4").tobytes()
        db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", (tip, start + at, data, crc_of(start + at, data)))


def messages(db: sqlite3.Connection, parts: Lineage, start: int = 0, stop: int | None = None) -> list[MessageRow]:
    """Messages [start, stop) of a lineage, in order."""
    wanted = range(size(parts)[0])[slice(start, stop)]
    found: list[MessageRow] = []
    for part in parts:
        low, high = max(part.messages[0], wanted.start), min(part.messages[1], wanted.stop)
        if low < high:
            query = f"SELECT {_MESSAGE} FROM messages WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
            found += [_message(row) for row in db.execute(query, (part.stream, low, high)).fetchall()]
    if [message.seq for message in found] != list(wanted):
        raise StoreDamagedError("messages are missing from the store. Restore a backup or an export.")
    return found


def messages_in(db: sqlite3.Connection, parts: Lineage, start: int, stop: int) -> list[MessageRow]:
    """The messages that tokens [start, stop) of a lineage belong to."""
    found: list[MessageRow] = []
    for part in parts:
        low, high = max(part.tokens[0], start), min(part.tokens[1], stop)
        if low >= high:
            continue
        query = "SELECT max(token_start) FROM messages WHERE stream = ? AND token_start <= ? AND seq < ?"
        (first,) = db.execute(query, (part.stream, low, part.messages[1])).fetchone()
        query = (
            f"SELECT {_MESSAGE} FROM messages WHERE stream = ? AND token_start >= ? AND token_start < ? AND token_stop > ?"
            " AND seq < ? ORDER BY seq"
        )
        rows = db.execute(query, (part.stream, low if first is None else first, high, low, part.messages[1])).fetchall()
        found += [_message(row) for row in rows]
    if sum(min(one.tokens[1], stop) - max(one.tokens[0], start) for one in found) != max(0, stop - start):
        raise StoreDamagedError("messages are missing from the store. Restore a backup or an export.")
    return found


def pinned(db: sqlite3.Connection, parts: Lineage) -> Iterator[MessageRow]:
    """The pinned messages of a lineage, the latest first."""
    for part in reversed(parts):
        query = (
            f"SELECT {_MESSAGE} FROM messages INDEXED BY messages_pinned"
            " WHERE stream = ? AND seq >= ? AND seq < ? AND pinned = 1 ORDER BY seq DESC"
        )
        for row in db.execute(query, (part.stream, *part.messages)):
            yield _message(row)


def positions(db: sqlite3.Connection, parts: Lineage, ids: Iterable[int]) -> dict[int, int]:
    """The place in the conversation of each message id that is in it."""
    found: dict[int, int] = {}
    for id in ids:
        for part in parts:
            query = "SELECT seq FROM messages WHERE stream = ? AND id = ? AND seq < ?"
            row = db.execute(query, (part.stream, id, part.messages[1])).fetchone()
            if row is not None:
                found[id] = int(row[0])
    return found


def tokens(db: sqlite3.Connection, parts: Lineage, start: int, stop: int) -> NDArray[np.int64]:
    """Token ids [start, stop) of a lineage; fewer where it ends before."""
    stop = min(stop, parts[-1].tokens[1])
    pieces: list[NDArray[np.int64]] = []
    at = start
    for part in parts:
        low, high = max(part.tokens[0], start), min(part.tokens[1], stop)
        query = "SELECT start, ids, crc FROM tokens WHERE stream = ? AND start > ? AND start < ? ORDER BY start"
        if low >= high:
            continue
        for row in db.execute(query, (part.stream, low - TOKENS_PER_ROW, high)).fetchall():
            first, data = _checked(f"tokens {row[0]} of stream {part.stream}", row)
            ids = np.frombuffer(data, "<u4").astype(np.int64)
            piece = ids[max(0, low - first) : max(0, high - first)]
            if len(piece):
                if max(first, low) != at:
                    raise StoreDamagedError("tokens are missing from the store. Restore a backup or an export.")
                pieces.append(piece)
                at += len(piece)
    if at != max(start, stop):
        raise StoreDamagedError("tokens are missing from the store. Restore a backup or an export.")
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


# --- segments -------------------------------------------------------------------------------------------------------

_SEGMENT = "seq, token_start, token_stop, memory, keys, digest, crc"


def chain(before: bytes, span: tuple[int, int], memory: bytes, keys: bytes | None) -> bytes:
    """The digest of a segment row: of what it holds and of every row before it."""
    digest = hashlib.blake2b(before, digest_size=16)
    for part in (repr(span).encode(), memory, keys or b""):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def segment_count(db: sqlite3.Connection, parts: Lineage) -> int:
    """How many segments of a lineage are closed, which is up to where it has been read."""
    for part in reversed(parts):
        query = "SELECT max(seq) FROM segments WHERE stream = ? AND seq >= ? AND seq < ?"
        (last,) = db.execute(query, (part.stream, part.segments[0], _stop(part))).fetchone()
        if last is not None:
            return int(last) + 1
    return 0


def _stop(part: Part) -> int:
    return 1 << 62 if part.segments[1] is None else part.segments[1]


def append_segments(db: sqlite3.Connection, parts: Lineage, rows: Sequence[SegmentRow]) -> None:
    """Store closed segments, each with the stretch of the lineage that its last token stands in."""
    for row in rows:
        owner = next(part for part in reversed(parts) if row.seq >= part.segments[0])
        values = (row.seq, *row.tokens, row.memory, row.keys, row.digest)
        db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (owner.stream, *values, crc_of(*values)))


def segments(db: sqlite3.Connection, parts: Lineage, start: int, stop: int) -> Iterator[SegmentRow]:
    """Closed segments [start, stop) of a lineage, in order; fetch them all before the transaction ends."""
    wanted = start
    for part in parts:
        high = min(stop, _stop(part))
        query = f"SELECT {_SEGMENT} FROM segments WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
        for row in db.execute(query, (part.stream, max(start, part.segments[0]), high)) if part.segments[0] < high else ():
            seq, first, last, memory, keys, digest = _checked(f"segment {row[0]} of stream {part.stream}", row)
            if seq != wanted:
                raise StoreDamagedError("segments are missing from the store. Rebuild the session or corpus.")
            wanted += 1
            yield SegmentRow(seq, (first, last), memory, keys, digest)
    if wanted != max(start, stop):
        raise StoreDamagedError("segments are missing from the store. Rebuild the session or corpus.")


def digest_at(db: sqlite3.Connection, parts: Lineage, count: int) -> bytes:
    """The digest of the first `count` segments."""
    return b"" if count == 0 else next(segments(db, parts, count - 1, count)).digest


class Shelf(NamedTuple):
    """The closed segments of a collection as one sequence: a session's lineage, or a corpus's documents one by one."""

    volumes: tuple[tuple[Lineage, int], ...]  # each with how many of its segments are closed
    version: tuple[int, int, int] | None = None  # the collection's id, epoch and revision

    @property
    def total(self) -> int:
        """How many segments there are."""
        return sum(count for _, count in self.volumes)

    def locate(self, position: int) -> tuple[int, int]:
        """The volume that a position falls into, and the segment's number there."""
        for volume, (_, count) in enumerate(self.volumes):
            if position < count:
                return volume, position
            position -= count
        raise IndexError(position)

    def rows(self, db: sqlite3.Connection, start: int, stop: int) -> Iterator[SegmentRow]:
        """Segments [start, stop); fetch them all before the transaction ends."""
        first = 0
        for parts, count in self.volumes:
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                yield from segments(db, parts, low, high)
            first += count

    def check(self, db: sqlite3.Connection, count: int) -> str:
        """A digest of the first `count` segments: equal digests, equal memories."""
        digest = hashlib.blake2b(digest_size=16)
        for parts, closed in self.volumes:
            taken = min(count, closed)
            if taken <= 0:
                break
            digest.update(digest_at(db, parts, taken))
            count -= taken
        return digest.hexdigest()
