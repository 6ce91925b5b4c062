"""Answering: the bounded view of a stream, and decoding from it. Never writes to the stream before an answer is whole.

The view is `[P | pinned | replayed | recent tokens | open segment]`. It is assembled when an answer begins and again each
time the answer fills a segment, which is then read into memory like any other text; between, a key-value cache grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ..chat.transcript import Transcript
from ..errors import BudgetError, InputError
from .backbone import eval_mode
from .decoding import Detokenizer, Sampler, StopStrings, align
from .reader import read, token_ids
from .recall import segment_weights
from .state import HMTState

if TYPE_CHECKING:
    from ..model import HMTModel

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int  # what the call added to the stream before the answer
    completion_tokens: int  # the answer, its end token included
    view_tokens: int  # positions of the first view: what the answer was conditioned on


class SegmentWeight(NamedTuple):
    """One recalled segment."""

    segment: int  # counted from 0
    weight: float  # share of the recall softmax
    token_span: tuple[int, int]  # [start, stop) in the stream's tokens


class Recollection(Protocol):
    """What an answer may remember beyond its stream's own recall window: sessions bring one."""

    def memory(self, summary: Tensor, state: HMTState, visible: int) -> Tensor:
        """[k, m, d] the memory embeddings that P recalls from, for a summary [d] of the last `visible` tokens, which show."""
        ...

    def passages(self) -> Tensor:
        """[t] token ids to replay, at most `replay_tokens`: those for the first view, once `memory` was asked for it."""
        ...


class Generation(Iterator[str]):
    """An answer being written: iterate for text pieces; when it is finished, `text`, `ids`, `state`, ... are set.

    Abandoned, it leaves nothing behind: the state it was given never changes.
    """

    def __init__(self, pieces: Iterator[str], prompt_tokens: int) -> None:
        self._pieces = pieces
        self.text = ""  # what was given out so far
        self.ids: list[int] = []  # token ids of the answer, its end token included
        self.finish_reason: FinishReason | None = None  # "stop": end token or stop string; "length": max_new_tokens
        self.stop_string: str | None = None  # the stop string that ended it, if one did
        self.usage = Usage(prompt_tokens, 0, 0)
        self.closed: tuple[int, HMTState] | None = None  # how much of `ids` has been read into the state beside it
        self._rest: Callable[[], HMTState] | None = None

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def state(self) -> HMTState:
        """The state after prompt and answer, equal to reading both; what of it is not read yet is read when first asked for.

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
    model: HMTModel,
    prompt: Any,
    *,
    state: HMTState | None = None,
    pinned: Any = None,
    replayed: Any = (),
    literal: bool = True,
    recollection: Recollection | None = None,
    max_new_tokens: int = 256,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Iterable[str] | None = None,
    logits_processors: Iterable[Any] = (),
) -> Generation:
    """Continue a stream with `prompt` and an answer of any length.

    Args:
        prompt: text or token ids as they are, or chat messages (dicts with role and content) for the chat template, whose
            system messages are pinned. Messages continue a stream as its next turn: whatever it ends with is closed by the
            template's end of an answer first. Without a template they are a plain script: `User: ...`, `Assistant: ...`.
        state: the stream so far; None: a fresh one. It is not changed.
        pinned: text or token ids at the head of every view, instead of the messages' system part. The tokenizer's start
            token, in families that have one, always comes first.
        replayed: text or token ids shown between the pinned part and the recent tokens, never added to the stream.
        literal: whether what looks like a special token in a given text is plain text; False for a text that a chat template
            has written. What messages say always is.
        recollection: what P recalls from, and what is replayed, instead of the state's own memory and `replayed`.
        max_new_tokens: at most so many tokens, end token included. min_new_tokens: no end token before so many.
        temperature, top_p, top_k, repetition_penalty, seed, logits_processors: see `decoding.Sampler`.
        stop: strings that end the answer; they are not part of it.

    Raises:
        InputError: nothing to continue, or an option out of range. BudgetError: pinned or replayed text is too long.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if stop and model.backbone.tokenizer is None:
        raise InputError("stop strings need text, and this model was wrapped without a tokenizer. Wrap it with one.")
    start = model.states(state, 1)[0]
    first = torch.tensor(model.backbone.start_ids(), dtype=torch.long)
    added, head, ends = _given(model, prompt, start, pinned, literal=literal)
    added = added if start.tokens else _without(first, added)
    shown = token_ids(model, replayed, literal=literal)
    context = _Context(model, torch.cat([first, _without(first, head)]), shown, len(first), recollection)
    if not (start.tokens or len(added) or len(context.pinned)):
        raise InputError("the prompt is empty and so is the stream: there is nothing to continue.")
    sampler = Sampler(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        processors=logits_processors,
    )
    stops = StopStrings([*([stop] if isinstance(stop, str) else stop or ()), *ends])
    generation = Generation(iter(()), len(added))
    pieces = _pieces(generation, context, sampler, stops, start, added, range(min_new_tokens, max_new_tokens))
    generation._pieces = _in_eval_mode(model, pieces)
    return generation


