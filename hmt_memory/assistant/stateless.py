"""Answers to a whole message list without a session: nothing is stored, and a prompt that was read before is not read again.

A call whose tokens begin with those of an earlier one continues from the state that call left. Memory is a function of the
tokens, so an answer is the same whether or not a state was kept.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..chat.message import SYSTEM_ROLES, Messages, system_texts, validated
from ..chat.transcript import Batch, Transcript
from ..engine.view_cache import ViewCache, read_whole
from ..errors import InputError
from ..retrieval.ranking import alone
from ..retrieval.recollection import ViewRecollection
from ..retrieval.sources import StreamShard
from ..sessions.answer import Answer, Request, Wanted
from ..sessions.answering import answering, messages_of
from ..store import rewriting
from ..store.rows import as_array

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config import ViewConfig
    from ..engine.decoding import Decoding, DecodingOptions
    from ..engine.generate import Generation, Usage
    from ..engine.state import HMTState
    from ..model import HMTModel
    from ..sessions.chat_model import ChatModel, Writing


class PrefixCache:
    """States by the tokens they were read from; the least recently used are dropped first. Safe to use from several threads.

    The time of an answer tells whether its prompt was met before: each namespace therefore meets its own prompts only.
    """

    def __init__(self, entries: int = 16) -> None:
        self._entries = entries  # in all namespaces together
        self.views = ViewCache()
        self._kept: OrderedDict[tuple[Hashable, bytes], tuple[NDArray[np.uint32], HMTState]] = OrderedDict()
        self._mutex = threading.Lock()

    def longest(self, ids: NDArray[np.uint32], namespace: Hashable = None) -> HMTState | None:
        """Return the state of the longest stream kept in a namespace that `ids` [t] begins with."""
        with self._mutex:
            fitting = {
                len(known): key
                for key, (known, _) in self._kept.items()
                if key[0] == namespace and len(known) <= len(ids) and np.array_equal(known, ids[: len(known)])
            }
            if not fitting:
                return None
            key = fitting[max(fitting)]
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def keep(self, ids: NDArray[np.uint32], state: HMTState, namespace: Hashable = None) -> None:
        """Keep the state that reading left.

        Args:
            ids: [t] tokens that were read.
            state: the state after them.
            namespace: the owner of the prompt.
        """
        with self._mutex:
            key = (namespace, ids.tobytes())
            self._kept[key] = (ids, state)
            self._kept.move_to_end(key)
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)


class Prompt(NamedTuple):
    """A conversation as tokens."""

    batch: Batch
    pinned: list[int]
    opening: list[int]  # the tokens before the answer

    @property
    def tokens(self) -> int:
        """The number of all tokens."""
        return len(self.pinned) + len(self.batch.ids) + len(self.opening)


def prompt_of(
    transcript: Transcript,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    limit: int | None = None,
) -> Prompt:
    """Write messages by the chat template, with the pinned part.

    Args:
        transcript: writes them.
        messages: the whole conversation.
        tools: JSON schemas of functions.
        limit: longer system messages are not pinned but read, before the user's last message: chains and engines put
            whole documents there.
    """
    batch = validated(messages)
    system = "\n\n".join(system_texts(batch))
    pinned, opening = transcript.pinned(system or None, tools), transcript.answer_opening()
    said = [message for message in batch if message["role"] not in SYSTEM_ROLES]
    if limit is None or len(pinned) <= limit or not system or not said:
        return Prompt(Batch(batch, transcript.stretches(batch, first=True)), pinned, opening)
    last = max((number for number, message in enumerate(said) if message["role"] == "user"), default=len(said))
    before = transcript.stretches(said[:last], first=True)
    after = transcript.stretches(said[last:], first=False)
    whole = [*said[:last], {"role": "system", "content": system}, *said[last:]]
    stretches = [*before, transcript.aside_stretch(system), *after]
    return Prompt(Batch(whole, stretches), transcript.pinned(None, tools), opening)


def reply(
    model: HMTModel,
    messages: Messages,
    *,
    cache: PrefixCache | None = None,
    namespace: Hashable = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: Any = None,
    schema: Mapping[str, Any] | None = None,
    answerer: HMTModel | ChatModel | None = None,
    view: ViewConfig | None = None,
    decoding: Decoding | None = None,
    **options: Unpack[DecodingOptions],
) -> StatelessAnswer:
    """Answer a conversation, as an iterator of text pieces.

    Args:
        model: the model that answers.
        messages: the whole conversation; system messages, wherever they stand, are pinned, or read if they are too long.
        cache: the states that earlier calls left.
        namespace: the owner of this call; others' states are not looked at.
        tools: as of `Session.reply`, like the rest.
        tool_choice: which of them may or must be called.
        schema: of a JSON answer.
        answerer: another model, which answers from notes of what `model` has read; None: `model` answers.
        view: the budgets of the model that answers; None: its own.
        decoding: how tokens are chosen.
        **options: fields of `Decoding`.

    Raises:
        InputError: messages are malformed, or there are none to answer.
    """
    if answerer is None and view is not None:
        model, cache = model.with_view(view), None  # states that other calls left hold another number of recent tokens
    transcript = Transcript(model.backbone)
    wanted = Wanted(decoding, options, tools, tool_choice, schema)
    other = None if answerer is None else answering(answerer, wanted, reader=model, view=view)
    request = Request(model, wanted) if other is None else other
    prompt = prompt_of(transcript, messages, tools, limit=model.view.pinned_tokens)
    batch, ids = prompt.batch, prompt.batch.ids
    if not ids:
        raise InputError("there is nothing to answer: add a user message.")
    rows = rewriting.rows_of(batch.messages, batch.stretches, (0, 0), 0, [time.time()] * len(batch.messages))
    asked = next((row for row in reversed(rows) if row.body["role"] == "user"), rows[-1])
    shard = StreamShard(
        "conversation",
        ids,
        model.backbone.decode,
        length=model.config.segment_length,
        slots=model.recalled_slots,
        until=asked.tokens[0],
        rows=rows,
    )
    shard.end_ids = model.backbone.end_ids
    question = str(asked.body["content"] or "")
    encode, budget = (transcript.plain, None) if other is None else (other.encode, other.note_tokens)
    memory = ViewRecollection(model, encode, alone(shard), own=True, question=question, note_tokens=budget)
    prefill = read_whole if cache is None else cache.views.of(namespace)
    generation: Generation | Writing
    if isinstance(request, Request):
        state = _read(model, ids, cache, namespace)
        shard.know([keys.numpy() for keys in state.keys], state.segments)
        generation = model.generate(
            prompt.opening,
            state=state,
            pinned=prompt.pinned,
            recollection=memory,
            turns=batch.turns,
            decoding=request.decoding.also_stopping_at(transcript.stop),
            prefill=prefill,
        )
    else:
        said = [row for row in rows if row.body["role"] not in SYSTEM_ROLES]
        shown = request.shown(messages_of(said), [row.tokens[0] for row in said])
        if shown.messages < len(said):  # else there is nothing to recall, and nothing to read for it
            first = said[len(said) - shown.messages].tokens[0]
            state = _read(model, ids, cache, namespace)
            shard.know([keys.numpy() for keys in state.keys], state.segments)
            memory.recall(question, state, first)
        system = "\n\n".join(system_texts(messages_of(rows))) or None
        generation = request.generate(shown, system=system, notes=memory.notes(), added=len(ids), prefill=prefill)
    return StatelessAnswer(generation, memory, prompt.tokens, may_call=request.may_call)


def _read(model: HMTModel, ids: list[int], cache: PrefixCache | None, namespace: Hashable) -> HMTState:
    """Return the state after `ids`; tokens that an earlier call has read are not read again."""
    if cache is None:
        return model.read(ids)
    whole = as_array(ids)
    known = cache.longest(whole, namespace)
    state = model.read(ids[known.tokens if known else 0 :], known)
    cache.keep(whole, state, namespace)
    return state


class StatelessAnswer(Answer):
    """An answer to a whole conversation."""

    def __init__(self, generation: Generation | Writing, memory: ViewRecollection, asked: int, *, may_call: bool) -> None:
        super().__init__(generation, memory, may_call=may_call)
        self._asked = asked

    @property
    def usage(self) -> Usage:
        """Tokens of the conversation, of the answer and of the view; the same whether or not some were read before."""
        return replace(self._generation.usage, prompt_tokens=self._asked)
