"""The rows: sessions and corpora, their streams, messages, tokens and segments.

Every function takes a connection inside a transaction of `database`. Every row and its content are checked against their crc32
when they are read, and what must be contiguous is checked to be: a damaged row is an error, never a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError
from . import erasing, payloads
from .migrations import name_key
from .payloads import Payload
from .rows import (
    CollectionRow,
    DocumentRow,
    Lineage,
    MessageRow,
    ModelRow,
    Part,
    SegmentRow,
    StreamRow,
    checked,
    crc_of,
)

TOKENS_PER_ROW = 4096


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
    digest, parts = checked(f"the record of model {id}", row)
    return ModelRow(id, digest, json.loads(parts))


# --- collections ----------------------------------------------------------------------------------------------------

_COLLECTION = (
    "c.id, kind, key, name, name_size, name_check, model, stream, next_id, revision, epoch, created_at, updated_at, settings,"
    " crc, data FROM collections c JOIN payloads p ON p.id = name"
)


def _collection(row: Sequence[Any]) -> CollectionRow:
    id, *rest, data = row
    what = f"the record of {row[1]} {id}"
    kind, _, _, size, check, *values, settings = checked(what, rest)
    name = payloads.content(what, data, size, check).decode()
    return CollectionRow(id, kind, name, *[*values, json.loads(settings)])


def _collection_values(row: CollectionRow, name: Payload) -> tuple[Any, ...]:
    counts, times = (row.next_id, row.revision, row.epoch), (row.created_at, row.updated_at)
    settings = json.dumps(row.settings, sort_keys=True)
    values = (row.kind, name_key(row.name), *name, row.model, row.stream, *counts, *times, settings)
    return (*values, crc_of(*values))


def collections(db: sqlite3.Connection, kind: str) -> list[CollectionRow]:
    """Return all of a kind, by name."""
    rows = db.execute(f"SELECT {_COLLECTION} WHERE kind = ?", (kind,)).fetchall()
    return sorted(map(_collection, rows), key=lambda row: row.name)


def find_collection(db: sqlite3.Connection, kind: str, name: str) -> CollectionRow | None:
    """Return the session or corpus of that name."""
    row = db.execute(f"SELECT {_COLLECTION} WHERE kind = ? AND key = ?", (kind, name_key(name))).fetchone()
    return None if row is None else _collection(row)


def collection(db: sqlite3.Connection, id: int) -> CollectionRow | None:
    """Return the session or corpus of that id."""
    row = db.execute(f"SELECT {_COLLECTION} WHERE c.id = ?", (id,)).fetchone()
    return None if row is None else _collection(row)


def add_collection(db: sqlite3.Connection, kind: str, name: str, *, stream: int | None, now: float) -> CollectionRow:
    """Add a new, empty one."""
    new = CollectionRow(0, kind, name, None, stream, 1, 0, 0, now, now, {})
    values = _collection_values(new, payloads.put(db, name.encode()))
    cursor = db.execute(f"INSERT INTO collections VALUES (NULL, {', '.join('?' * len(values))})", values)
    return replace(new, id=int(cursor.lastrowid or 0))


def update_collection(db: sqlite3.Connection, row: CollectionRow) -> CollectionRow:
    """Write `row`, whose name is that it has, back as its next revision."""
    new = replace(row, revision=row.revision + 1)
    _write_collection(db, new, _name(db, row.id))
    return new


def rename_collection(db: sqlite3.Connection, row: CollectionRow, name: str, erasure: int) -> None:
    """Give a session or corpus another name; the old one is erased."""
    payloads.release(db, erasure, [_name(db, row.id).id])
    new = replace(row, name=name, revision=row.revision + 1)
    _write_collection(db, new, payloads.put(db, name.encode()))


def _name(db: sqlite3.Connection, id: int) -> Payload:
    return Payload(*db.execute("SELECT name, name_size, name_check FROM collections WHERE id = ?", (id,)).fetchone())


def _write_collection(db: sqlite3.Connection, row: CollectionRow, name: Payload) -> None:
    db.execute(
        "UPDATE collections SET kind = ?, key = ?, name = ?, name_size = ?, name_check = ?, model = ?, stream = ?, next_id = ?,"
        " revision = ?, epoch = ?, created_at = ?, updated_at = ?, settings = ?, crc = ? WHERE id = ?",
        (*_collection_values(row, name), row.id),
    )


def delete_collection(db: sqlite3.Connection, row: CollectionRow, erasure: int) -> None:
    """Delete a session or corpus; its messages or documents are swept away by the erasure's next steps."""
    payloads.release(db, erasure, [_name(db, row.id).id])
    db.execute("DELETE FROM collections WHERE id = ?", (row.id,))
    kind, id = ("corpus", row.id) if row.stream is None else ("stream", row.stream)
    erasing.sweep_later(db, erasure, kind, id)


