"""The ground that sessions and corpora stand on: the database of a store, the indexes beside it, and erasing.

Everything it keeps in memory can be made again from the record at any time: search indexes, and shelves of corpora.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, SessionBusyError, StoreDamagedError, StoreError, StoreInterruptedError
from ..hot import Hot
from ..locks import ThreadLock
from ..store import rewriting, sweeping
from ..store.backend import Capability
from ..store.index.base import DEFAULT
from ..store.open import open_backend, place_of
from ..store.rows import MEMORY_BITS, CollectionRow
from ..store.shelf import Shelf, shelf_of
from .behind import Behind
from .names import find
from .open_indexes import OpenIndexes
from .tiers import Tiers

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..engine.view_cache import ViewCache
    from ..model import HMTModel
    from ..retrieval.sources import Indexes
    from ..store.transaction import Transaction
    from .indexing import Shape

log = logging.getLogger("hmt_memory")


class Storage:
    """The handle of one store. `MemoryStore`, which knows sessions and corpora, is the public one.

    Several processes may use a folder at once, on one machine, and a database server on many; several threads may use one
    object.

    Args:
        folder: made if it does not exist; or the URL of a PostgreSQL database, `postgresql://host/database`.
        index: preselects memories: a FAISS `index_factory` string for inner product, with `;name=value` search parameters
            after it. The default is exact.
        timeout: seconds to wait for another process that writes before `SessionBusyError`.
        clock: seconds since 1970, for tests.
        read_only: whether to change nothing in the store, which has to exist then.
        tiers: how much of what is made of the record is kept in memory and on this machine's disk; None: as the environment
            says (`Tiers.of_environment`).
        background: whether what an answer adds to a session is read into its memory by another thread, so that the call which
            answers does not wait for it; the next call that needs it does. Sessions with limits read at once.
        memory_bits: bits of a number in memories of sessions and corpora that are made or rebuilt here: 16, or 8, which halves
            their room on disk. None: as $HMT_MEMORY_BITS says, else 16; what is rebuilt then keeps its own.

    Raises:
        StoreError: the folder cannot be used, or a newer version wrote it.
        StoreDamagedError: the store is not whole.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        index: str = DEFAULT,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
        tiers: Tiers | None = None,
        background: bool = False,
        memory_bits: int | None = None,
    ) -> None:
        self._memory_bits = _known_bits(memory_bits)
        self.folder = place_of(folder)
        self.now = clock
        self._factory, self.tiers = index, Tiers.of_environment() if tiers is None else tiers
        self.hot = Hot(self.tiers.hot_bytes)
        self._shelves: dict[int, tuple[int, Shelf]] = {}
        self._reading: dict[tuple[int, int], threading.Lock] = {}
        self.behind = Behind(threaded=background or self.tiers.fetch_ahead)
        self._mutex = ThreadLock()
        self.database = open_backend(self.folder, timeout=timeout, read_only=read_only)
        try:
            self.open_indexes = OpenIndexes(self.database, self.hot, self.tiers)
        except BaseException:
            self.database.close()
            raise
        if not read_only:
            self._take_up()

    @property
    def place(self) -> str:
        """The folder or the address of the database, without its password."""
        return self.database.place

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this store's database promises."""
        return self.database.capabilities

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Save the indexes and close the database. Sessions of this object must not be used afterwards."""
        try:
            self.behind.close()
        finally:
            self.open_indexes.close()
            self.database.close()

    def session_of(self, row: CollectionRow, model: HMTModel) -> Any:
        """Return the session of a row for a model."""
        raise NotImplementedError

    def corpus_of(self, row: CollectionRow, model: HMTModel) -> Any:
        """Return the corpus of a row for a model."""
        raise NotImplementedError

    def find(self, db: Transaction, kind: str, name: str) -> CollectionRow:
        """Return the row of a session or corpus.

        Args:
            db: the transaction to look in.
            kind: "session" or "corpus".
            name: its name.

        Raises:
            SessionNotFoundError: nothing has that name.
        """
        return find(db, kind, name, folder=self.place)

    def indexes(self, row: CollectionRow, model: HMTModel, made_by: str) -> Indexes:
        """Return the indexes of a session or corpus, opening them on first use.

        Args:
            row: the session or corpus.
            model: its sizes and tokenizer shape the indexes.
            made_by: the model's digest.
        """
        return self.open_indexes.get(row, self.shape(model, made_by), model.backbone.decode)

    def shape(self, model: HMTModel, made_by: str) -> Shape:
        """Return the shape of the indexes of what a model has read; `made_by` is its digest."""
        from .indexing import shape_of

        return shape_of(model, made_by, self._factory)

    def settle(self) -> None:
        """Let go of what is over the bound in memory, the least recently used first. Call it where no view of rows is open."""
        self.open_indexes.settle()
        if self.open_indexes.looks_again():
            self.behind.do("what others have erased", self.open_indexes.drop_outdated)

    def drop_index(self, collection: int) -> None:
        """Delete the indexes, on disk and in memory, before their content changes, and what is kept of views and memories.

        Raises:
            StoreError: a file cannot be deleted.
        """
        if "view_cache" in vars(self):
            self.view_cache.clear()
        self._let_go(collection)
        self.hot.drop(("shelf", collection))
        self.hot.free(memories_of(collection))
        self.open_indexes.drop(collection)

    @cached_property
    def view_cache(self) -> ViewCache:
        """What is kept of the sessions' views between answers."""
        from ..engine.view_cache import ViewCache  # imports torch, which most commands do without

        return ViewCache(self.hot)

    def shelf(self, row: CollectionRow) -> Shelf:
        """Return the closed segments of a session or corpus, as of the row."""
        known = self._shelves.get(row.id)
        if known is None or known[0] != row.revision:
            with self.database.reading() as db:
                row = db.collection(row.id) or row
                known = self._shelves[row.id] = (row.revision, shelf_of(db, row))
        size = _VOLUME * len(known[1].volumes)
        self.hot.keep("shelves", ("shelf", row.id), size, lambda: self._let_go(row.id))
        return known[1]

    def _let_go(self, collection: int) -> None:
        self._shelves.pop(collection, None)

    def reading_mutex(self, collection: int) -> threading.Lock:
        """Return the lock in which threads queue that read into one session or corpus."""
        with self._mutex.held():
            return self._reading.setdefault((os.getpid(), collection), threading.Lock())

    def in_memory_bits(self, row: CollectionRow) -> CollectionRow:
        """Return the row of a session or corpus, nothing of which is read yet, with the bits that its memories are to have."""
        return replace(row, settings={**row.settings, MEMORY_BITS: self._memory_bits or row.memory_bits})

    def _take_up(self) -> None:
        """Go on with what a crash has left; if that is impossible now, the next erasure or opening tries again."""
        try:
            self._end(self._unended())
        except (SessionBusyError, StoreError) as error:
            log.warning("what was forgotten in %s is not overwritten yet: %s", self.place, error)

    def _unended(self) -> _Unended:
        with self.database.reading() as db:
            return _Unended(db.drafted(), db.erasures())

    def _end(self, begun: _Unended) -> None:
        """Finish what was begun and nobody is working on any more."""
        given_up = [erasure for session in begun.drafted for erasure in self._given_up(session)]
        for erasure in (*begun.erasures, *given_up):
            sweeping.take_up(self.database, erasure)
        with self.database.reading() as db:
            half_rewritten = db.fact(_REWRITING) is not None
        if half_rewritten:
            self._end_rewriting()

    def _given_up(self, session: int) -> list[int]:
        """Return the erasures of a session's abandoned drafts, unless somebody is writing them."""

        def work(db: Transaction) -> int:
            erasure = db.begin_erasure()
            rewriting.abandon_drafts(db, session, erasure)
            return erasure

        with self._unless_held(f"session-{session}") as free:
            return [self.database.erasing(work)] if free else []

    def _end_rewriting(self) -> None:
        with self._unless_held(_REWRITING) as free:
            if free:
                self._rewrite()

    @contextmanager
    def _unless_held(self, lock: str) -> Iterator[bool]:
        """Hold a lock if nobody else does; yield whether it is held."""
        with ExitStack() as held:
            try:
                held.enter_context(self.database.lock(lock, timeout=0))
            except SessionBusyError:
                yield False
                return
            yield True

    def finish_erasing(self, erasure: int | None) -> None:
        """Overwrite deleted content, in steps between which others write: it is then in no file.

        The remains of another process's crash may hold the same content, so they are erased as well.

        Raises:
            SessionBusyError: somebody kept reading or writing; the message says when it is tried again.
            StoreError: the disk is failing.
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
            kind = StoreError if isinstance(error, StoreInterruptedError) else type(error)  # what was stored stays stored
            raise kind(
                f"what was forgotten is gone from the record in {self.place}, but its bytes are not overwritten yet "
                f"({error.__cause__ or error}). That is tried again when anything is erased or the store opened."
            ) from error

    def compact(self) -> int:
        """Rewrite the database without the room that erasing has left in it. Returns the bytes given back to the disk.

        That room is used again for later content, so this only serves to give it back. Nobody can write meanwhile: it takes
        about 12 seconds a gigabyte of content, and the disk needs room for the content once more.

        Raises:
            SessionBusyError: others kept writing.
            StoreFullError: there is no room for the new file.
            StoreError: the tables are another role's.
        """
        if Capability.GIVES_ROOM_BACK not in self.capabilities:
            raise StoreError(f"only the owner of the tables in {self.place} can give their room back. Run it as that role.")
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
        """Count the bytes of erased content whose room nothing has taken yet."""
        with self.database.reading() as db:
            return db.vacant_bytes()


class _Unended(NamedTuple):
    """Work that was begun and is not finished."""

    drafted: list[int]  # sessions that a draft is being written for
    erasures: list[int]


def memories_of(collection: int) -> tuple[str, int]:
    """Return what the keys of a session's memories begin with in the account of memory."""
    return "memories", collection


_VOLUME = 512  # bytes that a document takes in a shelf, about
_REWRITING = "rewriting"  # the fact that rows were dropped: the database must be rewritten before anything is erased


def _known_bits(bits: int | None) -> int | None:
    """Return the chosen bits of a number in memories; None: nobody chose.

    Raises:
        ConfigError: there are no memories of so many bits.
    """
    chosen = os.environ.get("HMT_MEMORY_BITS") or None if bits is None else str(bits)
    if chosen not in (None, "8", "16"):
        raise ConfigError(f"memories of {chosen} bits are not known. Set memory_bits, or HMT_MEMORY_BITS, to 8 or 16.")
    return None if chosen is None else int(chosen)