def generate_batch(
    model: HMTModel, prompts: Sequence[Any], states: Sequence[HMTState | None] | None = None, **options: Any
) -> list[Generation]:
    """Finished answers to several prompts; options as in `generate`.

    Rows are answered one after the other, so that no answer depends, even by rounding, on its neighbours.
    """
    given = [None] * len(prompts) if states is None else states
    if len(given) != len(prompts):
        raise InputError(f"{len(given)} states for {len(prompts)} prompts. Pass one state per prompt.")
    return [generate(model, prompt, state=state, **options).finish() for prompt, state in zip(prompts, given, strict=True)]


@torch.no_grad()
def recall_segments(model: HMTModel, query: Any, state: HMTState, *, top_k: int = 5) -> list[SegmentWeight]:
    """The segments a query remembers most, by falling weight: Eq. 1 on the query's last j tokens, Eq. 2 over all memory.

    Args:
        query: text or token ids.

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


class _Context:
    """Assembles views of one call; a view is a function of the state, and of the passages chosen for the first."""

    def __init__(
        self, model: HMTModel, pinned: Tensor, replayed: Tensor, start: int, recollection: Recollection | None
    ) -> None:
        """`start`: how many start tokens `pinned` begins with; where its budget is full they take from the recent tokens."""
        self.model, self.pinned, self.replayed = model, pinned, replayed
        self._recollection, self._chosen = recollection, recollection is None
        for name, count in (("pinned_tokens", len(pinned) - start), ("replay_tokens", len(replayed))):
            check_budget(model, name, count)
        over = max(0, len(pinned) - (model.config.pinned_tokens or 0))
        self._recent = max(0, (model.config.recent_tokens or 0) - over)

    def visible(self, state: HMTState) -> Tensor:
        """[v] token ids of the stream that the view shows: recent tokens and the open segment."""
        return torch.cat([state.recent_ids[max(0, len(state.recent_ids) - self._recent) :], state.open_ids])

    def view(self, state: HMTState) -> Tensor:
        """[1, t, d] input embeddings of `[P | pinned | replayed | recent | open]`."""
        backbone = self.model.backbone
        prompt = self.model.memory_input.front(self._prompt(state)).to(backbone.dtype)
        ids = torch.cat([self.pinned, self.replayed, self.visible(state)]).to(backbone.device)
        if not len(prompt) + len(ids):
            raise BudgetError("nothing is visible: no memory, no pinned text and recent_tokens=0. Raise recent_tokens.")
        return torch.cat([prompt, backbone.embed(ids)])[None]

    def _prompt(self, state: HMTState) -> Tensor:
        """P: Eq. 2-3 with the summary (Eq. 1) of the last j visible tokens, where the question stands.

        With `recalled_tokens`, M_{n-1} is that of the last segment that is not visible, whose text the view goes on from; where
        everything is visible the view begins with P_0, as a segment does that nothing was read before.
        """
        model = self.model
        if model.config.mode != "hmt":
            return model.prompt([None], [model.by_segment(state)])[0]
        memory, summary = model.recallable(model.by_segment(state)[-model.config.recall_window :]), None
        if len(memory) or self._recollection is not None:
            visible = self.visible(state)
            (summary,) = model.summarize([visible[-(model.config.summary_length or 1) :]])
            if self._recollection is not None:
                memory = self._recollection.memory(summary, state, len(visible))
                self._choose()
        hidden = (state.tokens - len(self.visible(state))) // model.config.segment_length
        if not model.is_trained or (model.config.recalled_tokens and not hidden):
            # P_0: an untrained P in front of an answer derails it (docs/log.md).
            return model.prompt([None], [model.by_segment(state)[:0]])[0]
        return model.joined([self._before(state, hidden)], model.recalled([summary], [memory]))[0]

    def _before(self, state: HMTState, hidden: int) -> Tensor:
        """[m, d] the memory of the last of the hidden segments, P_0 where there is none or the state has let it go."""
        memory = self.model.by_segment(state)
        held = hidden - (state.segments - len(memory))
        return memory[held - 1] if held > 0 else self.model.initial_memory

    def _choose(self) -> None:
        """Take over what the recollection has chosen to replay for the first view, where the question stands."""
        if self._recollection is not None and not self._chosen:
            self.replayed, self._chosen = self._recollection.passages(), True
            check_budget(self.model, "replay_tokens", len(self.replayed))


def check_budget(model: HMTModel, name: str, count: int) -> None:
    """Raises BudgetError if `count` tokens are over the view's budget `name`."""
    budget = getattr(model.config, name)
    if count > budget:
        raise BudgetError(f"{count} tokens are over {name}={budget}. Shorten the text or raise {name}.")