# --- documents ------------------------------------------------------------------------------------------------------


_DOCUMENT = (
    "d.id, stream, key, body, body_size, body_check, created_at, crc, data FROM documents d JOIN payloads p ON p.id = body"
    " WHERE collection = ?"
)


def _document(row: Sequence[Any]) -> DocumentRow:
    *rest, data = row
    what = f"the record of document {row[0]}"
    id, stream, _, _, size, check, created = checked(what, rest)
    return DocumentRow(id, stream, json.loads(payloads.content(what, data, size, check)), created)


def documents(db: sqlite3.Connection, collection: int) -> list[DocumentRow]:
    """Return a corpus's documents in the order they were added."""
    return [_document(row) for row in db.execute(f"SELECT {_DOCUMENT} ORDER BY d.id", (collection,)).fetchall()]


class DocumentStream(NamedTuple):
    """A document's stream, without its text."""

    document: int
    stream: int
    tokens: int
    segments: int  # closed
    digest: bytes  # of these


def document_streams(db: sqlite3.Connection, collection: int) -> list[DocumentStream]:
    """Return the streams of a corpus's documents in the order they were added."""
    query = (
        "SELECT d.id, d.stream, s.tokens, coalesce(seq + 1, 0), coalesce(digest, x'') FROM documents d"
        " JOIN streams s ON s.id = d.stream LEFT JOIN segments g ON g.stream = d.stream"
        " AND g.seq = (SELECT max(seq) FROM segments WHERE stream = d.stream) WHERE d.collection = ? ORDER BY d.id"
    )
    return [DocumentStream(*row) for row in db.execute(query, (collection,)).fetchall()]


def documents_named(db: sqlite3.Connection, collection: int, name: str) -> list[DocumentRow]:
    """Return a corpus's documents of that name."""
    return [_document(row) for row in db.execute(f"SELECT {_DOCUMENT} AND key = ?", (collection, name_key(name))).fetchall()]


def find_document(db: sqlite3.Connection, collection: int, id: int) -> DocumentRow | None:
    """Return the document of that id, if the corpus has it."""
    row = db.execute(f"SELECT {_DOCUMENT} AND d.id = ?", (collection, id)).fetchone()
    return None if row is None else _document(row)


def document(db: sqlite3.Connection, collection: int, id: int) -> DocumentRow:
    """Return one document of a corpus, which has it."""
    row = find_document(db, collection, id)
    if row is None:
        raise StoreDamagedError(f"document {id} is missing from the store. Restore a backup.")
    return row


def add_document(db: sqlite3.Connection, collection: int, document: DocumentRow) -> None:
    """Add one under its id."""
    body = payloads.put(db, _json(document.body))
    values = (document.id, document.stream, name_key(document.body["name"]), *body, document.created_at)
    db.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (collection, *values, crc_of(*values)))


def delete_document(db: sqlite3.Connection, collection: int, document: DocumentRow, erasure: int) -> None:
    """Delete one; its stream is swept away by the erasure's next steps."""
    (body,) = db.execute("SELECT body FROM documents WHERE collection = ? AND id = ?", (collection, document.id)).fetchone()
    payloads.release(db, erasure, [body])
    db.execute("DELETE FROM documents WHERE collection = ? AND id = ?", (collection, document.id))
    erasing.sweep_later(db, erasure, "stream", document.stream)


