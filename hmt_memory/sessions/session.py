"""A session: one conversation that lasts. Add, reply, recall; the changes of a call are on disk when it returns.

Knows the model, the transcript and the stored history. `stored_session` does what takes no model, `session_memory` reads and
recalls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..chat.message import Messages, system_texts, validated
from ..chat.transcript import Batch
from ..engine.decoding import Decoding, DecodingOptions
from ..engine.generate import Generation
from ..engine.view import check_budget
from ..errors import ModelMismatchError, SessionBusyError, SessionNotFoundError, StoreDamagedError, StoreError
from ..retrieval.recollection import ViewRecollection
from ..store import lineage, rewriting
from ..store.rows import CollectionRow, Lineage
from .answer import Answer, Keeping, Request, Wanted
from .answering import answering, messages_of
from .collection import log
from .explaining import Explanation, explain
from .owed import settled
from .reading import Progress
from .session_memory import SessionMemory, Snapshot

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config import ViewConfig
    from ..model import HMTModel
    from ..store.transaction import Transaction
    from .chat_model import ChatModel, Writing

_BEHIND_SEGMENTS = 4  # read behind an answer before others get their turn
_KEPT = Keeping()
_GONE = (SessionNotFoundError, ModelMismatchError)  # of a session that was deleted, or that another model reads now


class Session(SessionMemory):
    """One conversation in a store, and the model that reads and answers; `MemoryStore.session` makes it.

    Safe to use from several threads: calls that read wait for one another, answers are generated side by side.
    """

    def add(self, messages: Messages, *, replacing: int | None = None, progress: Progress | None = None) -> list[int]:
        """Append messages and read them into memory. They are on disk when it returns.

        Args:
            messages: dicts with "role" and "content" (str), and other fields that the chat template knows. System messages are
                pinned instead of read; the latest call that has any replaces those of earlier calls.
            replacing: id of a message that these replace, with all after it.
            progress: called with the tokens read so far and the tokens to read.

        Returns:
            The messages' ids, for `forget` and `fork`.

        Raises:
            InputError: messages are malformed, or their text is not Unicode.
            BudgetError: the system prompt is over `pinned_tokens`.
            SessionBusyError: another process is writing this session.
            StoreError: the disk is full or failing. Nothing is stored then.
        """
        self._needs_model()
        if not (told := validated(messages)):
            return []
        self._check_pinned(told)
        return self._database.again(lambda: self._added(told, replacing, progress))

    def _added(self, told: Sequence[Mapping[str, Any]], replacing: int | None, progress: Progress | None) -> list[int]:
        """Store messages and read them. What was stored is the result, whatever comes after."""
        with self._reading():
            snapshot = self._last_seen()
            batch = self._transcript.batch(told, first=not snapshot.tokens)
            if replacing is not None or self._fills_segment(snapshot, batch):
                snapshot = self._read_pending() if replacing is None else self._before(self._read_pending(), replacing)
                batch = self._transcript.batch(told, first=not snapshot.tokens)
            state = self._read_ahead(snapshot, batch)
            erasure = None
            with self._database.writing() as db:
                row = self._own_row(db)
                alone = row == snapshot.row
                follows = alone and replacing is None
                if replacing is not None:
                    row, erasure = self._forget_from(db, row, snapshot)
                parts = snapshot.parts if follows else lineage.of(db, row)
                row, ids = self._append(db, row, parts, batch if alone else self._as_it_follows(parts, batch))
                if follows:
                    self._write_segments(db, snapshot, state)
            self._erase_replaced(erasure)
            with self._stored_already():
                if not (follows and self._gone_on(snapshot, row, batch)):
                    self._read_pending(progress)
        with self._stored_already():
            self._apply_retention(row)
        return ids

    def reply(
        self,
        messages: Messages = (),
        *,
        replacing: int | None = None,
        instructions: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        schema: Mapping[str, Any] | None = None,
        replay: bool = True,
        view: ViewConfig | None = None,
        answerer: HMTModel | ChatModel | None = None,
        decoding: Decoding | None = None,
        keeping: Keeping = _KEPT,
        **options: Unpack[DecodingOptions],
    ) -> Reply:
        """Answer, as an iterator of text pieces. The answer is stored before the last piece is given out.

        An abandoned answer leaves nothing behind, and neither do its `messages`.

        Args:
            messages: the messages to answer, stored together with the answer; none: those added before.
            replacing: id of a message that this call replaces, with all after it: an edit, or another try. They are
                forgotten when the answer is stored.
            instructions: pinned for this answer alone, behind the system prompt.
            tools: functions in OpenAI's form, pinned for this answer; those that the model calls are in `tool_calls`.
            tool_choice: None or "auto": the model decides; "none", "required", or the name of a function it must call; other
                forms: `grammar.tool_choice_of`.
            schema: JSON schema of the answer.
            replay: whether notes of what bears on the question and is no longer visible are shown to the model.
            view: the view's budgets for this answer, instead of the session's.
            answerer: another model, which answers from notes of what the session's model has read: an `HMTModel`, or anything
                that answers messages (`ChatModel`). None: the session's model answers.
            decoding: how tokens are chosen, and what ends the answer.
            keeping: whether and how the answer is stored.
            **options: fields of `Decoding` that differ from `decoding`, such as max_new_tokens=64.

        Raises:
            InputError: messages or options are malformed, or there is nothing to answer.
            BudgetError: the system prompt is over `pinned_tokens`.
            SessionNotFoundError: there is no message `replacing`.
            SessionBusyError: another process is writing this session, or has added to it although `keeping` forbids that.
            StoreError: the disk is full or failing.
        """
        own_view = None if answerer is not None else view
        model = self._needs_model() if own_view is None else self._needs_model().with_view(own_view)
        told = validated(messages)
        wanted = Wanted(decoding, options, tools, tool_choice, schema)
        other = None if answerer is None else answering(answerer, wanted, reader=model, view=view)
        request = Request(model, wanted) if other is None else other
        since = self._store.view_cache.cleared
        asked = self._asked(told, replacing, model)
        snapshot, batch = asked.snapshot, asked.batch
        system = "\n\n".join(text for text in (asked.system, instructions) if text) or None
        self._check_last(snapshot, keeping.after)
        memory = ViewRecollection(
            model,
            self._transcript.plain if other is None else other.encode,
            self._sources(snapshot, asked.draft, asked.asked_at),
            own=True,
            question=asked.question,
            noting=replay,
            note_tokens=None if other is None else other.note_tokens,
        )
        prefill = self._store.view_cache.of(snapshot.namespace, since)
        generation: Generation | Writing
        if isinstance(request, Request):
            generation = model.generate(
                [*batch.ids, *self._transcript.answer_opening()],
                state=snapshot.state,
                pinned=self._transcript.pinned(system, tools),
                recollection=memory,
                turns=asked.turns,
                decoding=request.decoding.also_stopping_at(self._transcript.stop),
                prefill=prefill,
            )
        else:
            rows = self._latest(snapshot, asked.draft)
            shown = request.shown(messages_of(rows), [row.tokens[0] for row in rows])
            first = rows[len(rows) - shown.messages].tokens[0]
            with self._unless_rewritten(snapshot):
                memory.recall(asked.question, model.read(torch.tensor(batch.ids, dtype=torch.long), snapshot.state), first)
            generation = request.generate(shown, system=system, notes=memory.notes(), added=len(batch.ids), prefill=prefill)
        as_now = partial(self.prepare, instructions=instructions, tools=tools, view=own_view)
        return Reply(
            self,
            snapshot,
            batch,
            generation,
            memory,
            may_call=request.may_call,
            replacing=replacing,
            own=other is None,
            keeping=keeping,
            ahead=as_now if other is None else self.keep_up,
        )

    def explain(self, messages: Messages = (), *, replacing: int | None = None) -> Explanation:
        """Return what `reply` with these arguments would be conditioned on, if this session's model answered.

        Nothing is answered, and no message is stored or forgotten. What was stored and not read yet is read first.

        Args:
            messages: the messages to answer; none: those added before.
            replacing: id of a message; the session is looked at as it was before it. With the question of a stored answer this
                shows why that says what it says, as far as nothing was forgotten since.

        Raises:
            InputError: messages are malformed, or there is nothing to answer.
            BudgetError: the system prompt is over `pinned_tokens`.
            SessionNotFoundError: there is no message `replacing`.
        """
        model = self._needs_model()
        asked = self._asked(validated(messages), replacing, model, looking=True)
        with self._unless_rewritten(asked.snapshot):
            return explain(model, self._transcript, asked, self._sources(asked.snapshot, asked.draft, asked.asked_at))

    def _check_last(self, snapshot: Snapshot, message: int | None) -> None:
        """Raise SessionBusyError unless a message is the last one."""
        if message is None:
            return
        with self._unless_rewritten(snapshot), self._database.reading() as db:
            size = lineage.size(snapshot.parts)[0]
            last = [row.id for row in lineage.messages(db, snapshot.parts, max(0, size - 1), size)]
        if last != [message]:
            raise _added_to(self.name)

    def _append(
        self, db: Transaction, row: CollectionRow, parts: Lineage, batch: Batch, *, asked_at: float | None = None
    ) -> tuple[CollectionRow, list[int]]:
        """Store messages behind the last one, all but an answer as of `asked_at` (None: now). Returns the row and their ids."""
        now = self._store.now()
        answers = 0 if asked_at is None else 1  # the last
        times = [asked_at or now] * (len(batch.messages) - answers) + [now] * answers
        rows = rewriting.rows_of(batch.messages, batch.stretches, lineage.size(parts), row.next_id, times)
        rewriting.append(db, parts[-1].stream, rows, batch.stretches)
        known = row.model is not None and row.model == self._own_model
        number = row.model if known else db.add_model(self._made_by.digest, self._made_by.parts)
        row = db.update_collection(replace(row, model=number, next_id=row.next_id + len(rows), updated_at=now))
        return row, [message.id for message in rows]

    def _as_it_follows(self, parts: Lineage, batch: Batch) -> Batch:
        """Write messages as they follow the stored ones."""
        return self._transcript.batch(batch.messages, first=not lineage.size(parts)[1])

    def _check_pinned(self, batch: Sequence[Mapping[str, Any]]) -> None:
        if system := system_texts(batch):
            check_budget(self._needs_model(), "pinned_tokens", len(self._transcript.pinned("\n\n".join(system))))

    def _commit(self, reply: Reply, snapshot: Snapshot, generation: Generation | None) -> list[int]:
        """Store request and answer, and the segments that were read on the way.

        Args:
            reply: the answer.
            snapshot: the session as it was when it was asked.
            generation: what this session's model has generated; None: another model has answered.

        Returns:
            The ids of the new messages.
        """
        text = reply.text if self._transcript.has_template else reply.text.strip()
        answer: dict[str, Any] = {"role": "assistant", "content": text}
        fields = reply._keeping.fields
        answer |= {} if fields is None else fields(reply)
        if reply.tool_calls:
            answer["tool_calls"] = [call.to_dict() for call in reply.tool_calls]

        def stored(db: Transaction) -> list[int]:
            row = self._own_row(db)
            if row.epoch != snapshot.row.epoch:
                raise SessionBusyError(
                    f"session {self.name!r} was rewritten while the answer was being generated, so the answer was not stored. "
                    "Ask again."
                )
            if reply._keeping.after is not None and row.next_id != snapshot.row.next_id:
                raise _added_to(self.name)
            alone = row == snapshot.row
            if reply._replacing is not None:
                row, reply._erasure = self._forget_from(db, row, snapshot)
            parts = lineage.of(db, row)
            asked = self._as_it_follows(parts, reply._asked)
            if reply._keeping.owed is not None:
                row = settled(row, reply._keeping.owed)
            own = None if generation is None else self._transcript.answer(generation.ids)
            answered = asked.followed_by(answer, own or self._transcript.stretch(answer, first=False))
            row, ids = self._append(db, row, parts, answered, asked_at=reply._asked_at)
            if alone and generation is not None and generation.closed is not None and reply._replacing is None:
                self._write_segments(db, snapshot, generation.closed[1])
            return ids

        return self._database.write(stored)

    def _forget_from(self, db: Transaction, row: CollectionRow, snapshot: Snapshot) -> tuple[CollectionRow, int]:
        """Forget what follows a snapshot, unless somebody has added to it since. Returns the row afterwards and the erasure."""
        if row != snapshot.row:
            raise SessionBusyError(
                f"session {self.name!r} was added to meanwhile, so nothing was replaced and nothing was stored. Try again."
            )
        forgotten = rewriting.cut(db, row, *lineage.size(snapshot.parts))
        self._store.drop_index(row.id)
        return forgotten.row, forgotten.erasure

    def _erase_replaced(self, erasure: int | None) -> None:
        """Overwrite replaced messages; a failure of that is logged, so that it does not lose the new ones."""
        if erasure is None:
            return
        try:
            self._finish(erasure)
        except StoreDamagedError:
            raise
        except (StoreError, SessionBusyError) as error:
            log.warning("%s", error)

    def _after_reply(self, ahead: Callable[[], None]) -> None:
        """Read what an answer has added, if nobody else does, and forget what is beyond the session's limits.

        Args:
            ahead: makes what the next answer needs.
        """
        with self._stored_already():
            with self._database.reading() as db:
                row = db.collection(self._id)
            if row is None or not row.settings.get("retention"):
                self._store.behind.do(repr(self), self._read_behind)
            else:
                self._read_behind()
                self._apply_retention(row)
        if self._store.behind.threaded:
            self._store.behind.do(repr(self), partial(self._store.open_indexes.keep_up, self._id))
        if self._store.tiers.fetch_ahead:
            self._store.behind.do(repr(self), partial(_unless_gone, ahead))

    def _read_behind(self) -> None:
        """Read what is not read yet, a little at a time, unless somebody else does: others get their turns in between."""
        with self._stored_already(), suppress(*_GONE):
            more = True
            while more and not self._store.behind.closing:
                with self._reading(wait=False):
                    more = self._lacks_segments(self._read_pending(most=_BEHIND_SEGMENTS))


def _added_to(name: str) -> SessionBusyError:
    return SessionBusyError(f"session {name!r} was added to meanwhile, so nothing was stored. Try again.")


def _unless_gone(work: Callable[[], None]) -> None:
    """Work for a session that may have been deleted, or given to another model, meanwhile."""
    with suppress(*_GONE):
        work()


class Reply(Answer):
    """An answer being written: iterate for text pieces. It is stored before the last piece comes; abandoned, nothing is.

    When it is finished, `text`, `tool_calls`, `finish_reason`, `usage` and `message_ids` are set. Calls are not in the text.
    """

    def __init__(
        self,
        session: Session,
        snapshot: Snapshot,
        asked: Batch,
        generation: Generation | Writing,
        memory: ViewRecollection,
        *,
        may_call: bool,
        replacing: int | None,
        own: bool,
        keeping: Keeping,
        ahead: Callable[[], None],
    ) -> None:
        super().__init__(generation, memory, may_call=may_call)
        self._session, self._snapshot, self._asked, self._replacing = session, snapshot, asked, replacing
        self._keeping, self._ahead = keeping, ahead
        self._own = generation if own and isinstance(generation, Generation) else None  # if the session's model answers
        self._asked_at = session._store.now()
        self._erasure: int | None = None  # the erasure of the replaced messages
        self._left = False  # whether the work after the answer is done
        self.message_ids: list[int] = []  # ids of the messages of this call, and of the answer

    def _advance(self) -> str | None:
        if self.message_ids and not self._left:
            self._left = True
            self._session._after_reply(self._ahead)
        with self._session._unless_rewritten(self._snapshot):
            free = super()._advance()
            if free is None or not self._ended or not self._keeping.stored:
                return free
            self.message_ids = self._session._commit(self, self._snapshot, self._own)
            self.is_whole = True
        self._session._erase_replaced(self._erasure)  # before the last piece: the caller may not come back for more
        return free