def _in_eval_mode(model: HMTModel, pieces: Iterator[str]) -> Iterator[str]:
    with eval_mode(model):
        yield from pieces


@torch.no_grad()
def _pieces(
    generation: Generation,
    context: _Context,
    sampler: Sampler,
    stops: StopStrings,
    start: HMTState,
    prompt: Tensor,
    lengths: range,
) -> Iterator[str]:
    """Decode, give out text, and set the results on `generation` before the last piece.

    `lengths`: from the number of tokens before which no end token may come, to the largest number of tokens.
    """
    model, backbone = context.model, context.model.backbone
    state = read(model, prompt, start)
    marks = [(0, state)]  # states at segment ends, the first and the latest two: (tokens of the answer so far, state)
    shown = context.visible(state)
    view = context.view(state)
    generation.usage = Usage(len(prompt), 0, view.shape[1])
    hidden, cache = backbone.advance(view)
    detokenizer = Detokenizer(backbone.decode)
    ids = generation.ids
    while generation.finish_reason is None:
        logits = backbone.head(hidden)[0]
        if len(ids) < lengths.start:
            logits[list(backbone.end_ids)] = float("-inf")
        ids.append(sampler(torch.cat([shown, torch.tensor(ids, dtype=torch.long)]), logits))
        ended = ids[-1] in backbone.end_ids  # an end token has no text, whatever its tokenizer says
        piece = stops.push(detokenizer.push(ids[-1]) if backbone.tokenizer and not ended else "")
        if stops.found is not None or ended:
            generation.finish_reason, generation.stop_string = "stop", stops.found
        elif len(ids) >= lengths.stop:
            generation.finish_reason = "length"
        elif len(state.open_ids) + len(ids) - marks[-1][0] == model.config.segment_length:
            state = read(model, ids[marks[-1][0] :], state)
            marks[1:] = [*marks[1:][-1:], (len(ids), state)]
            hidden, cache = backbone.advance(context.view(state))
        else:
            hidden, cache = backbone.advance(backbone.embed(torch.tensor([[ids[-1]]], device=backbone.device)), cache)
        if generation.finish_reason is not None:
            piece += _rest(detokenizer, stops, generation) if backbone.tokenizer else ""
            _close(generation, context, marks, generation.text + piece, len(prompt))
        if piece:
            generation.text += piece
            yield piece


def _rest(detokenizer: Detokenizer, stops: StopStrings, generation: Generation) -> str:
    """The text still held when an answer is finished; after a cut, not the bytes of a character that is not whole."""
    ended = generation.finish_reason == "stop" and stops.found is None
    held = stops.push(detokenizer.flush()) if ended else ""
    generation.stop_string = stops.found
    return held + stops.flush()


def _close(generation: Generation, context: _Context, marks: list[tuple[int, HMTState]], text: str, prompt: int) -> None:
    """Set ids, usage and state; after a stop string, for the tokens that make up the text before it."""
    backbone = context.model.backbone
    kept = len(generation.ids)
    if generation.stop_string is not None:
        generation.ids, kept = align(generation.ids, text, backbone.decode, partial(backbone.encode, literal=True))
    count, state = generation.closed = next(mark for mark in reversed(marks) if mark[0] <= kept)
    generation._rest = cache(lambda: read(context.model, generation.ids[count:], state))
    generation.usage = Usage(prompt, len(generation.ids), generation.usage.view_tokens)


class _Given(NamedTuple):
    """What a call adds to the stream and pins, as token ids [t], and what ends its answer."""

    ids: Tensor
    pinned: Tensor
    stop: Sequence[str] = ()


def _given(model: HMTModel, prompt: Any, state: HMTState, pinned: Any, *, literal: bool) -> _Given:
    """Turn messages or text into the token ids of a call.

    Args:
        state: the stream that goes on. prompt, pinned, literal: see `generate`.
    """
    if not _are_messages(prompt):
        ids = token_ids(model, prompt, literal=literal)
        return _Given(ids, token_ids(model, () if pinned is None else pinned, literal=literal))
    transcript = Transcript(model.backbone)
    latest = torch.cat([state.recent_ids, state.open_ids])[-1:].tolist()
    asked = transcript.asked(prompt, before=latest if state.tokens else None)
    head = asked.pinned if pinned is None else pinned
    return _Given(token_ids(model, asked.ids), token_ids(model, head, literal=literal), transcript.stop)


def _are_messages(prompt: Any) -> bool:
    """Tell messages, or one, from text and token ids."""
    several = isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) > 0
    return isinstance(prompt[0] if several else prompt, Mapping)


def _without(start: Tensor, ids: Tensor) -> Tensor:
    """`ids` without the start tokens a template or a caller put first: every view begins with them once."""
    return ids[len(start) :] if torch.equal(ids[: len(start)], start) else ids
