"""Answers: decoding from the bounded view of a stream. Never writes to the stream before an answer is whole.

The view is assembled when an answer begins and again each time the answer fills a segment, which is then read into memory
like any other text; between, a key-value cache grows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .cell import MemoryCell
from .chances import TokenChance, chance
from .decoding import Decoding, Detokenizer, StopStrings, align
from .modes import eval_mode
from .reader import read, token_ids
from .recall import segment_weights
from .state import HMTState
from .turns import Turns
from .view import Assembled, Recollection, View
from .view_cache import Prefill, read_whole
from .writing import source_of

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int  # tokens that the call added to the stream before the answer
    completion_tokens: int  # the answer, its end token included
    view_tokens: int  # positions of the first view, which the answer was conditioned on
    cached_tokens: int = 0  # those of them that an earlier answer had read


class SegmentWeight(NamedTuple):
    """One recalled segment."""

    segment: int  # counted from 0
    weight: float  # share of the recall softmax
    token_span: tuple[int, int]  # [start, stop) in the stream's tokens


class Generation(Iterator[str]):
    """An answer being written: iterate for text pieces; when it is finished, `text`, `ids`, `state`, ... are set.

    An abandoned answer leaves nothing behind: the state it was given never changes.
    """

    def __init__(self, pieces: Iterator[str], prompt_tokens: int) -> None:
        self._pieces = pieces
        self.text = ""  # the text given out so far
        self.ids: list[int] = []  # token ids of the answer, its end token included
        self.chances: list[TokenChance] = []  # of its tokens but the end token, where `Decoding.logprobs` asks for them
        self.finish_reason: FinishReason | None = None  # "stop": end token or stop string; "length": max_new_tokens
        self.stop_string: str | None = None  # the stop string that ended it, if one did
        self.usage = Usage(prompt_tokens, 0, 0)
        self.view_ids: list[int] = []  # token ids of the first view: what the answer was conditioned on, all but P
        self.closed: tuple[int, HMTState] | None = None  # the number of `ids` that have been read, and the state after them
        self._rest: Callable[[], HMTState] | None = None

    def __next__(self) -> str:
        piece = next(self._pieces)
        if self.finish_reason is not None:
            self._pieces = iter(())  # lets go of the view
        return piece

    @property
    def state(self) -> HMTState:
        """The state after prompt and answer, equal to reading both. Tokens not read yet are read when it is first asked for.

        Raises:
            InputError: the answer is not finished.
        """
        if self._rest is None:
            raise InputError("the answer is not finished: iterate to its end before using its state.")
        return self._rest()

    def finish(self) -> Generation:
        """Run to the end without looking at the pieces."""
        for _ in self:
            pass
        return self


def generate(
    model: MemoryCell,
    ids: Tensor,
    *,
    state: HMTState | None = None,
    pinned: Tensor,
    notes: Tensor,
    recollection: Recollection | None = None,
    turns: Turns | None = None,
    decoding: Decoding | None = None,
    prefill: Prefill = read_whole,
) -> Generation:
    """Continue a stream with `ids` and an answer of any length.

    Args:
        model: reads and answers; its `view` has the budgets.
        ids: [t] token ids that are added to the stream before the answer.
        state: the stream so far; None: a fresh one. It is not changed.
        pinned: [p] token ids at the head of every view. The tokenizer's start token, in families that have one, always comes
            first.
        notes: [r] token ids shown before the question, never added to the stream.
        recollection: what P recalls from, and what is noted, instead of the state's own memory and `notes`.
        turns: where the turns of the stream begin, its new tokens included; None: notes stand behind the pinned part.
        decoding: how tokens are chosen, and what ends the answer; None: greedy, up to 256 tokens.
        prefill: reads views; that of a `ViewCache` goes on from what it has kept.

    Raises:
        InputError: there is nothing to continue, or stop strings are given without a tokenizer.
        BudgetError: the pinned text or the notes are too long.
    """
    decoding = decoding or Decoding()
    if decoding.stops and model.backbone.tokenizer is None:
        raise InputError("stop strings need text, and this model was wrapped without a tokenizer. Wrap it with one.")
    view, start, added = _opened(model, ids, state, pinned, notes, recollection, turns)
    generation = Generation(iter(()), len(added))
    # It must not keep itself alive: as soon as it is left, a writer elsewhere has to stop.
    generation._pieces = _in_eval_mode(model, _pieces(weakref.proxy(generation), view, decoding, start, added, prefill))
    return generation


def assembled(
    model: MemoryCell,
    ids: Tensor,
    *,
    state: HMTState | None = None,
    pinned: Tensor,
    recollection: Recollection | None = None,
    turns: Turns | None = None,
) -> Assembled:
    """Return the view that `generate` with these arguments would condition an answer on, and answer nothing.

    Args:
        model: would answer.
        ids: [t] token ids that would be added to the stream before the answer.
        state: the stream so far; None: a fresh one. It is not changed.
        pinned: [p] token ids at the head of the view.
        recollection: what P recalls from, and what is noted, instead of the state's own memory.
        turns: where the turns of the stream begin, its new tokens included; None: notes stand behind the pinned part.
    """
    view, start, added = _opened(model, ids, state, pinned, torch.zeros(0, dtype=torch.long), recollection, turns)
    with torch.no_grad(), eval_mode(model):
        return view.assembled(read(model, added, start))


def beginning(model: MemoryCell, ids: Tensor, *, state: HMTState, pinned: Tensor, turns: Turns) -> Tensor:
    """Return the input embeddings [s, d] that the view of `generate` with these arguments begins with, up to the question.

    Args:
        model: as there, like the rest.
        ids: [t] token ids that are added to the stream.
        state: the stream so far.
        pinned: [p] token ids at the head of the view.
        turns: where the turns of the stream begin.
    """
    view, start, added = _opened(model, ids, state, pinned, torch.zeros(0, dtype=torch.long), None, turns)
    before, _ = view.embed(read(model, added, start))
    return before


def _opened(
    model: MemoryCell,
    ids: Tensor,
    state: HMTState | None,
    pinned: Tensor,
    notes: Tensor,
    recollection: Recollection | None,
    turns: Turns | None,
) -> tuple[View, HMTState, Tensor]:
    """Return the view, the state and the tokens that an answer begins with."""
    start = model.states(state, 1)[0]
    first = torch.tensor(model.backbone.start_ids(), dtype=torch.long)
    added = ids if start.tokens else _without(first, ids)
    view = View(model, torch.cat([first, _without(first, pinned)]), notes, len(first), recollection, turns)
    if not (start.tokens or len(added) or len(view.pinned)):
        raise InputError("the prompt is empty and so is the stream: there is nothing to continue.")
    return view, start, added


@torch.no_grad()
def recall_segments(model: MemoryCell, query: Any, state: HMTState, *, top_k: int = 5) -> list[SegmentWeight]:
    """Return the segments a query remembers most, by falling weight: Eq. 1 on its last j tokens, Eq. 2 over all memory.

    Args:
        model: has read the stream.
        query: text or token ids.
        state: the stream.
        top_k: how many segments, at most.

    Raises:
        InputError: the query is empty, or `top_k` is below 1.
    """
    ids = token_ids(model, query)
    if not len(ids) or top_k < 1:
        raise InputError("the query is empty." if not len(ids) else f"top_k={top_k} must be at least 1.")
    if not model.slots:
        return []
    length = model.config.segment_length
    with eval_mode(model):
        (summary,) = model.summarize([ids[-(model.config.summary_length or 1) :]])
    weights = segment_weights(model.recall, summary, model.recallable(model.by_segment(state)))
    best = weights.topk(min(top_k, len(weights)))
    return [
        SegmentWeight(segment, weight, (segment * length, (segment + 1) * length))
        for segment, weight in zip((best.indices + state.segments - len(weights)).tolist(), best.values.tolist(), strict=True)
    ]


def _in_eval_mode(model: MemoryCell, pieces: Iterator[str]) -> Iterator[str]:
    with eval_mode(model):
        yield from pieces


@torch.no_grad()
def _pieces(
    generation: Generation, view: View, decoding: Decoding, start: HMTState, prompt: Tensor, prefill: Prefill
) -> Iterator[str]:
    """Decode, give out text, and set the results on `generation` before the last piece."""
    model, backbone = view.model, view.model.backbone
    stops, length = StopStrings(decoding.stops), model.config.segment_length
    threshold = model.config.abstain_from if decoding.abstain_from is None else decoding.abstain_from
    source = source_of(backbone, decoding, prefill, threshold=threshold or 0.0, writer=model.writer)
    state = read(model, prompt, start)
    marks = [(0, state)]  # states at segment ends, the first and the latest two: (tokens of the answer so far, state)
    shown = view.visible(state)
    before, behind = view.embed(state)
    generation.view_ids = view.ids(state).tolist()
    known = source.begin(before, behind, (), length - len(state.open_ids))
    generation.usage = Usage(len(prompt), 0, len(before) + len(behind), known)
    detokenizer = Detokenizer(backbone.decode)
    ids = generation.ids
    while generation.finish_reason is None:
        token, logprobs = source.choose(shown, ids)
        ids.append(token)
        ended = token in backbone.end_ids  # an end token has no text, whatever its tokenizer says
        if logprobs is not None and not ended:
            generation.chances.append(chance(backbone, logprobs, token, decoding.logprobs or 0))
        piece = stops.push(detokenizer.push(token) if backbone.tokenizer and not ended else "")
        if stops.found is not None or ended:
            generation.finish_reason, generation.stop_string = "stop", stops.found
        elif len(ids) >= decoding.max_new_tokens:
            generation.finish_reason = "length"
        elif len(state.open_ids) + len(ids) - marks[-1][0] == length:
            state = read(model, ids[marks[-1][0] :], state)
            marks[1:] = [*marks[1:][-1:], (len(ids), state)]
            source.begin(*view.embed(state), ids, length)
        if generation.finish_reason is not None:
            source.close()
            piece += _rest(detokenizer, stops, generation) if backbone.tokenizer else ""
            _close(generation, view, marks, generation.text + piece, len(prompt))
        if piece:
            generation.text += piece
            yield piece


def _rest(detokenizer: Detokenizer, stops: StopStrings, generation: Generation) -> str:
    """Return the text still held when an answer is finished; after a cut, without the bytes of an incomplete character."""
    ended = generation.finish_reason == "stop" and stops.found is None
    held = stops.push(detokenizer.flush()) if ended else ""
    generation.stop_string = stops.found
    return held + stops.flush()


def _close(generation: Generation, view: View, marks: list[tuple[int, HMTState]], text: str, prompt: int) -> None:
    """Set ids, usage and state; after a stop string, for the tokens that make up the text before it."""
    backbone = view.model.backbone
    kept = len(generation.ids)
    if generation.stop_string is not None:
        generation.ids, kept = align(generation.ids, text, backbone.decode, partial(backbone.encode, literal=True))
        generation.chances = generation.chances[:kept]
    count, state = generation.closed = next(mark for mark in reversed(marks) if mark[0] <= kept)
    generation._rest = cache(lambda: read(view.model, generation.ids[count:], state))
    generation.usage = replace(generation.usage, prompt_tokens=prompt, completion_tokens=len(generation.ids))


def _without(start: Tensor, ids: Tensor) -> Tensor:
    """Return `ids` without the start tokens that a template or a caller put first: every view begins with them once."""
    return ids[len(start) :] if torch.equal(ids[: len(start)], start) else ids
