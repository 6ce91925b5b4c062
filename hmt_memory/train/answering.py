"""Losses of answers from notes: a view is read once, and its questions are branches behind it, which do not see each other.

Knows a backbone and the token ids of exercises; P comes from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..engine.modes import eval_mode
from ..engine.unroll import unroll
from .examples import IGNORED
from .losses import TokenLosses, Weights, token_losses

if TYPE_CHECKING:
    from ..engine.cell import MemoryCell

Branch = tuple[Sequence[int], Sequence[int]]  # token ids up to the answer, and those of the answer with what closes it


class Written(NamedTuple):
    """Token ids of a view, and of what is asked behind it."""

    before: Sequence[int]  # up to the notes
    notes: Sequence[int]
    branches: Sequence[Branch]  # the questions with their answers


def backward_answers(model: MemoryCell, views: Sequence[Written], before: Sequence[Tensor], *, weight: float) -> float:
    """Back-propagate the cross-entropy a token of the answers in several views. Returns it.

    Args:
        model: the model that learns.
        views: with what is asked.
        before: texts that P remembers in every other view, in turns; in the others all is visible, and nothing is recalled.
        weight: the factor of the loss.
    """
    prompts = _prompts(model, [view.branches[0][0] for view in views], before)
    wanted = sum(len(answer) for view in views for _, answer in view.branches)
    total = 0.0
    for prompt, view in zip(prompts, views, strict=True):
        losses = answer_losses(model, prompt, view)
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
        first = model.prompt([None], [model.initial_memory[None][:0]])[0][: model.slots]
    return [behind[number // 2] if number % 2 else first for number in range(len(questions))]


def answer_losses(model: MemoryCell, prompt: Tensor, view: Written) -> TokenLosses:
    """Compute the cross-entropy of the answers to several questions about one view, summed over their tokens.

    Args:
        model: the model that learns.
        prompt: [m + r, d] P, or [m, d] where nothing is recalled; without gradient.
        view: with what is asked.
    """
    backbone = model.backbone
    carried, recalled = model.placed(prompt)
    before, notes = (
        backbone.embed(torch.tensor(list(ids), dtype=torch.long, device=backbone.device)) for ids in (view.before, view.notes)
    )
    cache = backbone.extend(torch.cat([carried, before, recalled, notes])[None])[1]
    rows = [torch.tensor([*asked, *answer], device=backbone.device) for asked, answer in view.branches]
    hidden, _ = backbone.extend(backbone.embed(pad_sequence(rows, batch_first=True)), backbone.repeat(cache, len(rows)))
    targets = torch.full(hidden.shape[:2], IGNORED, device=hidden.device)
    for number, (asked, answer) in enumerate(view.branches):
        targets[number, len(asked) - 1 : len(asked) - 1 + len(answer)] = torch.tensor(list(answer), device=hidden.device)
    return token_losses(backbone.head, hidden.flatten(0, 1), targets.flatten(), Weights())
