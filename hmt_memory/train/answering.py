"""Losses of answers from notes: a view is read once, and its questions are branches behind it, which do not see each other.

Knows a backbone and the token ids of exercises; P comes from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..engine.backbone import eval_mode
from ..engine.unroll import unroll
from .examples import IGNORED
from .losses import TokenLosses, Weights, token_losses

if TYPE_CHECKING:
    from ..engine.cell import MemoryCell

Branch = tuple[Sequence[int], Sequence[int]]  # token ids up to the answer, and those of the answer


def backward_answers(
    model: MemoryCell, views: Sequence[tuple[Sequence[int], Sequence[Branch]]], before: Sequence[Tensor], *, weight: float
) -> float:
    """Back-propagate the cross-entropy a token of the answers in several views. Returns it.

    Args:
        model: the model that learns.
        views: token ids up to the questions, and the questions with their answers.
        before: texts that P remembers in every other view, in turns; in the others all is visible, and P is P_0.
        weight: the factor of the loss.
    """
    prompts = _prompts(model, [branches[0][0] for _, branches in views], before)
    wanted = sum(len(answer) for _, branches in views for _, answer in branches)
    total = 0.0
    for prompt, (ids, branches) in zip(prompts, views, strict=True):
        losses = answer_losses(model, prompt, ids, branches)
        (weight * losses.total / wanted).backward()  # type: ignore[no-untyped-call]
        total += float(losses.next_token.detach())
    return total / wanted


@torch.no_grad()
def _prompts(model: MemoryCell, questions: Sequence[Sequence[int]], before: Sequence[Tensor]) -> list[Tensor]:
    with eval_mode(model):
        states, _ = unroll(model, model.states(None, len(before)), list(before), keep_hidden=False)
        asked = [torch.tensor(list(ids))[-(model.config.summary_length or 1) :] for ids in questions[1::2]]
        known = [model.by_segment(states[number % len(states)]) for number in range(len(asked))]
        behind = list(model.prompt(list(model.summarize(asked)), known)) if asked else []
        first = model.prompt([None], [model.initial_memory[None][:0]])[0]
    return [behind[number // 2] if number % 2 else first for number in range(len(questions))]


def answer_losses(model: MemoryCell, prompt: Tensor, ids: Sequence[int], branches: Sequence[Branch]) -> TokenLosses:
    """Compute the cross-entropy of the answers to several questions about one view, summed over their tokens.

    Args:
        model: the model that learns.
        prompt: [m, d] P, without gradient.
        ids: [t] token ids of the view up to its questions.
        branches: the questions with their answers.
    """
    backbone = model.backbone
    front = model.memory_input.front(prompt).to(backbone.dtype)
    shown = backbone.embed(torch.tensor(list(ids), device=backbone.device))
    cache = backbone.extend(torch.cat([front, shown])[None])[1]
    rows = [torch.tensor([*asked, *answer], device=backbone.device) for asked, answer in branches]
    hidden, _ = backbone.extend(backbone.embed(pad_sequence(rows, batch_first=True)), backbone.repeat(cache, len(rows)))
    targets = torch.full(hidden.shape[:2], IGNORED, device=hidden.device)
    for number, (asked, answer) in enumerate(branches):
        targets[number, len(asked) - 1 : len(asked) - 1 + len(answer)] = torch.tensor(list(answer), device=hidden.device)
    return token_losses(backbone.head, hidden.flatten(0, 1), targets.flatten(), Weights())
