"""Recall, Eq. 2-3: what a summary remembers. Knows the two projections and the shape of a memory; no backbone, no index.

The memory of n segments with m embeddings each is attended slot by slot: slot i of the prompt is recalled from the i-th
embeddings of all segments, so m = 1 is the paper.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import hmt_kernels


class Recalled(NamedTuple):
    """The result of Eq. 3 for B summaries over n segments of m memory embeddings of width d."""

    prompt: Tensor  # [B, m, d] P_n, the memorisation prompt
    weights: Tensor  # [B, n] fp32, mean over the slots; sums to 1
    lse: Tensor  # [B, m] fp32, log-sum-exp of the scores
    coverage: Tensor  # [B, m] fp32, lower bound of the softmax mass covered


class Recall(nn.Module):
    """The recall projections W_q and W_k [d_h, d] of Eq. 2, without bias; they start as the identity."""

    def __init__(self, hidden_size: int, recall_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, recall_dim, bias=False)
        self.key = nn.Linear(hidden_size, recall_dim, bias=False)
        for projection in (self.query, self.key):
            nn.init.eye_(projection.weight)

    def fold(self, summary: Tensor) -> Tensor:
        """Fold summaries [B, d] into queries [B, d] that meet raw memory embeddings: `q = (S W_q) W_k^T / sqrt(d_h)`."""
        query = summary.to(self.query.weight.dtype) @ self.query.weight.T
        return query @ self.key.weight / math.sqrt(self.key.out_features)

    def forward(
        self,
        summary: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        *,
        dropped: int = 0,
        ceiling: Tensor | None = None,
        folded: bool = False,
    ) -> Recalled:
        """Compute Eq. 2-3: `P_n = softmax(S W_q (M W_k)^T / sqrt(d_h)) M`, with the folded query.

        Args:
            summary: [B, d] S_n.
            memory: [B, n, m, d], n >= 1.
            mask: [B, n] bool, True where a segment exists; None: all exist.
            dropped: segments that a preselection left out of each row.
            ceiling: [B] fp32, no embedding left out scores higher; None: as in `hmt_kernels.recall`.
            folded: whether `summary` has been through `fold` already.
        """
        rows, segments, slots, width = memory.shape
        query = (summary if folded else self.fold(summary)).repeat_interleave(slots, dim=0)  # [B * m, d]
        by_slot = memory.transpose(1, 2).reshape(rows * slots, segments, width)
        slot_mask = None if mask is None else mask.repeat_interleave(slots, dim=0)
        bound = None if ceiling is None else ceiling.repeat_interleave(slots, dim=0)
        by_row = hmt_kernels.recall(query, by_slot, slot_mask, dropped=dropped, ceiling=bound)
        return Recalled(
            by_row.output.view(rows, slots, width),
            by_row.weights.view(rows, slots, segments).mean(dim=1),
            by_row.lse.view(rows, slots),
            by_row.coverage.view(rows, slots),
        )


def segment_weights(recall: Recall, summary: Tensor, memory: Tensor) -> Tensor:
    """Compute the recall weights [n] of one summary over a whole memory; empty for an empty memory.

    Args:
        recall: the projections.
        summary: [d].
        memory: [n, m, d] that may be recalled.
    """
    if memory.shape[0] == 0:
        return torch.zeros(0)
    with torch.no_grad():
        return recall(summary[None], memory[None]).weights[0]
