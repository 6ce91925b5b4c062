"""One row of a training step: token ids and where in them a loss is wanted. Knows no model and no files."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Example:
    """One stream of text to unroll, as whole segments (the last may be shorter)."""

    ids: Tensor  # [t] int64
    labels: Tensor  # [t] int64: the tokens to predict, IGNORED where no loss is wanted
    before: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.long)
    )  # whole segments read first, without gradient
    # segment -> segments that it should recall, both counted from the first of `ids` (those of `before` are negative)
    evidence: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ids.shape != self.labels.shape or self.ids.dim() != 1:
            raise ValueError(f"ids {tuple(self.ids.shape)} and labels {tuple(self.labels.shape)} must be one row each")

    def silent(self) -> Example:
        """Return the same row with nothing to learn from."""
        return Example(self.ids, torch.full_like(self.labels, IGNORED), self.before)
