"""`MemoryStore`: one folder of sessions and corpora. Opens them, lists, deletes, verifies.

What it keeps in memory can be made again from the folder at any time: search indexes, and what is known of corpora.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import words
from .corpus import Corpus
from .errors import (
    HMTError,
    InputError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    StoreDamagedError,
    StoreError,
)
from .fingerprint import Fingerprint, digest_of, fingerprint
from .history import WIPE, wipe_later
from .session import Session
from .shards import Indexes
from .store import derived, records
from .store.database import Database
from .store.index import MemoryIndex
from .store.search import DEFAULT
from .store.words import WordIndex
from .streams import Progress

if TYPE_CHECKING:
    import sqlite3

    from .model import HMTModel

log = logging.getLogger("hmt_memory")
_LONGEST_NAME = 200


class Verification(NamedTuple):
    """What `MemoryStore.verify` found."""

    problems: list[str]  # what is wrong with the record, one line each; empty: it is whole
    notes: list[str]  # what will be repaired by itself, such as a stale index

    @property
    def ok(self) -> bool:
        """Whether the record is whole."""
        return not self.problems


class MemoryStore:
    """Sessions and corpora in one folder, in one SQLite database with disposable index files beside it.

    Several processes may use a folder at once, on one machine; several threads may use one object.

    Args:
        folder: made if it does not exist.
        index: what preselects memories: a FAISS `index_factory` string for inner product, with `;name=value` search parameters
            after it. The default is exact.
        timeout: seconds to wait for another process that writes before `SessionBusyError`.
        clock: seconds since 1970, for tests.

    Raises:
        StoreError: the folder cannot be used, or a newer version wrote it. StoreDamagedError: it is not whole.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        index: str = DEFAULT,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.now = clock
        self._factory = index
        self._indexes: dict[int, Indexes] = {}
        self._shelves: dict[int, tuple[int, records.Shelf, list[int]]] = {}
        self._reading: dict[tuple[int, int], threading.Lock] = {}
        self._mutex = threading.Lock()
        self.database = Database(self.folder, timeout=timeout)
        try:
            self.finish_wiping()
        except (SessionBusyError, StoreError) as error:
            log.warning("%s", error)  # the next opening tries again

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MemoryStore({str(self.folder)!r})"

    def close(self) -> None:
        """Save the indexes and close the database. Sessions of this object must not be used afterwards."""
        for id in list(self._indexes):
            self._save_index(id)
        self.database.close()

    def _save_index(self, id: int, *, always: bool = False) -> None:
        """Save an index, unless its session or corpus was deleted or rewritten: nobody can do that meanwhile."""
        try:
            with self.database.exclusive(), self.database.reading() as db:
                row = records.collection(db, id)
                if row is not None:
                    for index in self._indexes[id]:
                        index.save(db, _shelf(db, row)[0], always=always)
        except (SessionBusyError, StoreError) as error:
            log.warning("the index of collection %d is not saved: %s", id, error)

    # --- sessions ---------------------------------------------------------------------------------------------------

    def session(self, name: str, model: HMTModel | None = None) -> Session:
        """Create a session, or resume it.

        Args:
            name: any text of up to 200 characters that can be printed on one line.
            model: what reads and answers. Without one, an existing session can be looked at, forked, exported, and forgotten
                from.

        Raises:
            ModelMismatchError: another model made its memory. SessionNotFoundError: it does not exist, and there is no model to
            create it for. InputError: no such name is possible.
        """
        return Session(self, self._open("session", name, model), model)

    def corpus(self, name: str, model: HMTModel | None = None) -> Corpus:
        """Create a corpus, or open it; as `session`."""
        return Corpus(self, self._open("corpus", name, model), model)

    def _open(self, kind: str, name: str, model: HMTModel | None) -> records.CollectionRow:
        _check_name(name)
        with self.database.reading() as db:
            row = records.find_collection(db, kind, name)
        if row is not None:
            return row
        if model is None:
            raise self._unknown(kind, name)
        with self.database.writing() as db:
            row = records.find_collection(db, kind, name)
            if row is None:
                self.check_new(db, kind, name)
                stream = records.add_stream(db) if kind == "session" else None
                row = records.add_collection(db, kind, name, stream=stream, now=self.now())
        return row

    def sessions(self) -> list[str]:
        """The names of all sessions, sorted."""
        return self._names("session")

    def corpora(self) -> list[str]:
        """The names of all corpora, sorted."""
        return self._names("corpus")

    def has(self, kind: str, name: str, opened: Session | Corpus | None = None) -> bool:
        """Whether there is a "session" or "corpus" of that name; with `opened`, whether it is still that one."""
        with self.database.reading() as db:
            row = records.find_collection(db, kind, name)
        return row is not None and (opened is None or opened._id == row.id)

    def _names(self, kind: str) -> list[str]:
        with self.database.reading() as db:
            return [row.name for row in records.collections(db, kind)]

    def delete(self, name: str) -> None:
        """Delete a session: rows, index, and the bytes in all files. What forks of it share stays theirs.

        Raises:
            SessionNotFoundError: there is none of that name.
        """
        self._delete("session", name)

    def delete_corpus(self, name: str) -> None:
        """Delete a corpus likewise; sessions it was attached to go on without it."""
        self._delete("corpus", name)

    def _delete(self, kind: str, name: str) -> None:
        with self.database.writing() as db:
            row = self.find(db, kind, name)
            records.delete_collection(db, row)
            wipe_later(db)
            self.drop_index(row.id)
        self.finish_wiping()

    def rename(self, name: str, new: str) -> None:
        """Give a session another name.

        Raises:
            SessionNotFoundError: there is none of that name. SessionExistsError: the new name is taken.
        """
        with self.database.writing() as db:
            row = self.find(db, "session", name)
            self.check_new(db, "session", new)
            records.update_collection(db, replace(row, name=new))

    def import_session(
        self, path: str | Path, *, name: str | None = None, model: HMTModel | None = None, progress: Progress | None = None
    ) -> Session:
        """Add the session of an exported file, after checking all of it.

        Args:
            name: another name for it. model: the session is opened for this model, and read anew where another made it.

        Raises:
            StoreDamagedError: the file is not whole, or no export; nothing is added. SessionExistsError: the name is taken.
        """
        from . import archive

        row = archive.import_session(self, Path(path), name)
        with self.database.reading() as db:
            stored = None if row.model is None else Fingerprint.of(records.model(db, row.model))
        if model is None or stored is None:
            return Session(self, row, model)
        if stored.digest == fingerprint(model).digest:
            return Session(self, row, model)
        return Session(self, row, None).rebuild(model, progress=progress)

    # --- checking ---------------------------------------------------------------------------------------------------

    def verify(self, name: str | None = None) -> Verification:
        """Read every row of a session (None: of everything, with SQLite's own check) and follow every digest.

        Runs no model: that embeddings are those of their tokens is what `rebuild` makes sure of.
        """
        problems = [] if name is not None else self.database.problems()
        notes: list[str] = []
        for kind in ("session", "corpus") if name is None else ("session",):
            with self.database.reading() as db:
                try:
                    rows = records.collections(db, kind) if name is None else [self.find(db, kind, name)]
                except StoreDamagedError as error:
                    problems.append(str(error))
                    continue
            for row in rows:
                try:
                    self._verify(row, notes)
                except HMTError as error:
                    problems.append(f"{kind} {row.name!r}: {error}")
        return Verification(problems, notes)

    def _verify(self, row: records.CollectionRow, notes: list[str]) -> None:
        with self.database.reading() as db:
            if row.model is not None:
                stored = records.model(db, row.model)
                if digest_of(stored.parts) != stored.digest:
                    raise StoreDamagedError("the record of its model does not fit its digest")
            volumes = [_volume(db, row.stream)] if row.stream is not None else []
            if row.kind == "corpus":
                volumes = [_volume(db, document.stream) for document in records.documents(db, row.id)]
            for parts, count in volumes:
                _verify_messages(records.messages(db, parts), has_messages=row.kind == "session", tokens=records.size(parts)[1])
                _verify_segments(db, parts, count)
            for path in self.index_paths(row.id):
                doubt = derived.stale(path, db, records.Shelf(tuple(volumes)))
                if doubt is not None:
                    notes.append(f"{row.kind} {row.name!r}: its index {path.name} will be made again: {doubt}")

    # --- for sessions and corpora -----------------------------------------------------------------------------------

    def find(self, db: sqlite3.Connection, kind: str, name: str) -> records.CollectionRow:
        """The row of that name. Raises SessionNotFoundError."""
        _check_name(name)
        row = records.find_collection(db, kind, name)
        if row is None:
            raise self._unknown(kind, name)
        return row

    def _unknown(self, kind: str, name: str) -> SessionNotFoundError:
        known = ", ".join(map(repr, self._names(kind)[:5])) or "none yet"
        return SessionNotFoundError(f"there is no {kind} {name!r} in {self.folder}. There are: {known}.")

    def check_new(self, db: sqlite3.Connection, kind: str, name: str) -> None:
        """Raises InputError if nothing can be called so, SessionExistsError if something is."""
        _check_name(name)
        if records.find_collection(db, kind, name) is not None:
            raise SessionExistsError(f"there is a {kind} {name!r} already. Choose another name, or delete it first.")

    def indexes(self, row: records.CollectionRow, model: HMTModel, made_by: str) -> Indexes:
        """What searches a session or corpus; `made_by` is the model's digest."""
        with self._mutex:
            if row.id not in self._indexes:
                memory, vocabulary = self.index_paths(row.id)
                width, slots = model.backbone.hidden_size, model.recalled_slots
                others = model.slots - slots
                self._indexes[row.id] = Indexes(
                    MemoryIndex(memory, width=width, slots=slots, others=others, factory=self._factory, made_by=made_by),
                    WordIndex(vocabulary, decode=model.backbone.decode, terms=words.terms, made_by=made_by),
                )
            return self._indexes[row.id]

    def index_paths(self, id: int) -> tuple[Path, Path]:
        """Where the index of the memory embeddings and that of the words of a session or corpus are kept."""
        return self.folder / "indexes" / f"{id}.index", self.folder / "indexes" / f"{id}.words"

    def drop_index(self, id: int) -> None:
        """Delete the indexes, on disk and in memory: what they were made of is about to change."""
        with self._mutex:
            self._indexes.pop(id, None)
            self._shelves.pop(id, None)
        for path in self.index_paths(id):
            derived.remove(path)

    def shelf(self, row: records.CollectionRow) -> tuple[records.Shelf, list[int]]:
        """The closed segments of a corpus, and the ids of its documents."""
        known = self._shelves.get(row.id)
        if known is None or known[0] != row.revision:
            with self.database.reading() as db:
                row = records.collection(db, row.id) or row
                known = self._shelves[row.id] = (row.revision, *_shelf(db, row))
        return known[1], known[2]

    def reading_mutex(self, id: int) -> threading.Lock:
        """Threads that read into one session or corpus queue here."""
        with self._mutex:
            return self._reading.setdefault((os.getpid(), id), threading.Lock())

    def finish_wiping(self) -> None:
        """Overwrite what was deleted, if that is still to be done: after a deletion, or a crash in the middle of one."""
        with self.database.reading() as db:
            pending = records.fact(db, WIPE)
        if pending is None:
            return
        try:
            self.database.wipe()
        except StoreDamagedError:
            raise
        except (SessionBusyError, StoreError) as error:
            raise type(error)(
                f"what was forgotten is gone from the record in {self.folder}, but its bytes are not overwritten yet "
                f"({error.__cause__ or error}). That is tried again whenever the store is opened."
            ) from error
        with self.database.writing() as db:
            if records.fact(db, WIPE) == pending:  # else somebody has deleted more meanwhile
                records.set_fact(db, WIPE, None)


