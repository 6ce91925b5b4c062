"""A session as it is stored: looked at, forked, forgotten and exported without a model. `session` adds the model.

Knows rows and the stored history; imports no torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..chat.transcript import Transcript
from ..engine.fingerprint import fingerprint
from ..errors import InputError, SessionNotFoundError
from ..retrieval.citations import Message, as_message, utc
from ..store import lineage, rewriting
from ..store.rows import CollectionRow
from . import archive, retention
from .collection import Collection
from .made_by import check_made_by, made_by
from .names import check_new, is_aside, normal

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..model import HMTModel
    from ..store.rows import Lineage
    from ..store.transaction import Transaction
    from .reading import Progress
    from .storage import Storage


class Forgotten(NamedTuple):
    """The result of `Session.forget`."""

    messages: int
    also_in: tuple[str, ...]  # sessions that share a forgotten message and still keep it


class StoredSession(Collection):
    """One conversation in a store, without a model; `MemoryStore.session` makes it.

    Nothing can be added to it, answered or recalled: that takes a `Session`, which has a model.
    """

    def __init__(self, store: Storage, row: CollectionRow, model: HMTModel | None = None) -> None:
        super().__init__(store, row, model)
        self._oldest: retention.Oldest | None = None

    def add(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: adding takes a model."""
        self._needs_model()

    def reply(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: answering takes a model."""
        self._needs_model()

    def explain(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: a view is assembled for a model."""
        self._needs_model()

    def recall(self, *_: Any, **__: Any) -> Any:
        """Raise InputError: recalling takes a model."""
        self._needs_model()

    def _read_pending(self, progress: Progress | None = None) -> object:
        """Leave unread tokens to the next call that has a model."""
        return None

    def messages(self, start: int = 0, stop: int | None = None) -> list[Message]:
        """Return the conversation in order, system messages included; [start, stop) as in a slice."""
        rows = self._database.read(lambda db: lineage.messages(db, lineage.of(db, self._row(db)), start, stop))
        return [as_message(row) for row in rows]

    def system(self) -> str:
        """Return the system prompt in force; empty if it is the template's own."""
        with self._database.reading() as db:
            return "\n\n".join(rewriting.system_in_force(db, lineage.of(db, self._row(db))))

    def stats(self) -> dict[str, Any]:
        """Return counts, times and settings, ready for JSON."""
        return self._database.read(self._stats)

    def _stats(self, db: Transaction) -> dict[str, Any]:
        row = self._row(db)
        parts = lineage.of(db, row)
        messages, tokens = lineage.size(parts)
        corpora = (db.collection(number) for number in row.settings.get("corpora", []))
        return {
            "name": row.name,
            "messages": messages,
            "tokens": tokens,
            "segments": lineage.segment_count(db, parts),
            "created_at": utc(row.created_at).isoformat(timespec="seconds"),
            "updated_at": utc(row.updated_at).isoformat(timespec="seconds"),
            "model": None if (reader := made_by(db, row)) is None else str(reader),
            "corpora": [corpus.name for corpus in corpora if corpus is not None],
            "memory_bits": row.memory_bits,
            "retention": row.settings.get("retention", {}),
        }

    def epoch(self) -> tuple[int, int]:
        """Return what no other session has, and what changes whenever messages are forgotten or replaced."""
        with self._database.reading() as db:
            row = self._row(db)
        return row.id, row.epoch

    @property
    def number(self) -> int:
        """The session's number in its store, which it keeps when it is renamed."""
        return self._id

    def upcoming(self) -> int:
        """Return the id that the next message has at the least; no message is given one that was given before."""
        with self._database.reading() as db:
            return self._row(db).next_id

    def from_id(self, message: int, most: int) -> list[Message]:
        """Return the messages from the first on whose id is not below one.

        Args:
            message: the id; there may be no such message any more.
            most: how many, at most.
        """
        with self._database.reading() as db:
            parts = lineage.of(db, self._row(db))
            first = _count_before(db, parts, message)
            return [as_message(row) for row in lineage.messages(db, parts, first, first + most)]

    def count_before(self, message: int) -> int:
        """Count the messages whose ids are below one."""
        with self._database.reading() as db:
            return _count_before(db, lineage.of(db, self._row(db)), message)

    def metadata(self) -> dict[str, str]:
        """Return what a client has noted about the session."""
        with self._database.reading() as db:
            return dict(self._row(db).settings.get("metadata", {}))

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Note something about the session, instead of what was noted before. A fork does not take it over."""
        self._database.write(lambda db: self._set(db, metadata=dict(metadata)))

    def held(self, message_ids: Iterable[int]) -> list[int]:
        """Return those of some ids that messages of this session have."""
        with self._database.reading() as db:
            return sorted(lineage.positions(db, lineage.of(db, self._row(db)), set(message_ids)))

    def fork(self, name: str, *, upto: int | None = None) -> Self:
        """Make a new session that shares this one's past and goes its own way from here.

        Args:
            name: of the new session.
            upto: id of the last message to share; None: all.

        Raises:
            SessionExistsError: the name is taken.
            SessionNotFoundError: there is no such message.
        """

        def forked(db: Transaction) -> CollectionRow:
            check_new(db, "session", name)
            return rewriting.fork(db, self._row(db), normal(name), upto, now=self._store.now())

        return type(self)(self._store, self._database.write(forked), self._model)

    def forget(self, message_ids: Sequence[int], *, progress: Progress | None = None) -> Forgotten:
        """Erase messages for good: rows, every embedding that saw them, index entries, and the bytes in all files.

        Later messages are kept and read again, as if the forgotten ones had never been said; without a model, by the next call
        that has one. The erasure comes first and is durable before the reading begins. Sessions that a server keeps for answers
        which go on from this one forget the messages before it does: a call that fails can be made again.

        Args:
            message_ids: of the messages.
            progress: called with the tokens read so far and the tokens to read.

        Raises:
            SessionNotFoundError: an id is neither in this session nor in one of those; nothing is forgotten then.
            SessionBusyError: another process is writing.
        """
        ids = set(message_ids)
        if not ids:
            return Forgotten(0, ())
        with self._database.reading() as db:
            row, aside = self._row(db), held_aside(db, self._id, ids)
            rewriting.positions(db, row, lineage.of(db, row), ids.difference(*(held for _, held in aside)))  # checks them
        forget_aside(self._store, self._id, ids)
        here = self.held(ids)
        sharing = self._forgotten(here, progress).sharing if here else ()
        forget_aside(self._store, self._id, ids)  # what was made meanwhile
        return Forgotten(len(ids), tuple(name for name in sharing if not is_aside(name)))

    def _forgotten(self, ids: Iterable[int], progress: Progress | None = None) -> rewriting.Forgotten:
        """Erase messages and read those after them again."""

        def work() -> rewriting.Forgotten:
            with self._reading():
                forgotten = self._forget(ids)
                with self._done_already():
                    self._read_pending(progress)
            return forgotten

        return self._database.again(work)

    def _forget(self, ids: Iterable[int]) -> rewriting.Forgotten:
        """Erase messages, inside `_reading`."""
        forgotten = rewriting.forget(self._database, self._id, ids, settle=self._without_index)
        self._finish(forgotten.erasure)
        return forgotten

    def _finish(self, erasure: int) -> None:
        """Overwrite erased content, and join streams that the rewriting has split."""
        self._store.finish_erasing(erasure)
        with self._done_already():
            with self._database.reading() as db:
                row = db.collection(self._id)
                split = row is not None and row.stream is not None and db.stream(row.stream).parent is not None
            if split:
                self._database.erasing(lambda db: rewriting.compact(db, self._row(db)))

    def rebuild(self, model: HMTModel, *, progress: Progress | None = None) -> StoredSession:
        """Read the stored conversation again with `model`: from its tokens, or from its text if they differ for the model.

        Returns:
            The session for that model, a `Session`; this object is then out of date.
        """
        return self._database.again(lambda: self._rebuilt(model, progress))

    def _rebuilt(self, model: HMTModel, progress: Progress | None) -> StoredSession:
        """Move the conversation to a model and read it."""
        with self._reading():
            with self._database.reading() as db:
                row = self._row(db)
            archive.settle(self._database, row, model)
            transcript, made_by = Transcript(model.backbone), fingerprint(model)
            moved = rewriting.move(self._database, self._id, transcript, made_by, settle=self._read_anew)
            self._finish(moved.erasure)
            session: StoredSession = self._store.session_of(moved.row, model)
            with self._done_already():
                session._read_pending(progress)
        return session

    def attach(self, *corpora: str) -> None:
        """Let this session recall from corpora of the same store, read by the same model.

        Raises:
            SessionNotFoundError: there is no such corpus.
            ModelMismatchError: another model read it.
        """

        def work(db: Transaction) -> None:
            attached = [self._store.find(db, "corpus", name) for name in corpora]
            for corpus in attached if self._model is not None else ():
                check_made_by(db, corpus, self._made_by)
            self._set(db, corpora=sorted({*self._row(db).settings.get("corpora", []), *(corpus.id for corpus in attached)}))

        self._database.write(work)

    def detach(self, *corpora: str) -> None:
        """Let this session no longer recall from corpora."""

        def work(db: Transaction) -> None:
            gone = {self._store.find(db, "corpus", name).id for name in corpora}
            self._set(db, corpora=[number for number in self._row(db).settings.get("corpora", []) if number not in gone])

        self._database.write(work)

    def set_retention(self, *, messages: int | None = None, age: timedelta | None = None) -> None:
        """Keep at most so many messages, and none older than `age`; None: no limit. The rest is forgotten, now and from now on.

        Forgetting the oldest re-reads the others, so a quarter (by count) or a tenth (by age) is forgotten ahead. The system
        messages in force do not count and are kept.

        Raises:
            InputError: fewer than one message, or an age that is not positive.
        """
        if (messages is not None and messages < 1) or (age is not None and age <= timedelta(0)):
            raise InputError("a limit must keep at least one message, and an age must be positive.")
        limits = {"messages": messages, "seconds": None if age is None else age.total_seconds()}
        kept = {name: value for name, value in limits.items() if value is not None}
        row = self._database.write(lambda db: self._set(db, retention=kept))
        self._database.again(lambda: self._apply_retention(row, asked=True))

    def export(self, path: str | Path) -> None:
        """Write the whole session into one file (`docs/reference/format.md`), which `MemoryStore.import_session` reads.

        Raises:
            StoreError: the file cannot be written.
        """
        archive.export_session(self._database, self._id, Path(path))

    def _without_index(self, row: CollectionRow) -> CollectionRow:
        """Delete the index of a session that is about to change, in the transaction that changes it."""
        self._store.drop_index(row.id)
        return row

    def _read_anew(self, row: CollectionRow) -> CollectionRow:
        return self._store.in_memory_bits(self._without_index(row))

    def _set(self, db: Transaction, **settings: Any) -> CollectionRow:
        row = self._row(db)
        return db.update_collection(replace(row, settings={**row.settings, **settings}))

    def _apply_retention(self, row: CollectionRow, *, asked: bool = False) -> None:
        """Forget messages beyond the limits; `asked`: a caller who knows the time asks for it."""
        if not row.settings.get("retention"):
            return
        with self._database.reading() as db:
            now, clock = retention.time_of(db, row, self._store.now())
        now = self._store.now() if asked else now
        if clock is not None:
            with self._database.writing() as db:
                retention.note(db, clock)
        if not (due := self._beyond_limits(now)):
            return
        forget_aside(self._store, self._id, due)
        with self._reading():
            if due := self._beyond_limits(now):  # others may have forgotten them
                self._forget(due)
            with self._done_already():
                self._read_pending()

    def _beyond_limits(self, now: float) -> set[int]:
        """Return the ids of the messages beyond the limits."""
        with self._database.reading() as db:
            row = self._row(db)
            self._oldest = retention.oldest(db, row, self._oldest)
            return retention.beyond_limits(db, row, now, self._oldest)


def held_aside(db: Transaction, number: int, message_ids: Iterable[int] | None = None) -> list[tuple[CollectionRow, set[int]]]:
    """Return the sessions that a server keeps for answers which go on from a session, with the messages that they share of it.

    Args:
        db: the transaction to look in.
        number: of the session.
        message_ids: those that count; None: all.
    """
    wanted, found = None if message_ids is None else set(message_ids), []
    for row in db.collections("session"):
        own = dict(row.settings.get("forked", ())).get(number)  # the ids of its own messages begin there
        if own is not None and is_aside(row.name):
            parts = lineage.of(db, row)
            if wanted is None:
                held = {message.id for message in lineage.messages(db, parts, 0, _count_before(db, parts, own))}
            else:
                held = set(lineage.positions(db, parts, {message for message in wanted if message < own}))
            found += [(row, held)] if held else []
    return found


def forget_aside(store: Storage, number: int, message_ids: Iterable[int] | None = None) -> None:
    """Erase messages of a session from the sessions that a server keeps for answers which go on from it.

    Args:
        store: holds them.
        number: of the session.
        message_ids: of its messages; None: all that the others share of it.
    """
    for row, held in store.database.read(lambda db: held_aside(db, number, message_ids)):
        with suppress(SessionNotFoundError):  # it was deleted, or the messages were forgotten, meanwhile
            StoredSession(store, row)._forgotten(held)


def _count_before(db: Transaction, parts: Lineage, message: int) -> int:
    """Return how many messages of a lineage have ids below one; ids rise."""
    size = lineage.size(parts)[0]
    return bisect_left(range(size), message, key=lambda seq: lineage.messages(db, parts, seq, seq + 1)[0].id)
