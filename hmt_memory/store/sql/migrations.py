"""The schema of every SQL database as numbered steps. A released step is never edited; a change is a new step.

Written for SQLite; other databases put their own types for its types.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import StoreError
from ..rows import checked, crc_of, name_key
from .transaction import SqlTransaction

# A collection is a session (one stream) or a corpus (a stream per document). A stream continues another one at a cut (a
# fork, or what follows a forgotten message): rows before the cut are the parent's. Positions count from the root. Every
# row carries a crc32 of its other columns.
_FIRST = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,  -- of everything memory depends on
    parts TEXT NOT NULL,          -- the same in JSON
    crc INTEGER NOT NULL
);
CREATE TABLE streams (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER REFERENCES streams,
    parent_messages INTEGER NOT NULL,  -- the cut: how many of the parent's messages, tokens and closed segments are ours
    parent_tokens INTEGER NOT NULL,
    parent_segments INTEGER NOT NULL,
    messages INTEGER NOT NULL,         -- where the stream ends
    tokens INTEGER NOT NULL,
    crc INTEGER NOT NULL
);
CREATE INDEX streams_by_parent ON streams (parent);
CREATE TABLE collections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('session', 'corpus')),
    name TEXT NOT NULL,
    model INTEGER REFERENCES models,       -- NULL before anything was added
    stream INTEGER REFERENCES streams,     -- a session's; NULL for a corpus
    next_id INTEGER NOT NULL,              -- of messages or documents; an id is never given twice
    revision INTEGER NOT NULL,             -- counts writes
    epoch INTEGER NOT NULL,                -- counts rewrites: what was before is no longer a prefix
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    settings TEXT NOT NULL,
    crc INTEGER NOT NULL,
    UNIQUE (kind, name)
);
CREATE TABLE documents (
    collection INTEGER NOT NULL REFERENCES collections,
    id INTEGER NOT NULL,
    stream INTEGER NOT NULL REFERENCES streams,
    body BLOB NOT NULL,                    -- JSON: name, text, metadata
    created_at REAL NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (collection, id)
) WITHOUT ROWID;
CREATE TABLE messages (
    stream INTEGER NOT NULL REFERENCES streams,
    seq INTEGER NOT NULL,                  -- place in the conversation, from 0
    id INTEGER NOT NULL,                   -- the name it has for ever
    batch INTEGER NOT NULL,                -- messages added by one call share it
    pinned INTEGER NOT NULL,               -- 1: a system message, pinned instead of read
    body BLOB NOT NULL,                    -- JSON: role, content, ...
    created_at REAL NOT NULL,              -- seconds since 1970, UTC
    token_start INTEGER NOT NULL,
    token_stop INTEGER NOT NULL,
    content_start INTEGER NOT NULL,        -- what the message itself says, without what the template writes around it
    content_stop INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
);
CREATE INDEX messages_by_token ON messages (stream, token_start);
CREATE INDEX messages_by_id ON messages (stream, id);
CREATE INDEX messages_pinned ON messages (stream, seq) WHERE pinned = 1;
CREATE TABLE tokens (
    stream INTEGER NOT NULL REFERENCES streams,
    start INTEGER NOT NULL,
    ids BLOB NOT NULL,                     -- uint32, little-endian
    crc INTEGER NOT NULL,
    PRIMARY KEY (stream, start)
);
CREATE TABLE segments (
    stream INTEGER NOT NULL REFERENCES streams,
    seq INTEGER NOT NULL,                  -- place in the stream, from 0
    token_start INTEGER NOT NULL,
    token_stop INTEGER NOT NULL,
    memory BLOB NOT NULL,                  -- m embeddings of width d, float16, little-endian
    keys BLOB,                             -- index keys of width d likewise; NULL: the embeddings are the keys
    digest BLOB NOT NULL,                  -- of this row and, through the one before it, of all before it
    crc INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
);
"""