def _shelf(db: sqlite3.Connection, row: records.CollectionRow) -> tuple[records.Shelf, list[int]]:
    """The closed segments of a session or corpus, and the ids of a corpus's documents."""
    documents = [(0, row.stream)] if row.stream is not None else records.document_streams(db, row.id)
    volumes = tuple(_volume(db, stream) for _, stream in documents)
    return records.Shelf(volumes, (row.id, row.epoch, row.revision)), [id for id, _ in documents]


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise InputError(f"{name!r} cannot be a name: it takes 1 to {_LONGEST_NAME} printable characters on one line.")


def _volume(db: sqlite3.Connection, stream: int) -> tuple[records.Lineage, int]:
    parts = records.lineage(db, stream)
    return parts, records.segment_count(db, parts)


def _verify_messages(messages: list[records.MessageRow], *, has_messages: bool, tokens: int) -> None:
    at, ids = 0, set()
    for message in messages:
        if message.tokens[0] != at or not at <= message.content[0] <= message.content[1] <= message.tokens[1]:
            raise StoreDamagedError(f"message {message.id} is not where the one before it ends")
        if message.id in ids:
            raise StoreDamagedError(f"message {message.id} is there twice")
        ids.add(message.id)
        at = message.tokens[1]
    if has_messages and at != tokens:
        raise StoreDamagedError("its messages and its tokens do not end together")


def _verify_segments(db: sqlite3.Connection, parts: records.Lineage, count: int) -> None:
    tokens, digest, at = records.size(parts)[1], b"", 0
    for start in range(0, tokens, records.TOKENS_PER_ROW):
        records.tokens(db, parts, start, start + records.TOKENS_PER_ROW)
    for row in records.segments(db, parts, 0, count):
        digest = records.chain(digest, row.tokens, row.memory, row.keys)
        if digest != row.digest or row.tokens[0] != at:
            raise StoreDamagedError(f"segment {row.seq} does not follow from the one before it. Rebuild the session or corpus")
        at = row.tokens[1]
    if at > tokens:
        raise StoreDamagedError("its segments go beyond its tokens")