# --- streams --------------------------------------------------------------------------------------------------------

_STREAM = "id, parent, parent_messages, parent_tokens, parent_segments, messages, tokens, crc"


def stream(db: sqlite3.Connection, id: int) -> StreamRow:
    """The stream of that id."""
    row = db.execute(f"SELECT {_STREAM} FROM streams WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise StoreDamagedError(f"the record of stream {id} is missing. Restore a backup or an export.")
    return StreamRow(id, *checked(f"the record of stream {id}", row[1:]))


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


def update_stream(db: sqlite3.Connection, row: StreamRow) -> None:
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


def has_stream(db: sqlite3.Connection, id: int) -> bool:
    """Return whether there is a stream of that id."""
    return db.execute("SELECT 1 FROM streams WHERE id = ?", (id,)).fetchone() is not None


def is_shown(db: sqlite3.Connection, id: int) -> bool:
    """Return whether a stream is the whole of a session or document, or is being written to become a session's."""
    tables = (("collections", "stream"), ("documents", "stream"), ("drafts", "stream"))
    query = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {column} = :id)" for table, column in tables)
    return bool(db.execute(f"SELECT {query}", {"id": id}).fetchone()[0])


def children(db: sqlite3.Connection, id: int) -> list[StreamRow]:
    """Return the streams that continue a stream."""
    rows = db.execute(f"SELECT {_STREAM} FROM streams WHERE parent = ?", (id,)).fetchall()
    return [StreamRow(row[0], *checked(f"the record of stream {row[0]}", row[1:])) for row in rows]


def delete_stream(db: sqlite3.Connection, id: int) -> None:
    """Delete the record of a stream that has no rows and that nothing continues."""
    db.execute("DELETE FROM streams WHERE id = ?", (id,))


def add_draft(db: sqlite3.Connection, stream: int, collection: int) -> None:
    """Note that a stream is being written to take the place of a session's."""
    db.execute("INSERT INTO drafts VALUES (?, ?)", (stream, collection))


def drafts(db: sqlite3.Connection, collection: int) -> list[int]:
    """List the streams that are, or were, being written for a session."""
    return [int(id) for (id,) in db.execute("SELECT stream FROM drafts WHERE collection = ?", (collection,)).fetchall()]


def drafted(db: sqlite3.Connection) -> list[int]:
    """List the sessions that streams are, or were, being written for."""
    return [int(id) for (id,) in db.execute("SELECT DISTINCT collection FROM drafts").fetchall()]


def remove_draft(db: sqlite3.Connection, stream: int) -> None:
    """Note that a stream is no draft any more."""
    db.execute("DELETE FROM drafts WHERE stream = ?", (stream,))


_SHOWING = """
WITH RECURSIVE below (id, shown) AS (
    SELECT id, messages FROM streams WHERE id = :stream
    UNION ALL
    SELECT s.id, min(shown, s.parent_messages) FROM streams s JOIN below ON s.parent = below.id WHERE s.parent_messages > :seq
)
SELECT c.id FROM collections c JOIN below ON c.stream = below.id WHERE shown > :seq AND c.id != :besides
"""


def showing(db: sqlite3.Connection, stream: int, seq: int, *, besides: int) -> list[str]:
    """Return the names of other sessions that show a stream's own message at `seq`."""
    found = db.execute(_SHOWING, {"stream": stream, "seq": seq, "besides": besides}).fetchall()
    rows = (collection(db, id) for (id,) in found)
    return [row.name for row in rows if row is not None]


_FEW = 1000  # rows that one transaction may move


