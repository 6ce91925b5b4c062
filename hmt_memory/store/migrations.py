"""The schema, as numbered steps. A step that was released is never edited; a change is a new step."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from ..errors import StoreError

APPLICATION_ID = 0x484D544D  # "HMTM", so that other tools can tell what the file is

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


def _create(db: sqlite3.Connection) -> None:
    for statement in _FIRST.split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create,)


def pending(db: sqlite3.Connection) -> int:
    """How many steps the file still needs.

    Raises:
        StoreError: it is another program's database, or a newer version's.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreError("the database is another program's. Choose another folder.")
    if version > len(STEPS):
        raise StoreError(
            f"a newer hmt-memory wrote this store (schema {version}, this version knows {len(STEPS)}). Upgrade hmt-memory."
        )
    return len(STEPS) - int(version)


def migrate(db: sqlite3.Connection) -> None:
    """Bring the schema up to date, inside the caller's transaction."""
    missing = pending(db)
    for step in STEPS[len(STEPS) - missing :]:
        step(db)
    db.execute(f"PRAGMA user_version = {len(STEPS)}")
