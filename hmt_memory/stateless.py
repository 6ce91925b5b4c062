"""Answering a whole message list without a session: nothing is stored, and what an earlier call read is not read again.

A call whose tokens begin with those of an earlier one continues from the state that call left. Memory is a function of the
tokens, so an answer is the same whether or not something was kept.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import history
from .constrained import Constraint, Speech, ToolCall, form_of
from .errors import InputError
from .generate import Generation, Usage
from .recollection import RecalledSegments, ViewRecollection
from .shards import StreamShard
from .streams import as_array
from .transcript import Messages, Transcript, system_texts, validated

if TYPE_CHECKING:
    from .model import HMTModel
    from .state import HMTState


class PrefixCache:
    """States by the tokens they were read from, the least recently used let go first. Safe to use from several threads."""

    def __init__(self, entries: int = 16) -> None:
        self._entries = entries
        self._kept: OrderedDict[bytes, tuple[NDArray[np.uint32], HMTState]] = OrderedDict()
        self._mutex = threading.Lock()

    def longest(self, ids: NDArray[np.uint32]) -> HMTState | None:
        """The state of the longest kept stream that `ids` [t] begins with."""
        with self._mutex:
            fitting = [
                (len(known), key)
                for key, (known, _) in self._kept.items()
                if len(known) <= len(ids) and np.array_equal(known, ids[: len(known)])
            ]
            if not fitting:
                return None
            _, key = max(fitting)
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def keep(self, ids: NDArray[np.uint32], state: HMTState) -> None:
        """Keep the state that reading `ids` [t] left."""
        with self._mutex:
            key = ids.tobytes()
            self._kept[key] = (ids, state)
            self._kept.move_to_end(key)
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)


def reply(
    model: HMTModel,
    messages: Messages,
    *,
    cache: PrefixCache | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | None = None,
    schema: Mapping[str, Any] | None = None,
    stop: str | Sequence[str] | None = None,
    max_new_tokens: int = 256,
    **decoding: Any,
) -> Answer:
    """Answer a conversation, as an iterator of text pieces.

    Args:
        messages: the whole conversation; system messages, wherever they stand, are pinned.
        cache: of what earlier calls read.
        tools, tool_choice, schema: see `constrained.form_of`.
        stop: strings that end the answer. decoding: other options of `HMTModel.generate`.

    Raises:
        InputError: malformed messages, or none to answer.
    """
    batch = validated(messages)
    transcript = Transcript(model.backbone)
    stretches = history.rendered(transcript, batch)
    ids = [token for stretch in stretches for token in stretch.ids]
    if not ids:
        raise InputError("there is nothing to answer: add a user message.")
    opening = transcript.answer_opening()
    everything = as_array(ids)
    known = None if cache is None else cache.longest(everything)
    rows = history.placed(0, 0, history.new_rows(batch, 0, [time.time()] * len(batch)), stretches)
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
    memory = ViewRecollection(model, transcript.aside, [shard], own=True, question=str(asked.body["content"] or ""))
    form = form_of(tools, tool_choice, schema)
    if form is not None:
        decoding["logits_processors"] = [
            Constraint(model.backbone, form, limit=max_new_tokens),
            *decoding.get("logits_processors", ()),
        ]
    if cache is not None and len(ids) > (known.tokens if known else 0):
        known = model.read(ids[known.tokens if known else 0 :], known)
        cache.keep(everything, known)
    pinned = transcript.pinned("\n\n".join(system_texts(batch)) or None, tools)
    generation = model.generate(
        [*ids[known.tokens if known else 0 :], *opening],
        state=known,
        pinned=pinned,
        recollection=memory,
        stop=[*([stop] if isinstance(stop, str) else stop or ()), *transcript.stop],
        max_new_tokens=max_new_tokens,
        **decoding,
    )
    return Answer(generation, memory, len(pinned) + len(ids) + len(opening), tools=bool(tools) and tool_choice != "none")


class Answer(Iterator[str]):
    """An answer being written: iterate for pieces of its text. Calls of functions are no text: `tool_calls` has them.

    When it is finished, `text`, `tool_calls`, `finish_reason` and `usage` are set.
    """

    def __init__(self, generation: Generation, memory: ViewRecollection, asked: int, *, tools: bool) -> None:
        self._generation, self._memory, self._asked = generation, memory, asked
        self._speech = Speech(tools=tools)
        self.text = ""
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self) -> Iterator[str]:
        for piece in self._generation:
            if free := self._speech.push(piece):
                self.text += free
                yield free
        rest = self._speech.finish()
        self.text += rest
        if rest:
            yield rest

    def finish(self) -> Answer:
        """Run to the end without looking at the pieces."""
        for _ in self:
            pass
        return self

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The functions that the model wants called."""
        return self._speech.tool_calls

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length` or `tool_calls` once it is finished."""
        return "tool_calls" if self.tool_calls else self._generation.finish_reason

    @property
    def usage(self) -> Usage:
        """Tokens of the conversation, of the answer and of the view; the same whether or not some were read before."""
        return replace(self._generation.usage, prompt_tokens=self._asked)

    @property
    def recalled(self) -> RecalledSegments:
        """The passages that were replayed to the model, by falling weight."""
        return self._memory.recalled