# Content moves to a table whose rows never move (`payloads`), so that what is erased is overwritten where it stands and is then
# nowhere else. What refers to content holds its number, its length and its crc32. Names are looked up by their digest.
_SECOND = """
CREATE TABLE payloads (                    -- rows are never deleted
    id INTEGER PRIMARY KEY,
    data BLOB NOT NULL                     -- zeros follow content that is shorter than its room
);
CREATE TABLE vacant (                      -- payloads that hold zeros, to be used again
    room INTEGER NOT NULL,
    payload INTEGER NOT NULL,
    PRIMARY KEY (room, payload)
) WITHOUT ROWID;
CREATE TABLE shares (                      -- payloads that several rows refer to, while a session is rewritten or shared
    payload INTEGER PRIMARY KEY,
    others INTEGER NOT NULL                -- how many rows beside the first
);
CREATE TABLE erasures (                    -- those under way
    id INTEGER PRIMARY KEY AUTOINCREMENT
);
CREATE TABLE sweeps (                      -- what an erasure has still to go through: a "stream", or a "corpus"
    erasure INTEGER NOT NULL,
    kind TEXT NOT NULL,
    id INTEGER NOT NULL,
    PRIMARY KEY (erasure, kind, id)
) WITHOUT ROWID;
CREATE TABLE released (                    -- content that no row refers to any more, to be overwritten
    payload INTEGER PRIMARY KEY,
    erasure INTEGER NOT NULL
);
CREATE INDEX released_by_erasure ON released (erasure);
CREATE TABLE drafts (                      -- streams that are being written to take the place of a session's
    stream INTEGER PRIMARY KEY,
    collection INTEGER NOT NULL
);
CREATE TABLE new_collections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('session', 'corpus')),
    key BLOB NOT NULL,                     -- BLAKE2b of the name
    name INTEGER NOT NULL,
    name_size INTEGER NOT NULL,
    name_check INTEGER NOT NULL,
    model INTEGER REFERENCES models,       -- NULL before anything was added
    stream INTEGER REFERENCES streams,     -- a session's; NULL for a corpus
    next_id INTEGER NOT NULL,              -- of messages or documents; an id is never given twice
    revision INTEGER NOT NULL,             -- counts writes
    epoch INTEGER NOT NULL,                -- counts rewrites: what was before is no longer a prefix
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    settings TEXT NOT NULL,
    crc INTEGER NOT NULL,
    UNIQUE (kind, key)
);
CREATE TABLE new_documents (
    collection INTEGER NOT NULL,
    id INTEGER NOT NULL,
    stream INTEGER NOT NULL REFERENCES streams,
    key BLOB NOT NULL,                     -- BLAKE2b of the name
    body INTEGER NOT NULL,                 -- JSON: name, text, metadata
    body_size INTEGER NOT NULL,
    body_check INTEGER NOT NULL,
    created_at REAL NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (collection, id)
) WITHOUT ROWID;
CREATE TABLE new_messages (
    stream INTEGER NOT NULL REFERENCES streams,
    seq INTEGER NOT NULL,                  -- place in the conversation, from 0
    id INTEGER NOT NULL,                   -- the name it has for ever
    batch INTEGER NOT NULL,                -- messages added by one call share it
    pinned INTEGER NOT NULL,               -- 1: a system message, pinned instead of read
    body INTEGER NOT NULL,                 -- JSON: role, content, ...
    body_size INTEGER NOT NULL,
    body_check INTEGER NOT NULL,
    created_at REAL NOT NULL,              -- seconds since 1970, UTC
    token_start INTEGER NOT NULL,
    token_stop INTEGER NOT NULL,
    content_start INTEGER NOT NULL,        -- what the message itself says, without what the template writes around it
    content_stop INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE TABLE new_tokens (
    stream INTEGER NOT NULL REFERENCES streams,
    start INTEGER NOT NULL,
    ids INTEGER NOT NULL,                  -- uint32, little-endian
    ids_size INTEGER NOT NULL,
    ids_check INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;
CREATE TABLE new_segments (
    stream INTEGER NOT NULL REFERENCES streams,
    seq INTEGER NOT NULL,                  -- place in the stream, from 0
    token_start INTEGER NOT NULL,
    token_stop INTEGER NOT NULL,
    memory INTEGER NOT NULL,               -- m embeddings of width d, float16, little-endian; behind them the index keys
    memory_size INTEGER NOT NULL,
    memory_check INTEGER NOT NULL,
    keys_size INTEGER,                     -- bytes of keys of width d likewise; NULL: the embeddings are the keys
    digest BLOB NOT NULL,                  -- of this row and, through the one before it, of all before it
    crc INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
"""
_SECOND_INDEXES = """
CREATE INDEX collections_by_stream ON collections (stream);
CREATE INDEX documents_by_key ON documents (collection, key);
CREATE INDEX documents_by_stream ON documents (stream);
CREATE INDEX messages_by_token ON messages (stream, token_start);
CREATE INDEX messages_by_id ON messages (stream, id);
CREATE INDEX messages_pinned ON messages (stream, seq) WHERE pinned = 1;
"""
# Memories in 8 bits. What wrote the second schema would misread them.
_THIRD = """
ALTER TABLE segments ADD COLUMN bits INTEGER;  -- of a number in memory and keys; 8: packed by engine/mxint8.py; NULL: 16
"""
_MOVED = ("segments", "tokens", "messages", "documents", "collections")


