"""`MemoryStore`: one store of sessions and corpora. Opens them, lists, renames, deletes, searches, verifies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ..engine.fingerprint import fingerprint
from ..errors import InputError
from ..store import lineage, rewriting
from ..store.open import place_of
from ..store.rows import OWED, CollectionRow
from .backup import back_up
from .made_by import made_by
from .names import check_name, check_new, normal
from .storage import Storage
from .stored_corpus import StoredCorpus
from .stored_session import StoredSession, forget_aside, held_aside
from .verify import Verification, verify

if TYPE_CHECKING:
    from ..config import ViewConfig
    from ..model import HMTModel
    from ..store.transaction import Transaction
    from .corpus import Corpus
    from .lookup import FoundText
    from .reading import Progress
    from .session import Session


class MemoryStore(Storage):
    """Sessions and corpora in one folder, in one SQLite database with disposable index files beside it; or in PostgreSQL.

    Several processes may use a folder at once, on one machine, and a database server on many; several threads may use one
    object. Its arguments are those of
    `Storage`: folder, and by keyword index, timeout, clock, read_only, tiers, background and memory_bits.
    """

    def __repr__(self) -> str:
        return f"MemoryStore({self.place!r})"

    @overload
    def session(self, name: str, model: HMTModel, *, view: ViewConfig | None = None) -> Session: ...
    @overload
    def session(self, name: str, model: None = None) -> StoredSession: ...
    def session(self, name: str, model: HMTModel | None = None, *, view: ViewConfig | None = None) -> StoredSession:
        """Create a session, or resume it.

        Args:
            name: any text of up to 200 characters that can be printed on one line.
            model: reads and answers. Without one, an existing session can be looked at, forked, exported, and forgotten
                from, and torch is not imported.
            view: the view of its answers, instead of the model's own.

        Raises:
            ModelMismatchError: another model made its memory.
            SessionNotFoundError: it does not exist, and there is no model to create it for.
            InputError: the name is impossible.
        """
        row = self.database.again(lambda: self._open("session", name, model))
        return StoredSession(self, row) if model is None else self.session_of(row, _viewed(model, view))

    @overload
    def corpus(self, name: str, model: HMTModel, *, view: ViewConfig | None = None) -> Corpus: ...
    @overload
    def corpus(self, name: str, model: None = None) -> StoredCorpus: ...
    def corpus(self, name: str, model: HMTModel | None = None, *, view: ViewConfig | None = None) -> StoredCorpus:
        """Create a corpus, or open it.

        Args:
            name: as of a session.
            model: reads and answers. Without one, an existing corpus can be looked at and documents removed.
            view: the view of its answers, instead of the model's own.

        Raises:
            ModelMismatchError: another model made its memory.
            SessionNotFoundError: it does not exist, and there is no model to create it for.
            InputError: the name is impossible.
        """
        row = self.database.again(lambda: self._open("corpus", name, model))
        return StoredCorpus(self, row) if model is None else self.corpus_of(row, _viewed(model, view))

    def _open(self, kind: str, name: str, model: HMTModel | None) -> CollectionRow:
        check_name(name)
        name = normal(name)
        with self.database.reading() as db:
            row = self.find(db, kind, name) if model is None else db.find_collection(kind, name)
        if row is not None:
            return row
        return self.database.write(lambda db: self._made(db, kind, name))

    def _made(self, db: Transaction, kind: str, name: str) -> CollectionRow:
        """Return the session or corpus of a name, made unless somebody was first."""
        row = db.find_collection(kind, name)
        if row is None:
            check_new(db, kind, name)
            stream = lineage.add_stream(db) if kind == "session" else None
            row = db.add_collection(kind, name, stream=stream, now=self.now())
            if (wanted := self.in_memory_bits(row)).memory_bits != row.memory_bits:
                row = db.update_collection(wanted)
        return row

    def named(self, kind: str, number: int) -> str | None:
        """Return the name of the session or corpus of a number; None: there is none.

        Args:
            kind: "session" or "corpus".
            number: as its `number` says.
        """
        with self.database.reading() as db:
            row = db.collection(number)
        return None if row is None or row.kind != kind else row.name

    def unused(self, before: float) -> list[str]:
        """Return the names of sessions that were made before a time, to which nothing was added since, and which owe nothing.

        Args:
            before: seconds since 1970, UTC.
        """
        with self.database.reading() as db:
            rows = db.collections("session")
        return [row.name for row in rows if row.updated_at == row.created_at < before and OWED not in row.settings]

    def sessions(self) -> list[str]:
        """Return the names of all sessions, sorted."""
        return self._names("session")

    def corpora(self) -> list[str]:
        """Return the names of all corpora, sorted."""
        return self._names("corpus")

    def has(self, kind: str, name: str, opened: StoredSession | StoredCorpus | None = None) -> bool:
        """Return whether there is a session or corpus of a name.

        Args:
            kind: "session" or "corpus".
            name: its name.
            opened: whether it is still this one; None: any.
        """
        with self.database.reading() as db:
            row = db.find_collection(kind, normal(name))
        return row is not None and (opened is None or opened._id == row.id)

    def _names(self, kind: str) -> list[str]:
        return self.database.read(lambda db: db.names(kind))

    def delete(self, name: str, *, aside: bool = True) -> None:
        """Delete a session: rows, index, and the bytes in all files. Its forks keep what they share of it.

        Args:
            name: of the session.
            aside: whether sessions that a server keeps for answers which go on from it forget it first, so that a call which
                fails can be made again; otherwise they keep what they share, as other forks do.

        Raises:
            SessionNotFoundError: no session has that name.
        """
        self._delete("session", name, aside=aside)

    def delete_corpus(self, name: str) -> None:
        """Delete a corpus in the same way; sessions it was attached to go on without it."""
        self._delete("corpus", name)

    def _delete(self, kind: str, name: str, *, aside: bool = False) -> None:
        def work(db: Transaction) -> tuple[int, int | None]:
            row = self.find(db, kind, name)
            if aside and held_aside(db, row.id):
                return row.id, None
            erasure = db.begin_erasure()
            rewriting.abandon_drafts(db, row.id, erasure)
            db.delete_collection(row, erasure)
            self.drop_index(row.id)
            return row.id, erasure

        collection, erasure = self.database.erasing(work)
        while erasure is None:
            forget_aside(self, collection)
            collection, erasure = self.database.erasing(work)
        self.finish_erasing(erasure)
        self.database.forget_lock(f"{kind}-{collection}")

    def rename(self, name: str, new: str) -> None:
        """Give a session another name.

        Raises:
            SessionNotFoundError: no session has that name.
            SessionExistsError: the new name is taken.
        """
        self._rename("session", name, new)

    def rename_corpus(self, name: str, new: str) -> None:
        """Give a corpus another name; sessions that it is attached to go on recalling from it."""
        self._rename("corpus", name, new)

    def _rename(self, kind: str, name: str, new: str) -> None:
        def work(db: Transaction) -> int:
            row, erasure = self.find(db, kind, name), db.begin_erasure()
            check_new(db, kind, new)
            db.rename_collection(row, normal(new), erasure)
            return erasure

        self.finish_erasing(self.database.write(work))

    def search(self, query: str, *, top_k: int = 10, names: Sequence[str] | None = None) -> list[FoundText]:
        """Return the messages of all sessions that share most words with a query. Takes no model; reads all of their text.

        Args:
            query: its words count.
            top_k: how many, at most.
            names: of the sessions to search; None: all.

        Raises:
            InputError: the query has no word.
            SessionNotFoundError: there is no such session.
        """
        from . import lookup

        chosen = self.sessions() if names is None else names
        return lookup.best(query, [lookup.messages_as_found(name, self.session(name).messages()) for name in chosen], top_k)

    def search_corpora(self, query: str, *, top_k: int = 10, names: Sequence[str] | None = None) -> list[FoundText]:
        """Return the paragraphs of all corpora that share most words with a query. Takes no model.

        Args:
            query: its words count.
            top_k: how many, at most.
            names: of the corpora to search; None: all.

        Raises:
            InputError: the query has no word.
            SessionNotFoundError: there is no such corpus.
        """
        from . import lookup

        chosen = self.corpora() if names is None else names
        documents = [(name, document) for name in chosen for document in self.corpus(name).documents()]
        return lookup.best(query, [lookup.paragraphs_as_found(*pair) for pair in documents], top_k)

    def import_session(
        self, path: str | Path, *, name: str | None = None, model: HMTModel | None = None, progress: Progress | None = None
    ) -> StoredSession:
        """Add the session of an exported file, after checking all of it.

        Args:
            path: the file.
            name: another name for it.
            model: opens the session, which is read again if another model made it; None: no model.
            progress: called with the tokens read so far and the tokens to read.

        Raises:
            StoreDamagedError: the file is not whole, or not an export.
            SessionExistsError: the name is taken.
            InputError: the name is impossible, or the model's template has no place for a message. Nothing is added then.
        """
        from .archive.importing import import_session

        row = import_session(self, Path(path), name)
        if model is None:
            return StoredSession(self, row)
        try:
            return self._imported(row, model, progress)
        except InputError:  # the template has no place for one of its messages
            self.delete(row.name)
            raise

    def _imported(self, row: CollectionRow, model: HMTModel, progress: Progress | None) -> StoredSession:
        with self.database.reading() as db:
            stored = made_by(db, row)
        if stored is None or stored.digest == fingerprint(model).digest:
            return self.session_of(row, model)
        return StoredSession(self, row).rebuild(model, progress=progress)

    def backup(self, folder: str | Path) -> None:
        """Write a copy of the whole store, as of one moment, and verify it. Others may write meanwhile.

        Indexes, which can be made again, are left out. The copy is a store like any other; messages forgotten later are still
        in it.

        Args:
            folder: must not exist, or be empty; or the URL of a database, `postgresql://host/database`, without a store.

        Raises:
            InputError: the folder or database holds something.
            StoreError: the folder cannot be written.
            StoreDamagedError: the copy is not whole. No copy is left then.
        """
        back_up(self, place_of(folder))

    def verify(self, name: str | None = None) -> Verification:
        """Read every row of a session (None: of everything, with SQLite's own check) and follow every digest.

        Runs no model: only `rebuild` makes sure that embeddings are those of their tokens.
        """
        return verify(self, name)

    def session_of(self, row: CollectionRow, model: HMTModel) -> Session:
        """Return the session of a row for a model."""
        from .session import Session

        return Session(self, row, model)

    def corpus_of(self, row: CollectionRow, model: HMTModel) -> Corpus:
        """Return the corpus of a row for a model."""
        from .corpus import Corpus

        return Corpus(self, row, model)


def _viewed(model: HMTModel, view: ViewConfig | None) -> HMTModel:
    return model if view is None else model.with_view(view)
