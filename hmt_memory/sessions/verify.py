"""The check of a whole store, or of one session: every row is read, and every digest followed. Runs no model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..engine.fingerprint import digest_of
from ..errors import HMTError, SessionBusyError, StoreDamagedError, StoreInterruptedError
from ..store import lineage
from ..store.index import derived
from ..store.rows import CollectionRow, Lineage, MessageRow, chain
from ..store.shelf import shelf_of
from .archive.agreement import UNVERIFIED

if TYPE_CHECKING:
    from ..store.transaction import Transaction
    from .storage import Storage


class Verification(NamedTuple):
    """The findings of `MemoryStore.verify`."""

    problems: list[str]  # faults of the record, one line each; empty: it is whole
    notes: list[str]  # faults that repair themselves, such as a stale index

    @property
    def ok(self) -> bool:
        """True if the record is whole."""
        return not self.problems


def verify(storage: Storage, name: str | None = None) -> Verification:
    """Read every row of a session (None: of everything, with the database's own check) and follow every digest.

    Raises:
        StoreInterruptedError: the server went away, which is no fault of the record.
        SessionBusyError: others kept all of this process's connections.
    """
    database = storage.database
    problems = [] if name is not None else database.again(database.problems)
    notes: list[str] = []
    for kind in ("session", "corpus") if name is None else ("session",):
        try:
            rows = database.read(partial(_rows, storage, kind, name))
        except StoreDamagedError as error:
            problems.append(str(error))
            continue
        for row in rows:
            try:
                notes += database.read(partial(_verify, storage, row.id))
            except (StoreInterruptedError, SessionBusyError):
                raise
            except HMTError as error:
                problems.append(f"{kind} {row.name!r}: {error}")
    return Verification(problems, notes)


def _rows(storage: Storage, kind: str, name: str | None, db: Transaction) -> list[CollectionRow]:
    return db.collections(kind) if name is None else [storage.find(db, kind, name)]


def _verify(storage: Storage, collection: int, db: Transaction) -> list[str]:
    """Return notes on a session or corpus. Raises the error that says what is wrong."""
    notes: list[str] = []
    row = db.collection(collection)
    if row is None:
        return notes  # deleted meanwhile
    if row.model is not None:
        stored = db.model(row.model)
        if digest_of(stored.parts) != stored.digest:
            raise StoreDamagedError("the record of its model does not fit its digest")
    if row.settings.get(UNVERIFIED):
        notes.append(f"{row.kind} {row.name!r}: its tokens are compared with its messages when a model opens it")
    if row.kind == "corpus":
        db.documents(row.id)
    shelf = shelf_of(db, row)
    for volume in shelf.volumes:
        parts = lineage.of_stream(db, volume.stream)
        _verify_messages(lineage.messages(db, parts), has_messages=row.kind == "session", tokens=lineage.size(parts)[1])
        _verify_segments(db, parts, volume.segments)
    for path in storage.open_indexes.paths(row.id):
        doubt = derived.stale(path, db, shelf)
        if doubt is not None:
            notes.append(f"{row.kind} {row.name!r}: its index {path.name} will be made again: {doubt}")
    return notes


def _verify_messages(messages: list[MessageRow], *, has_messages: bool, tokens: int) -> None:
    end, ids = 0, set()
    for message in messages:
        if message.tokens[0] != end or not end <= message.content[0] <= message.content[1] <= message.tokens[1]:
            raise StoreDamagedError(f"message {message.id} is not where the one before it ends")
        if message.id in ids:
            raise StoreDamagedError(f"message {message.id} is there twice")
        ids.add(message.id)
        end = message.tokens[1]
    if has_messages and end != tokens:
        raise StoreDamagedError("its messages and its tokens do not end together")


def _verify_segments(db: Transaction, parts: Lineage, count: int) -> None:
    tokens, digest, end = lineage.size(parts)[1], b"", 0
    for start in range(0, tokens, lineage.TOKENS_PER_ROW):
        lineage.tokens(db, parts, start, start + lineage.TOKENS_PER_ROW)
    for row in lineage.segments(db, parts, 0, count):
        digest = chain(digest, row.tokens, row.memory, row.keys)
        if digest != row.digest or row.tokens[0] != end:
            raise StoreDamagedError(f"segment {row.seq} does not follow from the one before it. Rebuild the session or corpus")
        end = row.tokens[1]
    if end > tokens:
        raise StoreDamagedError("its segments go beyond its tokens")
