"""Where recall begins to learn: W_q and W_k fitted to memories that are there already, before they learn with the rest.

Rows of text are read once, and many stretches of each are asked for: a stretch should recall the segment it is cut from among
all of its row. One reading serves hundreds of questions, where a training step asks one. Knows the model's summaries and
memories as vectors; nothing but the two projections changes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..engine.backbone import eval_mode
from ..engine.unroll import unroll
from .sources import Document, Encode
from .tasks import Shape, draw

if TYPE_CHECKING:
    from ..model import HMTModel

_ROWS, _SEGMENTS = 16, 100  # read; every eighth row is held out
_STRETCH = (8, 32)  # tokens of a question
_AT_ONCE = 64  # questions summarised in one pass
_STEPS, _RATE, _DECAY, _DROPOUT, _LOOK = 200, 3e-3, 3.0, 0.5, 20
_SHARPNESS = 8.0  # scores of unit vectors a nat apart


class Fitted(NamedTuple):
    """How well held-out questions recall their segment after the fit."""

    first: float  # share of them whose largest weight falls on it
    loss: float  # mean of -log of its weight, nats
    segments: int  # n, among how many


class _Pairs(NamedTuple):
    """R rows of n segments with Q questions each."""

    memory: Tensor  # [R, n, s, d] what may be recalled
    summaries: Tensor  # [R, Q, d]
    targets: Tensor  # [R, Q] the segment that each is cut from


def fit_recall(model: HMTModel, documents: Sequence[Document], *, questions: int, seed: int, encode: Encode) -> Fitted:
    """Set `model.recall` to projections under which stretches of text recall the segments they are cut from.

    With `recalled_tokens`, what they recall enters as it did in front of the segment after it.

    Args:
        questions: how many, over all rows.
        encode: unused by plain text, asked for by `draw`.
    """
    with eval_mode(model):
        pairs = _collect(model, documents, questions // _ROWS, seed, encode)
    held = [row for row in range(_ROWS) if row % 8 == 7]
    learnt = [row for row in range(_ROWS) if row % 8 != 7]
    with torch.enable_grad():
        query, key, found = _fit(pairs, learnt, held, model.recall.query.out_features, seed)
    with torch.no_grad():
        model.recall.query.weight.copy_(query)
        model.recall.key.weight.copy_(key)
        if model.memory_input.kind == "centred" and model.config.recalled_tokens:
            # What is recalled enters at first as the embeddings that it comes from enter.
            carried, recalled = model.memory_input.read.split([model.slots, model.config.recalled_tokens])
            recalled.copy_(model.recallable(carried))
    return found


@torch.no_grad()
def _collect(model: HMTModel, documents: Sequence[Document], questions: int, seed: int, encode: Encode) -> _Pairs:
    length, chance = model.config.segment_length, random.Random(f"{seed}/recall")
    segments = max(2, min(_SEGMENTS, max(len(one.ids) for one in documents) // length))
    shape = Shape(length, segments)
    rows = [draw({"text": 1.0}, documents, f"{seed}/recall/{row}", shape, encode).ids for row in range(_ROWS)]
    before = model.with_config(mode="rmt")  # as the memories were trained
    states, _ = unroll(before, before.states(None, _ROWS), rows, keep_hidden=False)
    memory = torch.stack([model.recallable(before.by_segment(state)).float() for state in states])
    asked, targets = [], []
    for ids in rows:
        for _ in range(questions):
            size = min(chance.randint(*_STRETCH), length)
            start = chance.randrange(len(ids) - size)
            asked.append(ids[start : start + size])
            targets.append((start + size // 2) // length)
    parts = [model.summarize(asked[at : at + _AT_ONCE]).float() for at in range(0, len(asked), _AT_ONCE)]
    summaries = torch.cat(parts).view(_ROWS, questions, -1)
    return _Pairs(memory, summaries, torch.tensor(targets, device=memory.device).view(_ROWS, questions))


def _fit(pairs: _Pairs, learnt: list[int], held: list[int], size: int, seed: int) -> tuple[Tensor, Tensor, Fitted]:
    """W_q and W_k [size, d] by AdamW on standardised vectors with dropout; the step that does best on the rows held out."""
    width = pairs.memory.shape[-1]
    # What all summaries share asks for the same segments whatever is asked: W_q is made blind to it.
    shared = torch.nn.functional.normalize(pairs.summaries.mean(dim=(0, 1)), dim=0)
    blind = torch.eye(width, device=shared.device) - torch.outer(shared, shared)
    asked = pairs.summaries @ blind
    # What all memories of a slot share gives all segments the same score.
    known = pairs.memory - pairs.memory.mean(dim=(0, 1))
    spreads = float(asked.std()), float(known.std())
    standard = _Pairs(known / spreads[1], asked / spreads[0], pairs.targets)
    chance = torch.Generator().manual_seed(seed)
    query, key = (
        (0.3 / math.sqrt(width) * torch.randn(size, width, generator=chance)).to(shared.device).requires_grad_() for _ in "qk"
    )
    optimizer = torch.optim.AdamW([query, key], lr=_RATE, weight_decay=_DECAY)
    torch.manual_seed(seed)  # of the dropout
    best = (query.detach().clone(), key.detach().clone(), Fitted(0.0, math.inf, pairs.memory.shape[1]))
    for step in range(1, _STEPS + 1):
        loss = -_log_weights(standard, learnt, query, key, _DROPOUT).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % _LOOK == 0:
            found = _measured(standard, held, query, key)
            best = (query.detach().clone(), key.detach().clone(), found) if found.loss < best[2].loss else best
    query, key, found = best
    return _SHARPNESS / spreads[0] * query @ blind, key / spreads[1], found


def _weights(pairs: _Pairs, rows: list[int], query: Tensor, key: Tensor, dropout: float = 0.0) -> Tensor:
    """[R, Q, n] log of the mean over the slots of the recall weights."""
    asked, known = (torch.nn.functional.dropout(one[rows], dropout) for one in (pairs.summaries, pairs.memory))
    scores = torch.einsum("rqh,rnsh->rqns", asked @ query.T, known @ key.T) * _SHARPNESS / math.sqrt(len(query))
    return scores.log_softmax(dim=2).logsumexp(dim=3) - math.log(known.shape[2])


def _log_weights(pairs: _Pairs, rows: list[int], query: Tensor, key: Tensor, dropout: float) -> Tensor:
    return _weights(pairs, rows, query, key, dropout).gather(2, pairs.targets[rows][..., None])


@torch.no_grad()
def _measured(pairs: _Pairs, rows: list[int], query: Tensor, key: Tensor) -> Fitted:
    weights = _weights(pairs, rows, query, key)
    wanted = pairs.targets[rows]
    first = (weights.argmax(dim=2) == wanted).float().mean()
    return Fitted(float(first), -float(weights.gather(2, wanted[..., None]).mean()), weights.shape[2])
