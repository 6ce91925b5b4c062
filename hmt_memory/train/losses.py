"""The losses of training, as functions of tensors. Knows a head as hidden states to logits; no model, no data.

Logits of a vocabulary are by far the largest tensors of a training step, so the token losses are computed some rows at a
time and their gradient at once: nothing of the size of the vocabulary is kept for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

Head = Callable[[Tensor], Tensor]
ROWS = 256  # rows of logits held at a time


class TokenLosses(NamedTuple):
    """Sums over the rows whose target is not -100, scalar fp32."""

    total: Tensor  # the weighted sum, differentiable
    next_token: Tensor  # cross-entropy with the targets
    distillation: Tensor  # KL(teacher || student); 0 without a teacher
    tokens: int


class Weights(NamedTuple):
    """The share of each token loss in the total."""

    next_token: float = 1.0
    distillation: float = 0.0


def token_losses(head: Head, hidden: Tensor, targets: Tensor, weights: Weights, teacher: Tensor | None = None) -> TokenLosses:
    """Compute next-token cross-entropy and distillation of hidden states.

    Args:
        head: maps hidden states [n, d] to logits [n, vocab].
        hidden: [t, d] hidden states of the model.
        targets: [t] the token that each should predict; -100 where no loss is wanted.
        weights: how much of each loss goes into the total.
        teacher: [t, d] hidden states of the teacher for the same positions, under the same head.
    """
    wanted = targets != -100
    rows, ids = hidden[wanted], targets[wanted]
    guide = None if teacher is None or not weights.distillation else teacher[wanted].detach()
    if not len(rows):
        zero = hidden.sum() * 0.0
        return TokenLosses(zero.float(), zero.detach().float(), zero.detach().float(), 0)
    # A head that learns needs the plain graph; a frozen one lends its gradient at once.
    learns = torch.is_grad_enabled() and head(rows[:1].detach()).requires_grad
    if learns or not (torch.is_grad_enabled() and rows.requires_grad):
        entropy, divergence = _losses(head, rows, ids, guide)
        total = weights.next_token * entropy + weights.distillation * divergence
        return TokenLosses(total, entropy.detach(), divergence.detach(), len(ids))
    total, entropy, divergence = _Fused.apply(rows, ids, guide, head, weights)
    return TokenLosses(total, entropy, divergence, len(ids))


def _losses(head: Head, rows: Tensor, ids: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = head(rows).float()
    entropy = cross_entropy(logits, ids, reduction="sum")
    if guide is None:
        return entropy, entropy.detach() * 0.0
    with torch.no_grad():
        known = log_softmax(head(guide).float(), dim=-1)
    return entropy, (known.exp() * (known - log_softmax(logits, dim=-1))).sum()


class _Fused(torch.autograd.Function):
    """The token losses with their gradient computed in the forward pass, `ROWS` rows at a time.

    With p the model's probabilities and q the teacher's, the gradient of the cross-entropy with respect to the logits is
    p - onehot; the gradient of KL(q || p) is p - q.
    """

    @staticmethod
    def forward(
        context: Any, rows: Tensor, ids: Tensor, guide: Tensor | None, head: Head, weights: Weights
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.empty_like(rows)
        sums = torch.zeros(2, dtype=torch.float32, device=rows.device)
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            leaf = rows[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = head(leaf)
            known = None if guide is None else log_softmax(head(guide[part]).float(), dim=-1)
            losses, change = _gradient(log_softmax(logits.detach().float(), dim=-1), ids[part], known, weights)
            (gradient[part],) = torch.autograd.grad(logits, leaf, change.to(logits.dtype))
            sums += losses
        context.save_for_backward(gradient)
        context.mark_non_differentiable(sums)
        return weights.next_token * sums[0] + weights.distillation * sums[1], sums[0].clone(), sums[1].clone()

    @staticmethod
    def backward(context: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = context.saved_tensors
        return gradient * total.to(gradient.dtype), None, None, None, None


def _gradient(scores: Tensor, ids: Tensor, known: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return both losses [2] and the gradient of their weighted sum for the logits.

    Overwrites `scores` [n, vocab], the log-probabilities.
    """
    entropy = -scores.gather(1, ids[:, None]).sum()
    if known is None:
        change, divergence = scores.exp_().mul_(weights.next_token), torch.zeros_like(entropy)
    else:
        teacher = known.exp()
        # Two dot products instead of sums over products: nothing more of the size of the vocabulary is written.
        divergence = teacher.flatten() @ known.flatten() - teacher.flatten() @ scores.flatten()
        change = scores.exp_().mul_(weights.next_token + weights.distillation).sub_(teacher, alpha=weights.distillation)
    change.scatter_add_(1, ids[:, None], torch.full_like(ids[:, None], -weights.next_token, dtype=change.dtype))
    return torch.stack([entropy, divergence]), change


def recall_loss(weights: Tensor, evidence: Sequence[int]) -> Tensor:
    """Return `-log` of the recall weight that falls on the segments known to hold the answer.

    Args:
        weights: [n] recall weights, which sum to 1: they are probabilities already (no second softmax).
        evidence: positions in `weights` of the segments that hold the answer.
    """
    return -torch.log(weights[list(evidence)].sum().clamp(min=1e-9))
