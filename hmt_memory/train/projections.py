"""The start of recall: W_q and W_k are fitted to memories that exist already, before they learn with the rest.

Rows of text are read once, and many stretches of each serve as questions: a stretch should recall the segment it is cut from
among all segments of its row. One reading serves hundreds of questions, where a training step asks one. Knows the model's
summaries and memories as vectors; changes nothing but the two projections.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..engine.modes import eval_mode
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
    """The quality of a fit: how well held-out questions recall their segments."""

    first: float  # share of the questions whose largest weight falls on their segment
    loss: float  # mean of -log of that segment's weight, nats
    segments: int  # n, the segments to choose from


class _Pairs(NamedTuple):
    """R rows of n segments with Q questions each."""

    memory: Tensor  # [R, n, s, d] what may be recalled
    summaries: Tensor  # [R, Q, d]
    targets: Tensor  # [R, Q] the segment that each is cut from


def fit_recall(model: HMTModel, documents: Sequence[Document], *, questions: int, seed: int, encode: Encode) -> Fitted:
    """Set `model.recall` to projections under which stretches of text recall the segments they are cut from.

    With `recalled_tokens`, recalled embeddings enter at first as the carried embeddings before them entered.

    Args:
        model: the model whose projections are fitted; its other weights stay as they are.
        documents: the text to cut rows and questions from.
        questions: the number of questions over all rows.
        seed: decides which stretches are cut, and the start of the fit.
        encode: text to token ids; `draw` asks for it, plain text does not use it.
    """
    with eval_mode(model):
        pairs = _collect(model, documents, questions // _ROWS, seed, encode)
    held = [row for row in range(_ROWS) if row % 8 == 7]
    learnt = [row for row in range(_ROWS) if row % 8 != 7]
    with torch.enable_grad():
        query, key, fitted = _fit(pairs, learnt, held, model.recall.query.out_features, seed)
    with torch.no_grad():
        model.recall.query.weight.copy_(query)
        model.recall.key.weight.copy_(key)
        if model.memory_input.kind == "centred" and model.config.recalled_tokens:
            # Recalled embeddings enter at first as the embeddings that they come from enter.
            carried, recalled = model.memory_input.read.split([model.slots, model.config.recalled_tokens])
            recalled.copy_(model.recallable(carried))
    return fitted


@torch.no_grad()
def _collect(model: HMTModel, documents: Sequence[Document], questions: int, seed: int, encode: Encode) -> _Pairs:
    length, chance = model.config.segment_length, random.Random(f"{seed}/recall")
    segments = max(2, min(_SEGMENTS, max(len(document.ids) for document in documents) // length))
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
    parts = [model.summarize(asked[start : start + _AT_ONCE]).float() for start in range(0, len(asked), _AT_ONCE)]
    summaries = torch.cat(parts).view(_ROWS, questions, -1)
    return _Pairs(memory, summaries, torch.tensor(targets, device=memory.device).view(_ROWS, questions))


def _fit(pairs: _Pairs, learnt: list[int], held: list[int], size: int, seed: int) -> tuple[Tensor, Tensor, Fitted]:
    """Fit W_q and W_k [size, d] by AdamW on standardised vectors with dropout.

    The result is the step that does best on the rows held out.
    """
    width = pairs.memory.shape[-1]
    # The part that all summaries share would ask for the same segments whatever the question: W_q ignores it.
    shared = torch.nn.functional.normalize(pairs.summaries.mean(dim=(0, 1)), dim=0)
    blind = torch.eye(width, device=shared.device) - torch.outer(shared, shared)
    asked = pairs.summaries @ blind
    # The part that all memories of a slot share gives all segments the same score.
    known = pairs.memory - pairs.memory.mean(dim=(0, 1))
    spreads = float(asked.std()), float(known.std())
    standard = _Pairs(known / spreads[1], asked / spreads[0], pairs.targets)
    chance = torch.Generator().manual_seed(seed)
    query, key = (
        (0.3 / math.sqrt(width) * torch.randn(size, width, generator=chance)).to(shared.device).requires_grad_() for _ in "qk"
    )
    optimizer = torch.optim.AdamW([query, key], lr=_RATE, weight_decay=_DECAY)
    torch.manual_seed(seed)  # for the dropout
    best = (query.detach().clone(), key.detach().clone(), Fitted(0.0, math.inf, pairs.memory.shape[1]))
    for step in range(1, _STEPS + 1):
        loss = -_log_weights(standard, learnt, query, key, _DROPOUT).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % _LOOK == 0:
            fitted = _measured(standard, held, query, key)
            best = (query.detach().clone(), key.detach().clone(), fitted) if fitted.loss < best[2].loss else best
    query, key, fitted = best
    return _SHARPNESS / spreads[0] * query @ blind, key / spreads[1], fitted


def _weights(pairs: _Pairs, rows: list[int], query: Tensor, key: Tensor, dropout: float = 0.0) -> Tensor:
    """Return the log of the recall weights, averaged over the slots: [R, Q, n]."""
    asked, known = (torch.nn.functional.dropout(vectors[rows], dropout) for vectors in (pairs.summaries, pairs.memory))
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