def compact(db: sqlite3.Connection, row: CollectionRow) -> CollectionRow:
    """Join short streams of a session with ancestors that only they continue, so that rewriting does not grow a chain.

    Only for a session that is being rewritten: for any other, what it read a moment ago must stay where it was.
    """
    id = row.stream
    while id is not None and (parent := stream(db, id).parent) is not None:
        child = stream(db, id)
        alone = not is_shown(db, parent) and len(children(db, parent)) == 1 and not _is_swept(db, (parent, id))
        if alone and child.messages - child.parent_messages <= _FEW:
            _join(db, stream(db, parent), child)
            if row.stream == id:
                row = update_collection(db, replace(row, stream=parent))
            delete_stream(db, id)
        id = parent
    return row


def _is_swept(db: sqlite3.Connection, ids: tuple[int, int]) -> bool:
    return db.execute("SELECT 1 FROM sweeps WHERE kind = 'stream' AND id IN (?, ?)", ids).fetchone() is not None


def _join(db: sqlite3.Connection, parent: StreamRow, child: StreamRow) -> None:
    """Give the rows of an only child to its parent."""
    for table in ("messages", "tokens", "segments"):
        db.execute(f"UPDATE {table} SET stream = ? WHERE stream = ?", (parent.id, child.id))
    update_stream(db, parent._replace(messages=child.messages, tokens=child.tokens))
    for grandchild in children(db, child.id):
        update_stream(db, grandchild._replace(parent=parent.id))


# --- messages and tokens --------------------------------------------------------------------------------------------

_SPANS = "token_start, token_stop, content_start, content_stop"
_MESSAGE_ROW = f"seq, m.id, batch, pinned, body, body_size, body_check, created_at, {_SPANS}, crc"
_MESSAGE = f"{_MESSAGE_ROW}, data FROM messages m JOIN payloads p ON p.id = body"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()


def _message(row: Sequence[Any]) -> MessageRow:
    *rest, data = row
    what = f"message {row[1]}"
    seq, id, batch, pinned, _, size, check, created, *spans = checked(what, rest)
    body = json.loads(payloads.content(what, data, size, check))
    return MessageRow(seq, id, batch, bool(pinned), body, created, (spans[0], spans[1]), (spans[2], spans[3]))


def _add_message(db: sqlite3.Connection, tip: int, message: MessageRow, body: Payload) -> None:
    names = (message.seq, message.id, message.batch, int(message.pinned))
    values = (*names, *body, message.created_at, *message.tokens, *message.content)
    db.execute(f"INSERT INTO messages VALUES ({', '.join('?' * 14)})", (tip, *values, crc_of(*values)))


def append_messages(db: sqlite3.Connection, tip: int, messages: Sequence[MessageRow], ids: NDArray[np.uint32]) -> None:
    """Continue a stream: `messages` follow its last, and `ids` [t] are the tokens of all of them.

    Token rows end where messages end, so that a cut before any message splits no row.
    """
    row = stream(db, tip)
    for message in messages:
        _add_message(db, tip, message, payloads.put(db, _json(message.body)))
        start, stop = message.tokens
        _append_tokens(db, tip, start, ids[start - row.tokens : stop - row.tokens])
    if not messages:
        _append_tokens(db, tip, row.tokens, ids)  # of a document
    update_stream(db, row._replace(messages=row.messages + len(messages), tokens=row.tokens + len(ids)))


def _append_tokens(db: sqlite3.Connection, tip: int, start: int, ids: NDArray[np.uint32]) -> None:
    for at in range(0, len(ids), TOKENS_PER_ROW):
        data = ids[at : at + TOKENS_PER_ROW].astype("<u4").tobytes()
        _add_tokens(db, tip, start + at, payloads.put(db, data))


def _add_tokens(db: sqlite3.Connection, tip: int, start: int, ids: Payload) -> None:
    values = (start, *ids)
    db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)", (tip, *values, crc_of(*values)))


class Kept(NamedTuple):
    """A message that moves to another stream without its content, which both refer to."""

    row: MessageRow  # without its body
    body: Payload
    tokens: tuple[tuple[int, Payload], ...]  # where each row of its tokens starts
    new: frozenset[int] = frozenset()  # payloads that no other row refers to


