"""A session: one conversation that lasts. Add, reply, recall; what a call has done is on disk when it returns.

Knows the model, the transcript and the stored history; what takes no model is `stored_session`'s. Memory is a function of the
stored tokens: what is not read yet, after a crash or behind a reply, is read by the next call that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..chat.transcript import Messages, Stretch, system_texts, validated
from ..engine.decoding import Decoding, DecodingOptions
from ..engine.generate import Generation
from ..engine.state import HMTState
from ..engine.view import check_budget
from ..errors import InputError, SessionBusyError, StoreDamagedError, StoreError
from ..retrieval import ranking
from ..retrieval.ranking import RecalledSegment, RecalledSegments, Sources, ViewRecollection
from ..retrieval.sources import Draft, SessionShard, Shard
from ..store import lineage, rewriting
from ..store.rows import CollectionRow, Lineage
from ..store.shelf import Shelf, volume
from . import archive
from .answer import Answer, Request
from .collection import log
from .corpus import corpus_shard
from .made_by import check_made_by
from .reading import CHUNK_SEGMENTS, Progress, load_state, read_on, segment_rows
from .stored_session import StoredSession

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config import ViewConfig
    from ..model import HMTModel
    from ..store.backend import Transaction
    from .memory_store import MemoryStore


_LATEST = 16  # messages among which what the user said last is looked for


@dataclass(frozen=True)
class _Snapshot:
    """The stored session as of one revision, and its state up to where it has been read."""

    row: CollectionRow
    parts: Lineage
    state: HMTState

    @property
    def tokens(self) -> int:
        return lineage.size(self.parts)[1]


class Session(StoredSession):
    """One conversation in a store, and the model that reads and answers; `MemoryStore.session` makes it.

    Safe to use from several threads: calls that read wait for one another, answers are generated side by side.
    """

    def __init__(self, store: MemoryStore, row: CollectionRow, model: HMTModel | None = None) -> None:
        super().__init__(store, row, model)
        self._cache: _Snapshot | None = None
        if model is not None and row.settings.get(archive.UNVERIFIED):
            with self._reading():
                archive.settle(self._database, row, model)

    # --- adding and answering ---------------------------------------------------------------------------------------

    def add(self, messages: Messages, *, replacing: int | None = None, progress: Progress | None = None) -> list[int]:
        """Append messages and read them into memory. They are on disk when it returns.

        Args:
            messages: dicts with "role" and "content" (str), and whatever else the chat template knows. System messages are
                pinned instead of read; the latest call that has any replaces those of earlier calls.
            replacing: id of a message that these take the place of, with all after it.
            progress: called with the tokens read so far and the tokens to read.

        Returns:
            The messages' ids, for `forget` and `fork`.

        Raises:
            InputError: malformed messages, or text that is not Unicode. BudgetError: the system prompt is over
            `pinned_tokens`. SessionBusyError: another process is writing this session. StoreError: the disk is full or failing.
            Nothing is stored then.
        """
        batch = validated(messages)
        self._needs_model()
        if not batch:
            return []
        self._check_pinned(batch)
        with self._reading():
            snapshot = self._read_pending()
            if replacing is not None:
                snapshot = self._before(snapshot, replacing)
            stretches = rewriting.rendered(self._transcript, batch, first=not snapshot.tokens)
            state = self._read_ahead(snapshot, stretches)
            erasure = None
            with self._database.writing() as db:
                row = self._own_row(db)
                alone = row == snapshot.row
                if replacing is not None:
                    row, erasure = self._forget_from(db, row, snapshot)
                row, ids = self._append(db, row, batch, stretches if alone else None)
                if alone and replacing is None:
                    self._write_segments(db, snapshot, state)
            self._erase_replaced(erasure)
            with self._stored_already():
                self._read_pending(progress)
        with self._stored_already():
            self._apply_retention(row)
        return ids

    def reply(
        self,
        messages: Messages = (),
        *,
        replacing: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        schema: Mapping[str, Any] | None = None,
        replay: bool = True,
        view: ViewConfig | None = None,
        decoding: Decoding | None = None,
        **options: Unpack[DecodingOptions],
    ) -> Reply:
        """Answer, as an iterator of text pieces. The answer is stored before the last piece is given out.

        An answer that is abandoned leaves nothing behind, and neither do `messages`.

        Args:
            messages: what to answer, stored together with the answer; none: what was added before.
            replacing: id of a message that this call takes the place of, with all after it: an edit, or another try. They are
                forgotten when the answer is stored.
            tools: functions in OpenAI's form, pinned for this answer; those that the model calls are in `tool_calls`.
            tool_choice: None or "auto": the model decides; "none", "required", or the name of a function it must call; other
                forms: `constrained.tool_choice_of`.
            schema: JSON schema of the answer.
            replay: whether recalled passages that are no longer visible are shown to the model.
            view: the view's budgets for this answer, instead of the session's.
            decoding: how tokens are chosen, and what ends the answer.
            options: fields of `Decoding` that differ from `decoding`, such as max_new_tokens=64.

        Raises:
            As `add`; InputError where there is nothing to answer; SessionNotFoundError: there is no message `replacing`.
        """
        model = self._needs_model() if view is None else self._needs_model().with_view(view)
        batch = validated(messages)
        chosen = (decoding or Decoding()).changed(**options)
        request = Request(model, chosen, tools=tools, tool_choice=tool_choice, schema=schema)
        snapshot = self._within_limits()
        if replacing is not None:
            snapshot = self._before(snapshot, replacing, model)
        elif view is not None:
            snapshot = self._seen_by(snapshot, model)
        draft = self._draft(snapshot, batch)
        prompt = [*draft.ids]
        if not prompt and not snapshot.tokens:
            raise InputError("there is nothing to answer: add a message first.")
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            system = system_texts(batch) or rewriting.system_in_force(db, snapshot.parts)
        pinned = self._transcript.pinned("\n\n".join(system) or None, tools)
        question, asked_at = self._question(snapshot, draft)
        sources = self._sources(snapshot, draft, asked_at)
        memory = ViewRecollection(model, self._transcript.aside, sources, own=True, question=question, replay=replay)
        generation = model.generate(
            prompt + self._transcript.answer_opening(),
            state=snapshot.state,
            pinned=pinned,
            recollection=memory,
            decoding=request.decoding.also_stopping_at(self._transcript.stop),
        )
        return Reply(self, snapshot, batch, generation, memory, may_call=request.may_call, replacing=replacing)

    def recall(self, query: str, top_k: int = 5, *, before: int | None = None) -> RecalledSegments:
        """The segments a text remembers most, of this conversation and the attached corpora, by falling weight.

        Args:
            before: id of a message; only what was said before it is recalled. A question that was added already shares every
                word with itself.

        Returns:
            A list with `.coverage`: at least this share of the softmax over all segments fell on those preselected.

        Raises:
            InputError: the query is empty or `top_k` below 1. SessionNotFoundError: there is no message `before`.
        """
        model = self._needs_model()
        snapshot = self._within_limits()
        length = model.config.segment_length
        with self._unless_rewritten(snapshot):
            # A segment that holds something said before counts, whatever else it holds.
            asked_at = None if before is None else -(-self._place(snapshot, before)[1] // length) * length
            return ranking.recall(model, self._sources(snapshot, asked_at=asked_at), query, top_k)

    def latest(self) -> RecalledSegment | None:
        """What was said last and fills no segment yet, so that nothing recalls it; its weight is 0."""
        with self._reading():
            snapshot = self._read_pending()
        with self._unless_rewritten(snapshot):
            cited = self._in_one_view(lambda: self._own_shard(snapshot).cite_open(snapshot.tokens))
        return ranking.segment(cited, 0.0, 1.0) if cited.text.strip() else None

    # --- rows -------------------------------------------------------------------------------------------------------

    def _append(
        self,
        db: Transaction,
        row: CollectionRow,
        batch: Sequence[Mapping[str, Any]],
        stretches: Sequence[Stretch] | None = None,
        *,
        answer: Sequence[int] | None = None,
        asked_at: float | None = None,
    ) -> tuple[CollectionRow, list[int]]:
        """Store messages behind the last one; with `answer`, the last of them is the model's own, in these tokens."""
        parts = lineage.of(db, row)
        seq, at = lineage.size(parts)
        told = batch if answer is None else batch[:-1]
        if stretches is None:
            stretches = rewriting.rendered(self._transcript, told, first=not at)
        if answer is not None:
            stretches = [*stretches, self._transcript.answer(answer)]
        now = self._store.now()
        times = [asked_at or now] * len(told) + [now] * (len(batch) - len(told))
        rows = rewriting.new_rows(batch, row.next_id, times)
        rewriting.append(db, parts[-1].stream, seq, at, rows, stretches)
        number = db.add_model(self._made_by.digest, self._made_by.parts)
        changed = replace(row, model=number, next_id=row.next_id + len(rows), updated_at=now)
        return db.update_collection(changed), [one.id for one in rows]

    def _check_pinned(self, batch: Sequence[Mapping[str, Any]]) -> None:
        if system := system_texts(batch):
            check_budget(self._needs_model(), "pinned_tokens", len(self._transcript.pinned("\n\n".join(system))))

    # --- reading ----------------------------------------------------------------------------------------------------

    def _snapshot(self, *, anew: bool = False) -> _Snapshot:
        """The session as it is now; the one in memory, where nobody has written since."""
        model = self._needs_model()
        known = None if anew else self._cache
        with self._database.reading() as db:
            row = self._own_row(db)
            if known is None or known.row != row:
                parts = lineage.of(db, row)
                known = _Snapshot(row, parts, load_state(db, parts, model))
        self._cache = known
        return known

    def _seen_by(self, snapshot: _Snapshot, model: HMTModel) -> _Snapshot:
        """Load the same with as many recent tokens as the model's view has room for."""
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            return replace(snapshot, state=load_state(db, snapshot.parts, model))

    def _before(self, snapshot: _Snapshot, message: int, model: HMTModel | None = None) -> _Snapshot:
        """The session as it was before a message; its row is that of now."""
        model = model or self._needs_model()
        at, tokens = self._place(snapshot, message)
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            parts = lineage.until(snapshot.parts, at, tokens, tokens // model.config.segment_length)
            return _Snapshot(snapshot.row, parts, load_state(db, parts, model))

    def _place(self, snapshot: _Snapshot, message: int) -> tuple[int, int]:
        """How many messages, and how many tokens, come before a message."""
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            at = rewriting.positions(db, snapshot.row, snapshot.parts, [message])[message]
            (row,) = lineage.messages(db, snapshot.parts, at, at + 1)
        return at, row.tokens[0]

    def _read_pending(self, progress: Progress | None = None) -> _Snapshot:
        """Read what is stored and not read yet, inside `_reading`; the snapshot afterwards, which lacks no full segment."""
        model = self._needs_model()
        length, snapshot = model.config.segment_length, self._snapshot()
        first, last = snapshot.state.tokens, snapshot.tokens // length * length
        while snapshot.tokens - snapshot.state.segments * length >= length:
            ids = self._unread(snapshot)
            if ids is None:
                snapshot = self._snapshot(anew=True)
                continue
            *_, state = read_on(model, ids, snapshot.state)
            snapshot = self._store_segments(snapshot, state)
            if progress is not None:
                progress(snapshot.state.segments * length - first, last - first)
        return snapshot

    def _unread(self, snapshot: _Snapshot) -> Tensor | None:
        """Return the next tokens to read [t]; None: the session was rewritten, and where they were is out of date."""
        at, most = snapshot.state.tokens, CHUNK_SEGMENTS * self._needs_model().config.segment_length
        with self._database.reading() as db:
            if self._row(db).epoch != snapshot.row.epoch:
                return None
            return torch.from_numpy(lineage.tokens(db, snapshot.parts, at, at + most))

    def _read_ahead(self, snapshot: _Snapshot, stretches: Sequence[Stretch]) -> HMTState:
        """The state after the first chunk of what will be added: a model that cannot read it stores nothing."""
        model = self._needs_model()
        ids = torch.tensor([token for stretch in stretches for token in stretch.ids], dtype=torch.long)
        return next(read_on(model, ids, snapshot.state), snapshot.state)

    def _store_segments(self, snapshot: _Snapshot, state: HMTState) -> _Snapshot:
        """Write what `state` has beyond the snapshot's, unless the session was rewritten; the snapshot afterwards."""
        with self._database.writing() as db:
            row = self._own_row(db)
            if row.epoch == snapshot.row.epoch:
                self._write_segments(db, snapshot, state)
                db.update_collection(row)
        return self._snapshot(anew=True)

    def _write_segments(self, db: Transaction, snapshot: _Snapshot, state: HMTState) -> None:
        """Write the segments that `state` has beyond the snapshot's, unless a session that shares them was first."""
        if lineage.segment_count(db, snapshot.parts) != snapshot.state.segments:
            return
        digest = lineage.digest_at(db, snapshot.parts, snapshot.state.segments)
        rows = segment_rows(self._needs_model(), snapshot.state, state, digest)
        lineage.append_segments(db, snapshot.parts, rows)

    def _draft(self, snapshot: _Snapshot, batch: Sequence[Mapping[str, Any]]) -> Draft:
        """Messages as they will stand in the stream once they are stored with their answer."""
        stretches = rewriting.rendered(self._transcript, batch, first=not snapshot.tokens)
        rows = rewriting.new_rows(batch, snapshot.row.next_id, [self._store.now()] * len(batch))
        seq, at = lineage.size(snapshot.parts)
        ids = [token for stretch in stretches for token in stretch.ids]
        return Draft(rewriting.placed(seq, at, rows, stretches), ids)

    def _question(self, snapshot: _Snapshot, draft: Draft) -> tuple[str, int | None]:
        """What the user said last, whose words passages are looked for by, and the token where that begins."""
        said = [row for row in draft.rows if row.body["role"] == "user"]
        if not said:
            with self._unless_rewritten(snapshot), self._database.reading() as db:
                stored = lineage.size(snapshot.parts)[0]
                latest = lineage.messages(db, snapshot.parts, max(0, stored - _LATEST), stored)
            said = [row for row in latest if row.body["role"] == "user"]
        return (str(said[-1].body["content"] or ""), said[-1].tokens[0]) if said else ("", None)

    def _own_shard(self, snapshot: _Snapshot, draft: Draft | None = None, asked_at: int | None = None) -> SessionShard:
        """This session's own past as of the snapshot."""
        model, row = self._needs_model(), snapshot.row
        with self._database.reading() as db:
            own = volume(db, snapshot.parts, snapshot.state.segments)
        shelf = Shelf((own,), (row.id, row.epoch, row.revision))
        indexes = self._store.indexes(row, model, self._made_by.digest)
        shard = SessionShard(self._database, indexes, shelf, row.name, model.backbone.decode)
        shard.length, shard.draft, shard.asked_at = model.config.segment_length, draft or Draft(), asked_at
        return shard

    def _attached(self) -> list[Shard]:
        """The attached corpora as they are now."""
        model = self._needs_model()
        with self._database.reading() as db:
            ids = self._row(db).settings.get("corpora", [])
            corpora = [corpus for id in ids if (corpus := db.collection(id))]
            for corpus in corpora:
                check_made_by(db, corpus, self._made_by)
            return [corpus_shard(self._store, corpus, model, self._made_by.digest) for corpus in corpora]

    def _sources(self, snapshot: _Snapshot, draft: Draft | None = None, asked_at: int | None = None) -> Sources[Any]:
        """This session's own past as of the snapshot, then the attached corpora."""
        return lambda work: self._in_one_view(lambda: work([self._own_shard(snapshot, draft, asked_at), *self._attached()]))

    @contextmanager
    def _unless_rewritten(self, snapshot: _Snapshot) -> Iterator[None]:
        """Rows that are missing because the session was rewritten or deleted meanwhile are no damage."""
        try:
            yield
        except StoreDamagedError as error:
            with self._database.reading() as db:
                row = self._row(db)
            if row.epoch == snapshot.row.epoch:
                raise
            raise SessionBusyError(f"session {self.name!r} was rewritten meanwhile. Nothing was stored; ask again.") from error

    # --- after an answer --------------------------------------------------------------------------------------------

    def _commit(self, reply: Reply, snapshot: _Snapshot, generation: Generation) -> list[int]:
        """Store what was asked and answered, and the segments that were read on the way; ids of the new messages."""
        text = reply.text if self._transcript.has_template else reply.text.strip()
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        if reply.tool_calls:
            answer["tool_calls"] = [call.to_dict() for call in reply.tool_calls]
        with self._database.writing() as db:
            row = self._own_row(db)
            if row.epoch != snapshot.row.epoch:
                raise SessionBusyError(
                    f"session {self.name!r} was rewritten while the answer was being generated, so the answer was not stored. "
                    "Ask again."
                )
            alone = row == snapshot.row
            if reply._replacing is not None:
                row, reply._erasure = self._forget_from(db, row, snapshot)
            row, ids = self._append(db, row, [*reply._asked, answer], answer=generation.ids, asked_at=reply._asked_at)
            if alone and generation.closed is not None and reply._replacing is None:
                self._write_segments(db, snapshot, generation.closed[1])
        return ids

    def _forget_from(self, db: Transaction, row: CollectionRow, snapshot: _Snapshot) -> tuple[CollectionRow, int]:
        """Forget what follows a snapshot, unless somebody has added to it since; the row afterwards and the erasure."""
        if row != snapshot.row:
            raise SessionBusyError(
                f"session {self.name!r} was added to meanwhile, so nothing was replaced and nothing was stored. Try again."
            )
        forgotten = rewriting.cut(db, row, *lineage.size(snapshot.parts))
        self._store.drop_index(row.id)
        return forgotten.row, forgotten.erasure

    def _erase_replaced(self, erasure: int | None) -> None:
        """Overwrite what was replaced; what stands in the way of that is no reason to lose what took its place."""
        if erasure is None:
            return
        try:
            self._finish(erasure)
        except StoreDamagedError:
            raise
        except (StoreError, SessionBusyError) as error:
            log.warning("%s", error)

    def _after_reply(self) -> None:
        """Close segments that the answer filled, if nobody else is reading; the next call does it otherwise."""
        with self._stored_already():
            with self._reading(wait=False):
                row = self._read_pending().row
            self._apply_retention(row)

    def _within_limits(self) -> _Snapshot:
        """The session as it is now, without what is beyond its limits."""
        with self._reading():
            snapshot = self._read_pending()
        if snapshot.row.settings.get("retention"):
            self._apply_retention(snapshot.row)
            with self._reading():
                snapshot = self._read_pending()
        return snapshot


class Reply(Answer):
    """An answer being written: iterate for text pieces. It is stored before the last piece comes; abandoned, nothing is.

    When it is finished, `text`, `tool_calls`, `finish_reason`, `usage` and `message_ids` are set. Calls are not in the text.
    """

    def __init__(
        self,
        session: Session,
        snapshot: _Snapshot,
        asked: Sequence[Mapping[str, Any]],
        generation: Generation,
        memory: ViewRecollection,
        *,
        may_call: bool,
        replacing: int | None,
    ) -> None:
        super().__init__(generation, memory, may_call=may_call)
        self._session, self._snapshot, self._asked, self._replacing = session, snapshot, asked, replacing
        self._asked_at = session._store.now()
        self._erasure: int | None = None  # of what was replaced
        self._left = False  # whether what comes after the answer was done
        self.message_ids: list[int] = []  # of what was asked with this call, and of the answer

    def _advance(self) -> str | None:
        if self.message_ids and not self._left:
            self._left = True
            self._session._after_reply()
        with self._session._unless_rewritten(self._snapshot):
            free = super()._advance()
            if free is None or not self._ended:
                return free
            self.message_ids = self._session._commit(self, self._snapshot, self._generation)
        self._session._erase_replaced(self._erasure)  # before the last piece: who has it may not come back
        return free
