"""`MemoryStore`: one folder of sessions and corpora. Opens them, lists, deletes, verifies.

What it keeps in memory can be made again from the folder at any time: search indexes, and what is known of corpora.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

from ..engine.fingerprint import digest_of, fingerprint
from ..errors import (
    HMTError,
    InputError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    StoreDamagedError,
    StoreError,
)
from ..retrieval import lexical
from ..retrieval.sources import Indexes
from ..store import lineage, rewriting, sweeping
from ..store.index import derived
from ..store.index.search import DEFAULT
from ..store.index.vectors import MemoryIndex
from ..store.index.words import WordIndex
from ..store.open import open_backend
from ..store.rows import CollectionRow, Lineage, MessageRow, chain
from ..store.shelf import Shelf, shelf_of
from . import archive, lookup
from .backup import back_up
from .made_by import made_by
from .stored_corpus import StoredCorpus
from .stored_session import StoredSession

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..store.backend import Transaction
    from .corpus import Corpus
    from .lookup import FoundText
    from .reading import Progress
    from .session import Session

log = logging.getLogger("hmt_memory")
_LONGEST_NAME = 200
# Characters that leave no trace on the screen and yet count as printable: two names must not look alike (Unicode's
# Default_Ignorable_Code_Point, as far as `str.isprintable` lets it pass; the variation selectors of emoji are left).
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\ufe00-\ufe0e]")


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
        read_only: whether to change nothing in the folder, which has to be there then.
        index_bytes: memory that the indexes of all sessions and corpora may take together; those used least lately are let go.

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
        read_only: bool = False,
        index_bytes: int = 256 << 20,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.now = clock
        self._factory, self._index_bytes = index, index_bytes
        self._indexes: OrderedDict[int, Indexes] = OrderedDict()
        self._shelves: dict[int, tuple[int, Shelf]] = {}
        self._reading: dict[tuple[int, int], threading.Lock] = {}
        self._pid, self._mutex = os.getpid(), threading.Lock()
        self.database = open_backend(self.folder, timeout=timeout, read_only=read_only)
        if not read_only:
            self._take_up()

    def _take_up(self) -> None:
        """Go on with what a crash has left; where that cannot be now, the next erasure or opening tries again."""
        try:
            self._end(self._unended())
        except (SessionBusyError, StoreError) as error:
            log.warning("what was forgotten in %s is not overwritten yet: %s", self.folder, error)

    def _unended(self) -> _Unended:
        with self.database.reading() as db:
            return _Unended(db.drafted(), db.erasures())

    def _end(self, begun: _Unended) -> None:
        """Bring to an end what was begun and nobody is at any more."""
        given_up = [erasure for id in begun.drafted for erasure in self._given_up(id)]
        for erasure in (*begun.erasures, *given_up):
            sweeping.take_up(self.database, erasure)
        with self.database.reading() as db:
            half_rewritten = db.fact(_REWRITING) is not None
        if half_rewritten:
            self._end_rewriting()

    def _given_up(self, id: int) -> list[int]:
        """The erasure of what was being written for a session, unless somebody is at it."""

        def work(db: Transaction) -> int:
            erasure = db.begin_erasure()
            rewriting.abandon_drafts(db, id, erasure)
            return erasure

        with self._unless_held(f"session-{id}") as free:
            return [self.database.erasing(work)] if free else []

    def _end_rewriting(self) -> None:
        with self._unless_held(_REWRITING) as free:
            if free:
                self._rewrite()

    @contextmanager
    def _unless_held(self, lock: str) -> Iterator[bool]:
        """Hold a lock that nobody holds; False: somebody does."""
        with ExitStack() as held:
            try:
                held.enter_context(self.database.lock(lock, timeout=0))
            except SessionBusyError:
                yield False
                return
            yield True

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MemoryStore({str(self.folder)!r})"

    def close(self) -> None:
        """Save the indexes and close the database. Sessions of this object must not be used afterwards."""
        for id, indexes in list(self._indexes.items()):
            self._save_index(id, indexes)
        self.database.close()

    def _save_index(self, id: int, indexes: Indexes, *, always: bool = False) -> None:
        """Save an index, unless its session or corpus was deleted or rewritten: nobody can do that meanwhile."""
        if self.database.read_only:
            return
        try:
            with self.database.exclusive(), self.database.reading() as db:
                row = db.collection(id)
                if row is not None:
                    for index in indexes:
                        index.save(db, shelf_of(db, row), always=always)
        except (SessionBusyError, StoreError) as error:
            log.warning("the index of collection %d is not saved: %s", id, error)

    # --- sessions ---------------------------------------------------------------------------------------------------

    @overload
    def session(self, name: str, model: HMTModel) -> Session: ...
    @overload
    def session(self, name: str, model: None = None) -> StoredSession: ...
    def session(self, name: str, model: HMTModel | None = None) -> StoredSession:
        """Create a session, or resume it.

        Args:
            name: any text of up to 200 characters that can be printed on one line.
            model: what reads and answers. Without one, an existing session can be looked at, forked, exported, and forgotten
                from, and torch is not imported.

        Raises:
            ModelMismatchError: another model made its memory. SessionNotFoundError: it does not exist, and there is no model to
            create it for. InputError: no such name is possible.
        """
        row = self._open("session", name, model)
        return StoredSession(self, row) if model is None else self.session_of(row, model)

    @overload
    def corpus(self, name: str, model: HMTModel) -> Corpus: ...
    @overload
    def corpus(self, name: str, model: None = None) -> StoredCorpus: ...
    def corpus(self, name: str, model: HMTModel | None = None) -> StoredCorpus:
        """Create a corpus, or open it; as `session`."""
        row = self._open("corpus", name, model)
        return StoredCorpus(self, row) if model is None else self.corpus_of(row, model)

    def _open(self, kind: str, name: str, model: HMTModel | None) -> CollectionRow:
        _check_name(name)
        name = normal(name)
        with self.database.reading() as db:
            row = db.find_collection(kind, name)
        if row is not None:
            return row
        if model is None:
            raise self._unknown(kind, name)
        with self.database.writing() as db:
            row = db.find_collection(kind, name)
            if row is None:
                self.check_new(db, kind, name)
                stream = lineage.add_stream(db) if kind == "session" else None
                row = db.add_collection(kind, name, stream=stream, now=self.now())
        return row

    def sessions(self) -> list[str]:
        """The names of all sessions, sorted."""
        return self._names("session")

    def corpora(self) -> list[str]:
        """The names of all corpora, sorted."""
        return self._names("corpus")

    def has(self, kind: str, name: str, opened: StoredSession | StoredCorpus | None = None) -> bool:
        """Whether there is a "session" or "corpus" of that name; with `opened`, whether it is still that one."""
        with self.database.reading() as db:
            row = db.find_collection(kind, normal(name))
        return row is not None and (opened is None or opened._id == row.id)

    def _names(self, kind: str) -> list[str]:
        with self.database.reading() as db:
            return [row.name for row in db.collections(kind)]

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
        def work(db: Transaction) -> tuple[int, int]:
            row, erasure = self.find(db, kind, name), db.begin_erasure()
            rewriting.abandon_drafts(db, row.id, erasure)
            db.delete_collection(row, erasure)
            self.drop_index(row.id)
            return row.id, erasure

        id, erasure = self.database.erasing(work)
        self.finish_erasing(erasure)
        self.database.forget_lock(f"{kind}-{id}")

    def compact(self) -> int:
        """Rewrite the database without the room that erasing has left in it; return the bytes given back to the disk.

        That room is used again for what is added later, so this is for giving it back only. Nobody can write meanwhile: about
        12 seconds a gigabyte of what is kept, which the disk needs room for once more.

        Raises:
            SessionBusyError: others kept writing. StoreFullError: there is no room for it.
        """
        before = self.database.size()
        with self.database.writing() as db:
            db.set_fact(_REWRITING, "1")
        with self.database.lock(_REWRITING):
            self._rewrite()
        return max(0, before - self.database.size())

    def _rewrite(self) -> None:
        self.database.rewrite()
        with self.database.writing() as db:
            db.set_fact(_REWRITING, None)

    def vacant_bytes(self) -> int:
        """Count the bytes of content that were erased and whose room nothing has taken yet."""
        with self.database.reading() as db:
            return db.vacant_bytes()

    def rename(self, name: str, new: str) -> None:
        """Give a session another name.

        Raises:
            SessionNotFoundError: there is none of that name. SessionExistsError: the new name is taken.
        """
        self._rename("session", name, new)

    def rename_corpus(self, name: str, new: str) -> None:
        """Give a corpus another name likewise; sessions that it is attached to go on recalling from it."""
        self._rename("corpus", name, new)

    def _rename(self, kind: str, name: str, new: str) -> None:
        with self.database.writing() as db:
            row, erasure = self.find(db, kind, name), db.begin_erasure()
            self.check_new(db, kind, new)
            db.rename_collection(row, normal(new), erasure)
        self.finish_erasing(erasure)

    # --- searching --------------------------------------------------------------------------------------------------

    def search(self, query: str, *, top_k: int = 10, names: Sequence[str] | None = None) -> list[FoundText]:
        """The messages of all sessions that share most words with a query. Takes no model; reads all of their text.

        Args:
            top_k: how many. names: of the sessions to search; None: all.

        Raises:
            InputError: the query has no word. SessionNotFoundError: there is no such session.
        """
        chosen = self.sessions() if names is None else names
        return lookup.best(query, [lookup.messages_as_found(one, self.session(one).messages()) for one in chosen], top_k)

    def search_corpora(self, query: str, *, top_k: int = 10, names: Sequence[str] | None = None) -> list[FoundText]:
        """The paragraphs of all corpora likewise; `names`: of the corpora to search."""
        chosen = self.corpora() if names is None else names
        documents = [(name, document) for name in chosen for document in self.corpus(name).documents()]
        return lookup.best(query, [lookup.paragraphs_as_found(*one) for one in documents], top_k)

    def import_session(
        self, path: str | Path, *, name: str | None = None, model: HMTModel | None = None, progress: Progress | None = None
    ) -> StoredSession:
        """Add the session of an exported file, after checking all of it.

        Args:
            name: another name for it. model: the session is opened for this model, and read anew where another made it.

        Raises:
            StoreDamagedError: the file is not whole, or no export. SessionExistsError: the name is taken. InputError: no such
            name is possible, or the model's template has no place for a message. Nothing is added then.
        """
        row = archive.import_session(self, Path(path), name)
        if model is None:
            return StoredSession(self, row)
        try:
            return self._imported(row, model, progress)
        except InputError:  # the model's template has no place for one of its messages
            self.delete(row.name)
            raise

    def _imported(self, row: CollectionRow, model: HMTModel, progress: Progress | None) -> Session:
        with self.database.reading() as db:
            stored = made_by(db, row)
        if stored is None or stored.digest == fingerprint(model).digest:
            return self.session_of(row, model)
        return StoredSession(self, row).rebuild(model, progress=progress)

    # --- checking ---------------------------------------------------------------------------------------------------

    def backup(self, folder: str | Path) -> None:
        """Write a copy of the whole store, as of one moment, into a folder, and verify it. Others may write meanwhile.

        What can be made again is left out. The copy is a store like any other; what is forgotten later is still in it.

        Args:
            folder: must not be there, or be empty.

        Raises:
            InputError: the folder holds something. StoreError: it cannot be written. StoreDamagedError: what was copied is not
            whole. No copy is left then.
        """
        back_up(self, Path(folder).expanduser())

    def verify(self, name: str | None = None) -> Verification:
        """Read every row of a session (None: of everything, with SQLite's own check) and follow every digest.

        Runs no model: that embeddings are those of their tokens is what `rebuild` makes sure of.
        """
        problems = [] if name is not None else self.database.problems()
        notes: list[str] = []
        for kind in ("session", "corpus") if name is None else ("session",):
            with self.database.reading() as db:
                try:
                    rows = db.collections(kind) if name is None else [self.find(db, kind, name)]
                except StoreDamagedError as error:
                    problems.append(str(error))
                    continue
            for row in rows:
                try:
                    self._verify(row.id, notes)
                except HMTError as error:
                    problems.append(f"{kind} {row.name!r}: {error}")
        return Verification(problems, notes)

    def _verify(self, id: int, notes: list[str]) -> None:
        with self.database.reading() as db:
            row = db.collection(id)
            if row is None:
                return  # it was deleted meanwhile
            if row.model is not None:
                stored = db.model(row.model)
                if digest_of(stored.parts) != stored.digest:
                    raise StoreDamagedError("the record of its model does not fit its digest")
            if row.settings.get(archive.UNVERIFIED):
                notes.append(f"{row.kind} {row.name!r}: its tokens are compared with its messages when a model opens it")
            if row.kind == "corpus":
                db.documents(row.id)
            shelf = shelf_of(db, row)
            for volume in shelf.volumes:
                parts = lineage.of_stream(db, volume.stream)
                _verify_messages(lineage.messages(db, parts), has_messages=row.kind == "session", tokens=lineage.size(parts)[1])
                _verify_segments(db, parts, volume.segments)
            for path in self.index_paths(row.id):
                doubt = derived.stale(path, db, shelf)
                if doubt is not None:
                    notes.append(f"{row.kind} {row.name!r}: its index {path.name} will be made again: {doubt}")

    # --- for sessions and corpora -----------------------------------------------------------------------------------

    def session_of(self, row: CollectionRow, model: HMTModel) -> Session:
        """Return the session of a row for a model."""
        from .session import Session

        return Session(self, row, model)

    def corpus_of(self, row: CollectionRow, model: HMTModel) -> Corpus:
        """Return the corpus of a row for a model."""
        from .corpus import Corpus

        return Corpus(self, row, model)

    def find(self, db: Transaction, kind: str, name: str) -> CollectionRow:
        """The row of that name. Raises SessionNotFoundError."""
        _check_name(name)
        row = db.find_collection(kind, normal(name))
        if row is None:
            raise self._unknown(kind, name)
        return row

    def _unknown(self, kind: str, name: str) -> SessionNotFoundError:
        known = ", ".join(map(repr, self._names(kind)[:5])) or "none yet"
        return SessionNotFoundError(f"there is no {kind} {name!r} in {self.folder}. There are: {known}.")

    def check_new(self, db: Transaction, kind: str, name: str) -> None:
        """Raises InputError if nothing can be called so, SessionExistsError if something is."""
        _check_name(name)
        if db.find_collection(kind, normal(name)) is not None:
            raise SessionExistsError(f"there is a {kind} {name!r} already. Choose another name, or delete it first.")

    def indexes(self, row: CollectionRow, model: HMTModel, made_by: str) -> Indexes:
        """Return what searches a session or corpus, opening it on first use; `made_by` is the model's digest."""
        with self._alone():
            found = self._indexes.get(row.id)
            if found is None:
                memory, vocabulary = self.index_paths(row.id)
                width, slots = model.backbone.hidden_size, model.recalled_slots
                others = model.slots - slots
                found = self._indexes[row.id] = Indexes(
                    MemoryIndex(memory, width=width, slots=slots, others=others, factory=self._factory, made_by=made_by),
                    WordIndex(vocabulary, decode=model.backbone.decode, terms=lexical.terms, made_by=made_by),
                )
            self._indexes.move_to_end(row.id)
            least = self._over_the_bound(row.id)
        for id, indexes in least:
            self._save_index(id, indexes)
        return found

    def _over_the_bound(self, used: int) -> list[tuple[int, Indexes]]:
        """Let go of the indexes used least lately until the others fit into `index_bytes`; the one in `use` stays."""
        taken = {id: sum(index.nbytes for index in indexes) for id, indexes in self._indexes.items()}
        total, let_go = sum(taken.values()), []
        for id in list(self._indexes):
            if total <= self._index_bytes or id == used:
                break
            total -= taken[id]
            let_go.append((id, self._indexes.pop(id)))
            self._shelves.pop(id, None)
        return let_go

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one thread in; a forked process has a lock of its own."""
        if self._pid != os.getpid():
            self._pid, self._mutex = os.getpid(), threading.Lock()
        with self._mutex:
            yield

    def index_paths(self, id: int) -> tuple[Path, Path]:
        """Where the index of the memory embeddings and that of the words of a session or corpus are kept."""
        return self.folder / "indexes" / f"{id}.index", self.folder / "indexes" / f"{id}.words"

    def drop_index(self, id: int) -> None:
        """Delete the indexes, on disk and in memory: what they were made of is about to change."""
        with self._alone():
            self._indexes.pop(id, None)
            self._shelves.pop(id, None)
        self.drop_index_files(id)

    def drop_index_files(self, id: int) -> None:
        """Delete the indexes' files: something that they were made of is about to be erased."""
        for path in self.index_paths(id):
            derived.remove(path)

    def shelf(self, row: CollectionRow) -> Shelf:
        """Return the closed segments of a session or corpus, as of the row."""
        known = self._shelves.get(row.id)
        if known is None or known[0] != row.revision:
            with self.database.reading() as db:
                row = db.collection(row.id) or row
                known = self._shelves[row.id] = (row.revision, shelf_of(db, row))
        return known[1]

    def reading_mutex(self, id: int) -> threading.Lock:
        """Threads that read into one session or corpus queue here."""
        with self._alone():
            return self._reading.setdefault((os.getpid(), id), threading.Lock())

    def finish_erasing(self, erasure: int | None) -> None:
        """Overwrite what was deleted, in steps between which others write: it is then in no file.

        What a crash of another process has left may hold the same content, and is brought to its end as well.

        Raises:
            SessionBusyError, StoreError: that could not be done; the message says when it is tried again.
        """
        if erasure is None:
            return
        try:
            begun = self._unended()
            sweeping.finish(self.database, erasure)
            self._end(begun._replace(erasures=[other for other in begun.erasures if other != erasure]))
        except StoreDamagedError:
            raise
        except (SessionBusyError, StoreError) as error:
            raise type(error)(
                f"what was forgotten is gone from the record in {self.folder}, but its bytes are not overwritten yet "
                f"({error.__cause__ or error}). That is tried again when anything is erased or the store opened."
            ) from error


class _Unended(NamedTuple):
    """What was begun and is not at its end."""

    drafted: list[int]  # sessions that something is being written for
    erasures: list[int]


_REWRITING = "rewriting"  # the fact that room was given up in the database, which has to be rewritten before anything is erased


def normal(name: str) -> str:
    """Return a name as it is stored: what looks the same to a reader is the same name."""
    return unicodedata.normalize("NFC", name) if isinstance(name, str) else name


def _check_name(name: str) -> None:
    fits = isinstance(name, str) and len(name.strip()) > 0 and len(name) <= _LONGEST_NAME
    if not fits or not name.isprintable() or _UNSEEN.search(name):
        raise InputError(f"{name!r} cannot be a name: it takes 1 to {_LONGEST_NAME} characters that show, on one line.")


def _verify_messages(messages: list[MessageRow], *, has_messages: bool, tokens: int) -> None:
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


def _verify_segments(db: Transaction, parts: Lineage, count: int) -> None:
    tokens, digest, at = lineage.size(parts)[1], b"", 0
    for start in range(0, tokens, lineage.TOKENS_PER_ROW):
        lineage.tokens(db, parts, start, start + lineage.TOKENS_PER_ROW)
    for row in lineage.segments(db, parts, 0, count):
        digest = chain(digest, row.tokens, row.memory, row.keys)
        if digest != row.digest or row.tokens[0] != at:
            raise StoreDamagedError(f"segment {row.seq} does not follow from the one before it. Rebuild the session or corpus")
        at = row.tokens[1]
    if at > tokens:
        raise StoreDamagedError("its segments go beyond its tokens")
