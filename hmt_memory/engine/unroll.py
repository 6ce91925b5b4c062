"""The loop over segments that training, reading and answering share. Knows the model as summarize, prompt and augment.

Reading is canonical: memory is a function of the token stream, the weights and the configuration, never of how the stream
was cut into calls or of what else was in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .cell import MemoryCell, Step
from .rounding import rounded
from .state import HMTState

# Summaries do not depend on memory, so many segments are summarized in one batch of about this many tokens.
SUMMARY_BATCH_TOKENS = 2048


class Turn(NamedTuple):
    """The inputs of Eq. 3-5 for the next segment of those streams that have one."""

    number: int  # the segment's, counted from the first one unrolled
    rows: list[int]  # the streams that have this segment
    summaries: list[Tensor | None]  # S_n [d] of each, None where nothing is recalled
    windows: list[Tensor]  # [n, m, d], the memory that each may recall
    tails: list[Tensor]  # [s] token ids, its sensory memory
    segments: list[Tensor]  # [t] token ids


class Steps:
    """The steps of the loop; training overrides them to save activations for the backward pass."""

    summary_tokens = SUMMARY_BATCH_TOKENS

    def __init__(self, model: MemoryCell) -> None:
        self.model = model

    def summarize(self, segments: Sequence[Tensor]) -> Tensor:
        """Compute Eq. 1 for S segments: [S, d]."""
        return self.model.summarize(segments)

    def read(self, turn: Turn) -> Step:
        """Compute Eq. 2-5 for one turn."""
        return self.model.augment(self.model.prompt(turn.summaries, turn.windows), turn.tails, turn.segments)


def unroll(
    model: MemoryCell,
    states: Sequence[HMTState],
    streams: Sequence[Tensor],
    *,
    keep_hidden: bool,
    final: bool | Sequence[bool] = False,
    steps: Steps | None = None,
) -> tuple[list[HMTState], list[Tensor]]:
    """Compute Eq. 1-5 over every segment of B streams.

    Memory is kept in the precision of each state, and rounded to 8 bits where the state says so.

    Args:
        model: the cell.
        states: the streams so far, B of them.
        streams: B x [t_b] token ids to append.
        keep_hidden: also run the open segment, which leaves no memory, and return hidden states; otherwise closed segments
            only are run.
        final: whether the streams, or which of them, end here: a last segment that is not full is closed as it is.
        steps: takes the steps; None: plainly.

    Returns:
        The B states afterwards, and B x [t_b, d] hidden states of the new tokens, empty without `keep_hidden`.
    """
    steps = steps or Steps(model)
    length = model.config.segment_length
    texts = [torch.cat([state.open_ids, ids.cpu()]) for state, ids in zip(states, streams, strict=True)]
    cuts = [list(text.split(length)) if len(text) else [] for text in texts]
    ends = [final] * len(texts) if isinstance(final, bool) else list(final)
    if not keep_hidden:
        cuts = [cut if end else [ids for ids in cut if len(ids) == length] for cut, end in zip(cuts, ends, strict=True)]
    memories = [model.by_segment(state) for state in states]
    windows = [memory[-model.config.recall_window :] for memory in memories]
    made: list[list[Tensor]] = [[] for _ in states]
    keys: list[list[Tensor]] = [[] for _ in states]
    tails = [_last(state.recent_ids, model.config.sensory_length) for state in states]
    hidden: list[list[Tensor]] = [[] for _ in states]
    reads = keep_hidden or model.slots > 0 or type(steps) is not Steps  # else there is nothing to compute
    summary_of = _Summaries(steps, cuts, [len(window) > 0 for window in windows])
    for index in range(max(map(len, cuts), default=0)):
        rows = [row for row, cut in enumerate(cuts) if index < len(cut)]
        turn = Turn(
            index,
            rows,
            [summary_of(row, index) for row in rows],
            [windows[row] for row in rows],
            [tails[row] for row in rows],
            [cuts[row][index] for row in rows],
        )
        step = steps.read(turn) if reads else _nothing(model, turn)
        for place, row in enumerate(rows):
            if keep_hidden:
                hidden[row].append(step.hidden[place])
            if ends[row] or len(cuts[row][index]) == length:
                made[row].append(_kept(step.memory[place], states[row]).to(memories[row].dtype))
                if model.keys is not None and step.hidden:  # steps of training give none
                    keys[row].append(_kept(model.keys_of(cuts[row][index], step.hidden[place]), states[row]))
                windows[row] = torch.cat([windows[row], made[row][-1][None]])[-model.config.recall_window :]
                tails[row] = _last(cuts[row][index], model.config.sensory_length)
    grown = [replace(state, keys=(*state.keys, *new)) if new else state for state, new in zip(states, keys, strict=True)]
    after = [_advance(model, *row) for row in zip(grown, memories, made, texts, [len(s) for s in streams], strict=True)]
    none = torch.zeros(0, model.backbone.hidden_size, dtype=model.backbone.dtype, device=model.backbone.device)
    return after, [torch.cat([none, *parts])[len(state.open_ids) :] for parts, state in zip(hidden, states, strict=True)]


def _nothing(model: MemoryCell, turn: Turn) -> Step:
    """Return the step of segments that leave no memory."""
    none = torch.zeros(len(turn.rows), 0, model.backbone.hidden_size, dtype=model.backbone.dtype, device=model.backbone.device)
    return Step([], none)


class _Summaries:
    """The summaries (Eq.

    1) of all segments that will recall, computed in batches ahead of the recurrence and handed out once.
    """

    def __init__(self, steps: Steps, cuts: Sequence[Sequence[Tensor]], has_memory: Sequence[bool]) -> None:
        self._steps, self._cuts, config = steps, cuts, steps.model.config
        self._size = max(1, steps.summary_tokens // ((config.summary_length or 0) + 2))
        self._ahead: Iterator[tuple[int, int]] = iter(
            (row, index)
            for index in range(max(map(len, cuts), default=0))
            for row, cut in enumerate(cuts)
            if index < len(cut) and (index or has_memory[row]) and config.mode == "hmt"
        )
        self._known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, row: int, index: int) -> Tensor | None:
        if (row, index) not in self._known:
            self._next_batch()
        return self._known.pop((row, index), None)

    def _next_batch(self) -> None:
        keys = [key for _, key in zip(range(self._size), self._ahead, strict=False)]
        if keys:
            summaries = self._steps.summarize([self._cuts[row][index] for row, index in keys])
            self._known.update(zip(keys, summaries, strict=True))


def _advance(model: MemoryCell, state: HMTState, memory: Tensor, made: list[Tensor], text: Tensor, new: int) -> HMTState:
    config = model.config
    closed = min(len(made) * config.segment_length, len(text))
    keep = max(model.view.recent_tokens or 0, config.sensory_length)
    recent = torch.cat([state.recent_ids, text[max(0, closed - keep) : closed]])
    grown = torch.cat([memory, torch.stack(made)]) if made else memory
    return HMTState(
        memory=grown.flatten(0, 1),
        recent_ids=_last(recent, keep).clone(),
        open_ids=text[closed:].clone(),
        segments=state.segments + len(made),
        tokens=state.tokens + new,
        held=len(grown),
        keys=state.keys,
        memory_bits=state.memory_bits,
    )


def _kept(made: Tensor, state: HMTState) -> Tensor:
    return rounded(made) if state.memory_bits == 8 else made


def _last(ids: Tensor, count: int) -> Tensor:
    return ids[max(0, len(ids) - count) :]
