"""A session's memory: brought up to date with its rows, recalled from, and asked.

Memory is a function of the stored tokens. Tokens that are not read yet, after a crash or behind a reply, are read by the next
call that needs them.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..chat.transcript import Batch
from ..engine.generate import beginning
from ..engine.modes import eval_mode
from ..engine.state import HMTState
from ..engine.turns import Turns
from ..errors import InputError, SessionBusyError, StoreDamagedError
from ..retrieval import ranking
from ..retrieval.ranking import RecalledSegment, RecalledSegments, Sources
from ..retrieval.sources import Draft, SessionShard, Shard
from ..store import lineage, rewriting
from ..store.rows import CollectionRow, Lineage, MessageRow
from ..store.shelf import Shelf, volume
from . import archive
from .corpus import corpus_shard
from .made_by import check_made_by
from .reading import CHUNK_SEGMENTS, Progress, load_state, read_on, segment_rows
from .storage import memories_of
from .stored_session import StoredSession

if TYPE_CHECKING:
    from ..config import ViewConfig
    from ..model import HMTModel
    from ..store.transaction import Transaction
    from .storage import Storage

_LATEST = 16  # latest messages, searched for the user's last one
_MOST_SHOWN = 256  # latest messages that another model may be shown
_EXPECTED = ({"role": "user", "content": "What was it that I told you about this the other day?"},)  # of a usual length


@dataclass(frozen=True)
class Snapshot:
    """The stored session as of one revision, and its state up to where it has been read."""

    row: CollectionRow
    parts: Lineage
    state: HMTState

    @property
    def tokens(self) -> int:
        """The number of stored tokens."""
        return lineage.size(self.parts)[1]

    @property
    def namespace(self) -> Hashable:
        """The name space of what is kept of views: forks share what they share."""
        return self.parts[0].stream


class Asked(NamedTuple):
    """The messages that are to be answered, as they follow a session."""

    snapshot: Snapshot
    batch: Batch
    system: str | None
    draft: Draft
    question: str  # the user's last message
    asked_at: int | None  # the token where it begins
    turns: Turns


def _followed(snapshot: Snapshot, row: CollectionRow, batch: Batch) -> Snapshot:
    """Return a session behind messages that fill no segment, without asking the store for what is known."""
    state, (*before, tip) = snapshot.state, snapshot.parts
    messages, tokens = tip.messages[1] + len(batch.messages), tip.tokens[1] + len(batch.ids)
    tip = tip._replace(messages=(tip.messages[0], messages), tokens=(tip.tokens[0], tokens))
    open_ids = torch.cat([state.open_ids, torch.tensor(batch.ids, dtype=torch.long)])
    return Snapshot(row, (*before, tip), replace(state, open_ids=open_ids, tokens=tokens))


class SessionMemory(StoredSession):
    """A session with the model that reads it; `Session` adds and answers.

    Safe to use from several threads: calls that read wait for one another.
    """

    def __init__(self, store: Storage, row: CollectionRow, model: HMTModel | None = None) -> None:
        super().__init__(store, row, model)
        self._cache: Snapshot | None = None
        self._kept = memories_of(row.id), object()  # its key in the account of memory
        weakref.finalize(self, store.hot.drop, self._kept).atexit = False
        if model is not None and row.settings.get(archive.UNVERIFIED):
            with self._reading():
                archive.settle(self._database, row, model)

    def recall(self, query: str, top_k: int = 5, *, before: int | None = None) -> RecalledSegments:
        """Return the segments a text remembers most, of this conversation and the attached corpora, by falling weight.

        Args:
            query: what to recall for.
            top_k: how many, at most.
            before: id of a message; only what was said before it is recalled. A question that was added already shares every
                word with itself.

        Returns:
            A list with `.coverage`: the least share of the softmax over all segments that fell on those preselected.

        Raises:
            InputError: the query is empty or `top_k` below 1.
            SessionNotFoundError: there is no message `before`.
        """
        model = self._needs_model()
        snapshot = self._database.again(self._within_limits)
        length = model.config.segment_length
        with self._unless_rewritten(snapshot):
            # A segment counts if any of it was said before.
            asked_at = None if before is None else -(-self._place(snapshot, before)[1] // length) * length
            return ranking.recall(model, self._sources(snapshot, asked_at=asked_at), query, top_k)

    def latest(self) -> RecalledSegment | None:
        """Return the latest words, which fill no segment yet, so that nothing recalls them; their weight is 0."""
        snapshot = self._database.again(self._up_to_date)
        with self._unless_rewritten(snapshot):
            cited = self._in_one_view(lambda: self._own_shard(snapshot).cite_open(snapshot.tokens))
        return ranking.segment(cited, 0.0, 1.0) if cited.text.strip() else None

    def prepare(
        self,
        *,
        instructions: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        view: ViewConfig | None = None,
    ) -> None:
        """Make what the next answer needs, ahead of its question: the session's memory, indexes, and the view's beginning.

        Answers are the same with and without. What was stored and not read yet is read first. Nothing is forgotten.

        Args:
            instructions: as of that answer, like the rest.
            tools: functions that it may call.
            view: its budgets.
        """
        model = self._needs_model() if view is None else self._needs_model().with_view(view)
        self.keep_up()
        since = self._store.view_cache.cleared
        asked = self._asked(_EXPECTED, None, model, looking=True)
        if model.writer is not None:  # which keeps its own
            return
        system = "\n\n".join(text for text in (asked.system, instructions) if text) or None
        ids = torch.tensor(asked.batch.ids, dtype=torch.long)
        pinned = torch.tensor(self._transcript.pinned(system, tools), dtype=torch.long)
        with torch.no_grad(), eval_mode(model):
            before = beginning(model, ids, state=asked.snapshot.state, pinned=pinned, turns=asked.turns)
            self._store.view_cache.prepare(model.backbone, before, asked.snapshot.namespace, since)

    def keep_up(self) -> None:
        """Read what was stored and not read yet, and bring this session's indexes and those of attached corpora up to date."""
        snapshot = self._database.again(self._up_to_date)
        with self._unless_rewritten(snapshot):
            self._sources(snapshot)(_kept_up)

    def _up_to_date(self) -> Snapshot:
        """Read what was stored and not read yet. Returns the session afterwards."""
        with self._reading():
            return self._read_pending()

    def _within_limits(self) -> Snapshot:
        """Return the session as it is now, without messages beyond its limits."""
        with self._reading():
            snapshot = self._read_pending()
        if snapshot.row.settings.get("retention"):
            self._apply_retention(snapshot.row)
            with self._reading():
                snapshot = self._read_pending()
        return snapshot

    def _snapshot(self, *, anew: bool = False) -> Snapshot:
        """Return the session as it is now: the snapshot in memory, if nobody has written since."""
        model = self._needs_model()
        known = None if anew else self._cache
        with self._database.reading() as db:
            row = self._own_row(db)
            if known is None or known.row != row:
                parts = lineage.of(db, row)
                known = Snapshot(row, parts, load_state(db, parts, model, row.memory_bits))
        self._keep(known)
        return known

    def _keep(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in memory, as long as there is room."""
        self._cache = snapshot
        self._store.hot.keep("memories", self._kept, snapshot.state.nbytes, partial(_let_go, weakref.ref(self)))

    def _last_seen(self) -> Snapshot:
        """Return the session as this object has seen it last, inside `_reading`: whoever adds to it looks at its row anyway."""
        known = self._cache
        return self._read_pending() if known is None or self._lacks_segments(known) else known

    def _gone_on(self, snapshot: Snapshot, row: CollectionRow, batch: Batch) -> bool:
        """Keep the session as it is behind messages that nobody has added to. Returns whether that fills no segment."""
        if snapshot.state.tokens != snapshot.tokens or self._fills_segment(snapshot, batch):
            return False
        self._keep(_followed(snapshot, row, batch))
        return True

    def _seen_by(self, snapshot: Snapshot, model: HMTModel) -> Snapshot:
        """Load the snapshot's state with as many recent tokens as the model's view has room for."""
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            return replace(snapshot, state=load_state(db, snapshot.parts, model, snapshot.row.memory_bits))

    def _before(self, snapshot: Snapshot, message: int, model: HMTModel | None = None) -> Snapshot:
        """Return the session as it was before a message; its row is the present one."""
        model = model or self._needs_model()
        count, tokens = self._place(snapshot, message)
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            parts = lineage.until(snapshot.parts, count, tokens, tokens // model.config.segment_length)
            return Snapshot(snapshot.row, parts, load_state(db, parts, model, snapshot.row.memory_bits))

    def _place(self, snapshot: Snapshot, message: int) -> tuple[int, int]:
        """Return how many messages, and how many tokens, come before a message."""
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            count = rewriting.positions(db, snapshot.row, snapshot.parts, [message])[message]
            (row,) = lineage.messages(db, snapshot.parts, count, count + 1)
        return count, row.tokens[0]

    def _asked(
        self, told: Sequence[Mapping[str, Any]], replacing: int | None, model: HMTModel, *, looking: bool = False
    ) -> Asked:
        """Place checked messages behind the session, or behind what stands before a message that they replace.

        Args:
            told: the messages.
            replacing: id of the message that they replace; None: they replace none.
            model: whose view is made.
            looking: whether messages beyond the session's limits stay.
        """
        snapshot = self._database.again(self._up_to_date if looking else self._within_limits)
        if replacing is not None:
            snapshot = self._before(snapshot, replacing, model)
        elif model is not self._needs_model():  # another view
            snapshot = self._seen_by(snapshot, model)
        batch = self._transcript.batch(told, first=not snapshot.tokens)
        if not batch.ids and not snapshot.tokens:
            raise InputError("there is nothing to answer: add a message first.")
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            system = "\n\n".join(batch.system or rewriting.system_in_force(db, snapshot.parts)) or None
        draft = self._draft(snapshot, batch)
        return Asked(snapshot, batch, system, draft, *self._question(snapshot, draft, model))

    def _draft(self, snapshot: Snapshot, batch: Batch) -> Draft:
        """Place messages where they will stand in the stream once they are stored with their answer."""
        end, times = lineage.size(snapshot.parts), [self._store.now()] * len(batch.messages)
        return Draft(rewriting.rows_of(batch.messages, batch.stretches, end, snapshot.row.next_id, times), batch.ids)

    def _question(self, snapshot: Snapshot, draft: Draft, model: HMTModel) -> tuple[str, int | None, Turns]:
        """Return the user's last message, whose words select notes, the token where it begins, and where turns do."""
        stored_messages, stored_tokens = lineage.size(snapshot.parts)
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            first = max(0, stored_tokens - (model.view.recent_tokens or 0) - model.config.segment_length)
            rows = lineage.messages_in(db, snapshot.parts, first, stored_tokens)
            if not any(row.body["role"] == "user" for row in [*rows, *draft.rows]):
                rows = lineage.messages(db, snapshot.parts, max(0, stored_messages - _LATEST), stored_messages)
        said = [row for row in [*rows, *draft.rows] if row.body["role"] == "user"]
        if not said:
            return "", None, Turns()
        turns = Turns([row.tokens[0] for row in said], said[-1].content[0])
        return str(said[-1].body["content"] or ""), said[-1].tokens[0], turns

    def _read_pending(self, progress: Progress | None = None, *, most: int | None = None) -> Snapshot:
        """Read stored tokens that are not read yet, inside `_reading`. Returns a snapshot that lacks no full segment.

        Args:
            progress: called with the tokens read so far and the tokens to read.
            most: segments to read before it returns all the same; None: any number.
        """
        model = self._needs_model()
        length, snapshot = model.config.segment_length, self._snapshot()
        first, last = snapshot.state.tokens, snapshot.tokens // length * length
        begun = snapshot.state.segments
        while self._lacks_segments(snapshot) and (most is None or snapshot.state.segments - begun < most):
            ids = self._unread(snapshot, CHUNK_SEGMENTS if most is None else most)
            if ids is None:
                snapshot = self._snapshot(anew=True)
                continue
            *_, state = read_on(model, ids, snapshot.state)
            snapshot = self._store_segments(snapshot, state)
            if progress is not None:
                progress(snapshot.state.segments * length - first, last - first)
        return snapshot

    def _lacks_segments(self, snapshot: Snapshot) -> bool:
        """Return whether stored tokens fill a segment that is not read yet."""
        length = self._needs_model().config.segment_length
        return snapshot.tokens - snapshot.state.segments * length >= length

    def _fills_segment(self, snapshot: Snapshot, batch: Batch) -> bool:
        """Return whether messages fill the segment that is open."""
        return len(snapshot.state.open_ids) + len(batch.ids) >= self._needs_model().config.segment_length

    def _unread(self, snapshot: Snapshot, segments: int) -> Tensor | None:
        """Return the next tokens to read [t], as many as so many segments have; None: the session was rewritten meanwhile."""
        start, most = snapshot.state.tokens, segments * self._needs_model().config.segment_length
        with self._database.reading() as db:
            if self._row(db).epoch != snapshot.row.epoch:
                return None
            return torch.from_numpy(lineage.tokens(db, snapshot.parts, start, start + most))

    def _read_ahead(self, snapshot: Snapshot, batch: Batch) -> HMTState:
        """Read the first chunk of messages before they are added: a model that cannot read them stores nothing."""
        ids = torch.tensor(batch.ids, dtype=torch.long)
        return next(read_on(self._needs_model(), ids, snapshot.state), snapshot.state)

    def _store_segments(self, snapshot: Snapshot, state: HMTState) -> Snapshot:
        """Write the segments by which `state` is ahead of the snapshot, unless the session was rewritten.

        Returns a new snapshot.
        """
        with self._database.writing() as db:
            row = self._own_row(db)
            if row.epoch == snapshot.row.epoch:
                self._write_segments(db, snapshot, state)
                db.update_collection(row)
        return self._snapshot(anew=True)

    def _write_segments(self, db: Transaction, snapshot: Snapshot, state: HMTState) -> None:
        """Write the segments by which `state` is ahead of the snapshot, unless a session that shares them was first."""
        if state.segments == snapshot.state.segments or lineage.segment_count(db, snapshot.parts) != snapshot.state.segments:
            return
        digest = lineage.digest_at(db, snapshot.parts, snapshot.state.segments)
        rows = segment_rows(self._needs_model(), snapshot.state, state, digest)
        lineage.append_segments(db, snapshot.parts, rows)

    def _own_shard(self, snapshot: Snapshot, draft: Draft | None = None, asked_at: int | None = None) -> SessionShard:
        """Return this session's own past as of the snapshot."""
        model, row = self._needs_model(), snapshot.row
        with self._database.reading() as db:
            own = volume(db, snapshot.parts, snapshot.state.segments)
        shelf = Shelf((own,), (row.id, row.epoch, row.revision))
        indexes = self._store.indexes(row, model, self._made_by.digest)
        shard = SessionShard(self._database, indexes, shelf, row.name, model.backbone.decode)
        shard.length, shard.draft, shard.asked_at = model.config.segment_length, draft or Draft(), asked_at
        shard.end_ids = model.backbone.end_ids
        return shard

    def _attached(self) -> list[Shard]:
        """Return the attached corpora as they are now."""
        model = self._needs_model()
        with self._database.reading() as db:
            ids = self._row(db).settings.get("corpora", [])
            corpora = [corpus for number in ids if (corpus := db.collection(number))]
            for corpus in corpora:
                check_made_by(db, corpus, self._made_by)
            return [corpus_shard(self._store, corpus, model, self._made_by.digest) for corpus in corpora]

    def _sources(self, snapshot: Snapshot, draft: Draft | None = None, asked_at: int | None = None) -> Sources[Any]:
        """Return this session's own past as of the snapshot, then the attached corpora."""
        return lambda work: self._in_one_view(lambda: work([self._own_shard(snapshot, draft, asked_at), *self._attached()]))

    def _latest(self, snapshot: Snapshot, draft: Draft) -> list[MessageRow]:
        """Return the latest messages and those of a draft; system messages, which are pinned, left out."""
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            stored = lineage.size(snapshot.parts)[0]
            rows = lineage.messages(db, snapshot.parts, max(0, stored - _MOST_SHOWN), stored)
        return [row for row in [*rows, *draft.rows] if not row.pinned]

    @contextmanager
    def _unless_rewritten(self, snapshot: Snapshot) -> Iterator[None]:
        """Turn missing rows into SessionBusyError if the session was rewritten or deleted meanwhile: that is no damage."""
        try:
            yield
        except StoreDamagedError as error:
            with self._database.reading() as db:
                row = self._row(db)
            if row.epoch == snapshot.row.epoch:
                raise
            raise SessionBusyError(f"session {self.name!r} was rewritten meanwhile. Nothing was stored; ask again.") from error


def _kept_up(shards: Sequence[Shard]) -> None:
    for shard in shards:
        shard.keep_up()


def _let_go(session: weakref.ref[SessionMemory]) -> None:
    """Let go of what a session holds in memory; it is loaded again when it is needed."""
    if (held := session()) is not None:
        held._cache = None
