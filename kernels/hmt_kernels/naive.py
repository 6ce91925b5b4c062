"""Recall over memory embeddings in plain torch and fp32: the truth that every faster backend is compared with.

Knows tensors only. Keys and values are the same matrix (K = V = M) because the key projection is folded into the query:
`(S W_q)(M W_k)^T / sqrt(d_h) = q M^T` with `q = (S W_q) W_k^T / sqrt(d_h)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Recall(NamedTuple):
    """The recall of B queries over n memory embeddings of width d."""

    output: Tensor  # [B, d] softmax(q M^T) M, in the dtype of M
    weights: Tensor  # [B, n] fp32, each row sums to 1 over the embeddings given
    lse: Tensor  # [B] fp32, log-sum-exp of the scores: what merging shards needs
    coverage: Tensor  # [B] fp32, lower bound of the softmax mass covered when embeddings were left out


class Selection(NamedTuple):
    """The preselected memory embeddings of B queries."""

    memory: Tensor  # [B, k, d]
    indices: Tensor  # [B, k] int64, by falling score
    dropped: int  # the number of embeddings left out of a row; none scores above the lowest kept


def recall(
    query: Tensor, memory: Tensor, mask: Tensor | None = None, *, dropped: int = 0, ceiling: Tensor | None = None
) -> Recall:
    """Compute the cross-attention of Eq. 2-3, `softmax(q M^T) M`, scores and softmax in fp32.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d] with n >= 1.
        mask: [B, n] bool, True where an embedding exists; each row needs at least one. None: all exist.
        dropped: embeddings a preselection left out of every row. None scores above `ceiling`, so their softmax mass is at
            most `dropped * exp(ceiling - lse)` of the kept mass, hence the bound in `coverage`.
        ceiling: [B] fp32; None: the lowest score kept, which an exact preselection guarantees.
    """
    scores = torch.einsum("bd,bnd->bn", query.float(), memory.float())
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[:, None])
    output = torch.einsum("bn,bnd->bd", weights, memory.float()).to(memory.dtype)
    return Recall(output, weights, lse, coverage_of(scores.detach(), lse.detach(), dropped, ceiling))


def coverage_of(scores: Tensor, lse: Tensor, dropped: int, ceiling: Tensor | None) -> Tensor:
    """Return the lower bound [B] of the softmax mass that fell on what was kept.

    Args:
        scores: [B, n], -inf where nothing exists.
        lse: [B] their log-sum-exp.
        dropped: embeddings left out of every row.
        ceiling: [B], none of them scores higher; None: the lowest score.
    """
    if ceiling is None:
        ceiling = scores.masked_fill(torch.isinf(scores), float("inf")).amin(dim=-1)
    return 1 / (1 + dropped * torch.exp(ceiling - lse)) if dropped else torch.ones_like(lse)


def select(query: Tensor, memory: Tensor, k: int) -> Selection:
    """Select the k memory embeddings [B, k, d] with the largest scores, exactly; all of them when k >= n.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d].
        k: how many are selected.
    """
    scores = torch.einsum("bd,bnd->bn", query.float(), memory.float())
    indices = scores.topk(min(k, memory.shape[1]), dim=-1).indices
    kept = memory.gather(1, indices[:, :, None].expand(-1, -1, memory.shape[2]))
    return Selection(kept, indices, memory.shape[1] - indices.shape[1])


def merge(outputs: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Join recalls over S shards into the recall over their union: exact and associative.

    Args:
        outputs: [S, B, d] outputs of the shards.
        lse: [S, B] their log-sum-exp, -inf for an empty shard.

    Returns:
        The output [B, d] and its log-sum-exp [B].
    """
    total = torch.logsumexp(lse, dim=0)
    weights = torch.exp(lse - total)
    return torch.einsum("sb,sbd->bd", weights, outputs.float()).to(outputs.dtype), total