def kept(db: sqlite3.Connection, parts: Lineage, start: int, stop: int) -> list[Kept]:
    """Return messages [start, stop) of a lineage without their content."""
    found: list[Kept] = []
    for part in parts:
        low, high = max(part.messages[0], start), min(part.messages[1], stop)
        query = f"SELECT {_MESSAGE_ROW} FROM messages m WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
        for values in db.execute(query, (part.stream, low, high)).fetchall() if low < high else ():
            seq, id, batch, pinned, body, size, check, created, *spans = checked(f"message {values[1]}", values)
            row = MessageRow(seq, id, batch, bool(pinned), {}, created, (spans[0], spans[1]), (spans[2], spans[3]))
            found.append(Kept(row, Payload(body, size, check), _token_rows(db, part.stream, *row.tokens)))
    if [one.row.seq for one in found] != list(range(start, stop)):
        raise StoreDamagedError("messages are missing from the store. Restore a backup or an export.")
    return found


def _token_rows(db: sqlite3.Connection, stream: int, start: int, stop: int) -> tuple[tuple[int, Payload], ...]:
    query = (
        "SELECT start, ids, ids_size, ids_check, crc FROM tokens WHERE stream = ? AND start >= ? AND start < ? ORDER BY start"
    )
    rows = (checked(f"tokens {row[0]}", row) for row in db.execute(query, (stream, start, stop)).fetchall())
    return tuple((row[0], Payload(*row[1:])) for row in rows)


def shortened(db: sqlite3.Connection, message: Kept, ids: NDArray[np.int64], skip: int) -> Kept:
    """Return a message without the first `skip` of its tokens `ids`, whose others are written anew."""
    start, stop = message.row.tokens[0] + skip, message.row.tokens[1]
    rest = ids[skip:].astype("<u4")
    places = range(0, len(rest), TOKENS_PER_ROW)
    tokens = tuple((start + at, payloads.put(db, rest[at : at + TOKENS_PER_ROW].tobytes())) for at in places)
    content = (max(start, message.row.content[0]), max(start, message.row.content[1]))
    new = frozenset(ids.id for _, ids in tokens)
    return Kept(message.row._replace(tokens=(start, stop), content=content), message.body, tokens, new)


def append_kept(db: sqlite3.Connection, tip: int, messages: Sequence[Kept]) -> None:
    """Continue a stream with messages of another, which refer to the same content."""
    end = stream(db, tip)
    seq, at = end.messages, end.tokens
    for one in messages:
        shift = at - one.row.tokens[0]
        tokens, content = ((span[0] + shift, span[1] + shift) for span in (one.row.tokens, one.row.content))
        _add_message(db, tip, one.row._replace(seq=seq, tokens=tokens, content=content), one.body)
        for start, ids in one.tokens:
            _add_tokens(db, tip, start + shift, ids)
        payloads.share(db, [one.body.id, *(ids.id for _, ids in one.tokens if ids.id not in one.new)])
        seq, at = seq + 1, tokens[1]
    update_stream(db, end._replace(messages=seq, tokens=at))


def messages(db: sqlite3.Connection, parts: Lineage, start: int = 0, stop: int | None = None) -> list[MessageRow]:
    """Messages [start, stop) of a lineage, in order."""
    wanted = range(size(parts)[0])[slice(start, stop)]
    found: list[MessageRow] = []
    for part in parts:
        low, high = max(part.messages[0], wanted.start), min(part.messages[1], wanted.stop)
        if low < high:
            query = f"SELECT {_MESSAGE} WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
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
            f"SELECT {_MESSAGE} WHERE stream = ? AND token_start >= ? AND token_start < ? AND token_stop > ? AND seq < ?"
            " ORDER BY seq"
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
            f"SELECT {_MESSAGE_ROW}, data FROM messages m INDEXED BY messages_pinned JOIN payloads p ON p.id = body"
            " WHERE stream = ? AND seq >= ? AND seq < ? AND pinned = 1 ORDER BY seq DESC"
        )
        for row in db.execute(query, (part.stream, *part.messages)):
            yield _message(row)


