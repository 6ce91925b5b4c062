"""Losses of answers from notes: a view is read once, and its questions are branches behind it, which do not see each other.

On a GPU several views are read together. Knows a backbone and the token ids of exercises; P comes from the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..engine.abstaining import OPENINGS
from ..engine.branches import Branching, branched
from ..engine.modes import eval_mode
from ..engine.unroll import unroll
from .devices import Devices
from .losses import TokenLosses, Weights, token_losses

if TYPE_CHECKING:
    from ..engine.cell import MemoryCell

TOGETHER = 4096  # positions that are read together on a GPU, with their padding; on a CPU one view at a time is as fast
Branch = tuple[Sequence[int], Sequence[int]]  # token ids up to the answer, and those of the answer with what closes it


class Written(NamedTuple):
    """Token ids of a view, and of what is asked behind it."""

    before: Sequence[int]  # up to the notes
    notes: Sequence[int]
    branches: Sequence[Branch]  # the questions with their answers


def backward_answers(
    model: MemoryCell,
    views: Sequence[Written],
    before: Sequence[Tensor],
    *,
    weight: float,
    abstaining: float = 0.0,
    devices: Devices | None = None,
) -> float:
    """Back-propagate the cross-entropy a token of the answers in several views. Returns this process's part of it.

    Args:
        model: the model that learns.
        views: with what is asked.
        before: texts that P remembers in every other view, in turns; in the others all is visible, and nothing is recalled.
        weight: the factor of the loss.
        abstaining: the factor of another one: the cross-entropy, an answer, of whether it abstains.
        devices: share the views out; None: this process learns from all.
    """
    prompts = _prompts(model, [view.branches[0][0] for view in views], before)
    wanted = sum(len(answer) for view in views for _, answer in view.branches)
    answers = sum(len(view.branches) for view in views)
    total = 0.0
    devices = devices or Devices()
    alone = devices.in_step or model.backbone.device.type == "cpu"
    for group, counts in _groups(devices.share(list(zip(prompts, views, strict=True))), 0 if alone else TOGETHER):
        losses, decision = answer_losses(model, group)
        (counts * (weight * losses.total / wanted + abstaining * decision / answers)).backward()  # type: ignore[no-untyped-call]
        total += counts * float(losses.next_token.detach())
    return total / wanted


Asked = tuple[Tensor, Written]  # P, without gradient: [m + r, d], or [m, d] where nothing is recalled; and a view behind it


def _groups(shared: Sequence[tuple[Asked, bool]], most: int) -> Iterator[tuple[list[Asked], bool]]:
    """Yield views that are read together, the shortest first, and whether they count.

    Args:
        shared: views, each with whether it counts.
        most: positions of a group, unless one view alone has more.
    """
    group: list[Asked] = []
    counted = True
    for _, (pair, counts) in sorted(enumerate(shared), key=lambda item: (item[1][1], _length(item[1][0]), item[0])):
        if group and (counts != counted or (len(group) + 1) * _length(pair) > most):
            yield group, counted
            group = []
        group, counted = [*group, pair], counts
    if group:
        yield group, counted


def _length(pair: Asked) -> int:
    prompt, view = pair
    return len(prompt) + len(view.before) + len(view.notes) + sum(len(asked) + len(answer) for asked, answer in view.branches)


@torch.no_grad()
def _prompts(model: MemoryCell, questions: Sequence[Sequence[int]], before: Sequence[Tensor]) -> list[Tensor]:
    with eval_mode(model):
        states, _ = unroll(model, model.states(None, len(before)), list(before), keep_hidden=False)
        asked = [torch.tensor(list(ids))[-(model.config.summary_length or 1) :] for ids in questions[1::2]]
        known = [model.by_segment(states[number % len(states)]) for number in range(len(asked))]
        behind = list(model.prompt(list(model.summarize(asked)), known)) if asked else []
        first = model.prompt([None], [model.initial_memory[None][:0]])[0][: model.slots]
    return [behind[number // 2] if number % 2 else first for number in range(len(questions))]


class AnswerLosses(NamedTuple):
    """The losses of the answers to several questions about one view."""

    tokens: TokenLosses  # cross-entropy, summed over the answers' tokens
    abstaining: Tensor  # cross-entropy of whether each answer abstains, summed over those whose first token tells


def answer_losses(model: MemoryCell, views: Sequence[Asked]) -> AnswerLosses:
    """Compute the losses of the answers to several questions about each of some views.

    Args:
        model: the model that learns.
        views: with what is asked, each behind its P.
    """
    backbone = model.backbone

    def embed(ids: Sequence[int]) -> Tensor:
        return backbone.embed(torch.tensor(list(ids), dtype=torch.long, device=backbone.device))

    rows = []
    for prompt, view in views:
        carried, recalled = model.placed(prompt)
        beginning = torch.cat([carried, embed(view.before), recalled, embed(view.notes)])
        rows.append(Branching(beginning, [embed([*asked, *answer[:-1]]) for asked, answer in view.branches]))
    branches = [branch for _, view in views for branch in view.branches]
    found = [states for row in branched(backbone, rows) for states in row]
    hidden = [states[len(asked) - 1 :] for states, (asked, _) in zip(found, branches, strict=True)]
    targets = torch.tensor([token for _, answer in branches for token in answer], device=backbone.device)
    losses = token_losses(backbone.head, torch.cat(hidden), targets, Weights())
    return AnswerLosses(losses, _abstaining(model, [row[0] for row in hidden], [answer for _, answer in branches]))


def _abstaining(model: MemoryCell, hidden: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> Tensor:
    """Sum the cross-entropy of whether answers abstain, by the first token of those that do."""
    opening = model.backbone.encode(OPENINGS[0], literal=True)
    abstains = [list(answer[: len(opening)]) == opening for answer in answers]
    tells = [number for number, answer in enumerate(answers) if abstains[number] or answer[0] != opening[0]]
    if not tells:
        return hidden[0].new_zeros(())
    logits = model.backbone.head(torch.stack([hidden[number] for number in tells])).float()
    others = logits.index_fill(1, torch.tensor([opening[0]], device=logits.device), -torch.inf).logsumexp(1)
    wanted = torch.tensor([abstains[number] for number in tells], device=logits.device)
    return binary_cross_entropy_with_logits(logits[:, opening[0]] - others, wanted.float(), reduction="sum")
