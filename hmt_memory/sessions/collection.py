"""The common ground of sessions and corpora: a row in a store, the model that reads into it, one reader at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from ..chat.transcript import Transcript
from ..engine.fingerprint import Fingerprint, fingerprint
from ..errors import InputError, SessionBusyError, SessionNotFoundError, StoreDamagedError, StoreError, StoreInterruptedError
from ..store.index.derived import RewrittenError
from ..store.rows import CollectionRow
from .made_by import check_made_by, made_by

if TYPE_CHECKING:
    from ..model import HMTModel
    from ..store.transaction import Transaction
    from .storage import Storage

T = TypeVar("T")
log = logging.getLogger("hmt_memory")


class Collection:
    """A session or a corpus in a store.

    Raises:
        ModelMismatchError: another model made its memory.
    """

    def __init__(self, store: Storage, row: CollectionRow, model: HMTModel | None = None) -> None:
        self._store, self._database, self._model = store, store.database, model
        self._id, self._kind, self.name = row.id, row.kind, row.name
        self._own_model: int | None = None  # the record of this model, once a row has named it: records never change
        if model is not None:
            self._made_by, self._transcript = fingerprint(model), Transcript(model.backbone)
            with self._database.reading() as db:
                check_made_by(db, row, self._made_by)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def kind(self) -> str:
        """The kind of the collection: "session" or "corpus"."""
        return self._kind

    @property
    def model(self) -> HMTModel | None:
        """The model that reads into it; None if it was opened without one."""
        return self._model

    def version(self) -> tuple[int, int]:
        """Return two numbers: the first changes when something is rewritten or erased, the second with any change."""
        with self._database.reading() as db:
            row = self._row(db)
        return row.epoch, row.revision

    def made_by(self) -> Fingerprint | None:
        """Return the fingerprint of the model that made the memory; None if nothing was added yet."""
        with self._database.reading() as db:
            return made_by(db, self._row(db))

    def _needs_model(self) -> HMTModel:
        if self._model is None:
            kind = self._kind
            raise InputError(f"{kind} {self.name!r} was opened without a model. Open it with one: store.{kind}(name, model)")
        return self._model

    def _row(self, db: Transaction) -> CollectionRow:
        row = db.collection(self._id)
        if row is None:
            raise SessionNotFoundError(f"{self._kind} {self.name!r} was deleted.")
        return row

    def _own_row(self, db: Transaction) -> CollectionRow:
        """Return the row, if it is this model's."""
        row = self._row(db)
        if row.model is None or row.model != self._own_model:
            check_made_by(db, row, self._made_by)
            self._own_model = row.model
        return row

    def _in_one_view(self, work: Callable[[], T]) -> T:
        """Work on one view of the rows; if an index is ahead of it, work again on a newer view."""
        deadline = time.monotonic() + self._database.timeout
        while True:
            try:
                made = self._database.read(lambda _: work())
            except RewrittenError:
                if time.monotonic() > deadline:
                    raise
            else:
                self._store.settle()
                return made

    @contextmanager
    def _stored_already(self) -> Iterator[None]:
        """Log and swallow failures of derived writes: the rows are durable, the next call redoes the rest."""
        try:
            yield
        except StoreDamagedError:
            raise
        except (StoreError, SessionBusyError) as error:
            level = logging.DEBUG if isinstance(error, SessionBusyError) else logging.WARNING  # the one who holds it reads it
            log.log(level, "%s %r is stored, but reading it into memory waits: %s", self._kind, self.name, error)

    @contextmanager
    def _done_already(self) -> Iterator[None]:
        """Log and swallow an interruption: it is not one of a call that has stored nothing. The next call does the rest."""
        try:
            yield
        except StoreInterruptedError as error:
            log.warning("%s %r is stored, but reading it into memory waits: %s", self._kind, self.name, error)

    @contextmanager
    def _reading(self, *, wait: bool = True) -> Iterator[None]:
        """Let one reader in at a time: threads queue, another process waits briefly.

        Raises:
            SessionBusyError: somebody else has been reading for too long.
        """
        mutex = self._store.reading_mutex(self._id)
        if not mutex.acquire(blocking=wait):
            raise SessionBusyError(f"another thread is reading into {self._kind} {self.name!r}. Try again.")
        with ExitStack() as held:
            held.callback(mutex.release)
            try:
                held.enter_context(self._database.lock(f"{self._kind}-{self._id}", timeout=None if wait else 0))
            except SessionBusyError as error:
                raise SessionBusyError(
                    f"another process has been writing {self._kind} {self.name!r} for {self._database.timeout:g} s. Nothing "
                    "was stored; try again, or open the store with a longer timeout."
                ) from error
            yield
        self._store.settle()