def earliest(db: sqlite3.Connection, parts: Lineage, start: int) -> float:
    """Return when the oldest turn from message `start` on was said; infinity where there is none."""
    found = float("inf")
    for part in parts:
        query = "SELECT min(created_at) FROM messages WHERE stream = ? AND seq >= ? AND seq < ? AND pinned = 0"
        (time,) = db.execute(query, (part.stream, max(start, part.messages[0]), part.messages[1])).fetchone()
        found = min(found, float("inf") if time is None else time)
    return found


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
    """Return token ids [start, stop) of a lineage; fewer where it ends before."""
    stop = min(stop, parts[-1].tokens[1])
    pieces: list[NDArray[np.int64]] = []
    at = start
    for part in parts:
        low, high = max(part.tokens[0], start), min(part.tokens[1], stop)
        for first, ids in _stored_tokens(db, part.stream, low, high):
            piece = ids[max(0, low - first) : max(0, high - first)]
            if len(piece):
                if max(first, low) != at:
                    raise StoreDamagedError("tokens are missing from the store. Restore a backup or an export.")
                pieces.append(piece)
                at += len(piece)
    if at != max(start, stop):
        raise StoreDamagedError("tokens are missing from the store. Restore a backup or an export.")
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _stored_tokens(db: sqlite3.Connection, stream: int, low: int, high: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The rows of a stream's own tokens that reach into [low, high): where each starts, and its ids."""
    if low >= high:
        return
    query = (
        "SELECT start, ids, ids_size, ids_check, crc, data FROM tokens t JOIN payloads p ON p.id = ids WHERE stream = ? AND"
        " start >= coalesce((SELECT max(start) FROM tokens WHERE stream = ? AND start <= ?), 0) AND start < ? ORDER BY start"
    )
    for *row, data in db.execute(query, (stream, stream, low, high)).fetchall():
        what = f"tokens {row[0]} of stream {stream}"
        first, _, size, check = checked(what, row)
        yield first, np.frombuffer(payloads.content(what, data, size, check), "<u4").astype(np.int64)


# --- segments -------------------------------------------------------------------------------------------------------

_SEGMENT = (
    "seq, token_start, token_stop, memory, memory_size, memory_check, keys_size, digest, crc, data"
    " FROM segments s JOIN payloads p ON p.id = memory"
)


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
        memory = payloads.put(db, row.memory + (row.keys or b""))
        values = (row.seq, *row.tokens, *memory, None if row.keys is None else len(row.keys), row.digest)
        db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (owner.stream, *values, crc_of(*values)))


def _segment(row: Sequence[Any], stream: int) -> SegmentRow:
    *rest, data = row
    what = f"segment {row[0]} of stream {stream}"
    seq, start, stop, _, size, check, keys_size, digest = checked(what, rest)
    held = payloads.content(what, data, size, check)
    split = size - (keys_size or 0)
    return SegmentRow(seq, (start, stop), held[:split], None if keys_size is None else held[split:], digest)


def segments(db: sqlite3.Connection, parts: Lineage, start: int, stop: int) -> Iterator[SegmentRow]:
    """Yield closed segments [start, stop) of a lineage, in order; fetch them all before the transaction ends."""
    wanted = start
    for part in parts:
        high = min(stop, _stop(part))
        query = f"SELECT {_SEGMENT} WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq"
        for values in db.execute(query, (part.stream, max(start, part.segments[0]), high)) if part.segments[0] < high else ():
            row = _segment(values, part.stream)
            if row.seq != wanted:
                raise StoreDamagedError("segments are missing from the store. Rebuild the session or corpus.")
            wanted += 1
            yield row
    if wanted != max(start, stop):
        raise StoreDamagedError("segments are missing from the store. Rebuild the session or corpus.")


def digest_at(db: sqlite3.Connection, parts: Lineage, count: int) -> bytes:
    """Return the digest of the first `count` segments."""
    return b"" if count == 0 else next(segments(db, parts, count - 1, count)).digest