def _create(db: SqlTransaction) -> None:
    db.script(_FIRST)


def _move_content(db: SqlTransaction) -> None:
    """Move all content to `payloads`. SQLite clears every page of a dropped table, moved copies included."""
    db.script(_SECOND)
    for table, copy in zip(_MOVED, (_segment, _token, _message, _document, _collection), strict=True):
        for row in db.lazily(f"SELECT * FROM {table}"):
            values = copy(db, row)
            values = (*values, crc_of(*values[1:]))
            db.execute(f"INSERT INTO new_{table} VALUES ({', '.join('?' * len(values))})", values)
    db.continue_ids("new_collections", after=db.last_id("collections"))
    for table in _MOVED:
        db.execute(f"DROP TABLE {table}")
        db.execute(f"ALTER TABLE new_{table} RENAME TO {table}")
    db.execute("DELETE FROM facts WHERE name = 'wipe'")
    db.script(_SECOND_INDEXES)


def _add_bits(db: SqlTransaction) -> None:
    db.script(_THIRD)


def _segment(db: SqlTransaction, row: Sequence[Any]) -> tuple[Any, ...]:
    stream, seq, start, stop, memory, keys, digest, _ = row
    checked(f"segment {seq} of stream {stream}", row[1:])
    place = db.put(memory + (keys or b""))
    return (stream, seq, start, stop, *place, None if keys is None else len(keys), digest)


def _token(db: SqlTransaction, row: Sequence[Any]) -> tuple[Any, ...]:
    stream, start, ids, _ = row
    checked(f"tokens {start} of stream {stream}", row[1:])
    return (stream, start, *db.put(ids))


def _message(db: SqlTransaction, row: Sequence[Any]) -> tuple[Any, ...]:
    stream, seq, message, batch, pinned, body, created, *spans, _ = row
    checked(f"message {message}", row[1:])
    return (stream, seq, message, batch, pinned, *db.put(body), created, *spans)


def _document(db: SqlTransaction, row: Sequence[Any]) -> tuple[Any, ...]:
    collection, document, stream, body, created, _ = row
    checked(f"the record of document {document}", row[1:])
    return (collection, document, stream, name_key(json.loads(body)["name"]), *db.put(body), created)


def _collection(db: SqlTransaction, row: Sequence[Any]) -> tuple[Any, ...]:
    number, kind, name, *rest, _ = row
    checked(f"the record of {kind} {name!r}", row[1:])
    return (number, kind, name_key(name), *db.put(name.encode()), *rest)


STEPS: tuple[Callable[[SqlTransaction], None], ...] = (_create, _move_content, _add_bits)


def pending(db: SqlTransaction) -> int:
    """Return how many steps the database still needs.

    Raises:
        StoreError: the database is another program's, or a newer version's.
    """
    version = db.version()
    if version > len(STEPS):
        raise StoreError(
            f"a newer hmt-memory wrote this store (schema {version}, this version knows {len(STEPS)}). Upgrade hmt-memory."
        )
    return len(STEPS) - version


def migrate(db: SqlTransaction) -> None:
    """Bring the schema up to date, inside the caller's transaction."""
    missing = pending(db)
    for step in STEPS[len(STEPS) - missing :]:
        step(db)
    db.set_version(len(STEPS))
