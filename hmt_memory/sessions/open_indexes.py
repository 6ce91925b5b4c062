"""The search indexes that a store has open, in memory and on disk, within the bounds of its tiers. The rows decide.

Knows which index was used when; what is in one is `store.index`'s.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SessionBusyError, StoreError
from ..locks import ThreadLock
from ..store import warm
from ..store.backend import Backend, Capability
from ..store.index import derived
from ..store.rows import CollectionRow
from ..store.shelf import shelf_of

if TYPE_CHECKING:
    from ..hot import Hot
    from ..retrieval.sources import Indexes
    from .indexing import Shape
    from .tiers import Tiers

log = logging.getLogger("hmt_memory")
_LOOK_AGAIN = 60.0  # seconds after which files of what others have erased are looked for


class OpenIndexes:
    """The indexes of sessions and corpora by their numbers, and their files. Safe to use from several threads.

    Args:
        database: holds the rows.
        hot: the account of memory.
        tiers: bounds the files.

    Raises:
        StoreError: the folder of the files cannot be written.
    """

    def __init__(self, database: Backend, hot: Hot, tiers: Tiers) -> None:
        self._database, self._hot, self._limit = database, hot, tiers.warm_bytes
        self.folder = warm.folder_of(database, tiers.folder)
        self._foreign = tiers.folder is not None or Capability.MANY_HOSTS in database.capabilities  # others erase unseen
        self._open: dict[int, Indexes] = {}
        self._used: set[int] = set()  # since the last `settle`
        self.uses: Counter[str] = Counter()  # by the tier that an index was in: hot, warm or cold
        self._mutex = ThreadLock()
        self._looked = float("-inf")
        if not database.read_only:
            warm.drop_former(database, tiers.folder)
            if self._foreign:
                with suppress(SessionBusyError):  # it is tried again with the first work
                    warm.open_folder(self.folder, database)
                    self._looked = time.monotonic()
            self._trim()

    def get(self, row: CollectionRow, shape: Shape, decode: Callable[[Sequence[int]], str]) -> Indexes:
        """Return the indexes of a session or corpus, opening them on first use.

        Args:
            row: the session or corpus.
            shape: of the model that reads it.
            decode: token ids to text.
        """
        from .indexing import new_indexes

        with self._mutex.held():
            opened, paths = self._open.get(row.id), self.paths(row.id)
            self.uses["hot" if opened else "warm" if paths[0].exists() else "cold"] += 1
            if opened is None:
                opened = self._open[row.id] = new_indexes(paths, shape, decode)
                for index in filter(None, opened):
                    index.read_only = self._database.read_only
                self._touch(row.id)
            self._used.add(row.id)
            return opened

    def paths(self, collection: int) -> tuple[Path, Path, Path]:
        """Return the files of a session's or corpus's indexes of memory, words and keys by meaning."""
        names = f"{collection}.index", f"{collection}.words", f"{collection}.keys"
        first, second, third = (self.folder / name for name in names)
        return first, second, third

    def settle(self) -> None:
        """Note how large the indexes are that were used, and let go of the least recently used. Hold no view of rows."""
        with self._mutex.held():
            used, self._used = self._used, set()
            for number in used & self._open.keys():
                self._hot.keep("indexes", _key(number), _bytes(self._open[number]), partial(self._let_go, number))
        if used:
            self._hot.using({_key(number) for number in used})
        self._hot.settle()

    def keep_up(self, collection: int) -> None:
        """Write the files of an index of which much is new, so that whoever opens it next finds it."""
        opened = self._open.get(collection)
        if opened is not None and opened.memory.is_behind:
            self.save(collection, opened)

    def looks_again(self) -> bool:
        """Return, once in a while, that it is time to `drop_outdated`."""
        due = self._foreign and not self._database.read_only and time.monotonic() - self._looked > _LOOK_AGAIN
        if due:
            self._looked = time.monotonic()
        return due

    def drop_outdated(self) -> None:
        """Delete the files of what others have erased."""
        with suppress(SessionBusyError, StoreError, OSError):
            warm.drop_outdated(self.folder, self._database)

    def save(self, collection: int, indexes: Indexes, *, always: bool = False) -> None:
        """Write an index, unless its session or corpus was deleted or rewritten. Nobody can do that meanwhile.

        Args:
            collection: the number of the session or corpus.
            indexes: its indexes.
            always: whether to write them even if little is new.
        """
        if self._database.read_only or (self._limit is not None and _bytes(indexes) > self._limit):
            return
        try:
            with self._database.exclusive(), self._database.reading() as db:
                row = db.collection(collection)
                if row is not None:
                    for index in filter(None, indexes):
                        index.save(db, shelf_of(db, row), always=always)
        except (SessionBusyError, StoreError) as error:
            log.warning("the index of collection %d is not saved: %s", collection, error)
        self._trim()

    def _touch(self, collection: int) -> None:
        if not self._database.read_only:
            for path in self.paths(collection):
                warm.touch(path)

    def _trim(self) -> None:
        if self._limit is not None:
            with suppress(OSError):
                warm.trim(self.folder, self._limit)

    def drop(self, collection: int) -> None:
        """Let go of the indexes of a session or corpus, in memory and on disk, before its content changes."""
        with self._mutex.held():
            self._open.pop(collection, None)
            self._hot.drop(_key(collection))
        self.drop_files(collection)

    def drop_files(self, collection: int) -> None:
        """Delete the files of an index, before some of its content is erased; those before the folder was chosen, too.

        Raises:
            StoreError: one of them cannot be deleted.
        """
        for path in self.paths(collection):
            try:
                derived.remove(path)
                derived.remove(self._database.cache / path.name)
            except OSError as error:
                raise StoreError(
                    f"the index {path} cannot be deleted ({error}), so nothing is forgotten. Make it deletable, and try again."
                ) from error

    def close(self) -> None:
        """Save all indexes."""
        for collection, indexes in list(self._open.items()):
            self.save(collection, indexes)

    def _let_go(self, collection: int) -> None:
        with self._mutex.held():
            indexes = self._open.pop(collection, None)
            self._hot.drop(_key(collection))  # somebody may have used it since it was chosen
        if indexes is not None and indexes.memory.is_behind:
            self.save(collection, indexes)
        self._touch(collection)


def _bytes(indexes: Indexes) -> int:
    return sum(index.nbytes for index in indexes if index)


def _key(collection: int) -> tuple[str, int]:
    return "indexes", collection
