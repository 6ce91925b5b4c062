"""What reading leaves behind, as a value: pass it in, get a new one back. Knows tensors; no model, no disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HMTState:
    """One stream's memory and the tokens that are still visible. Never changed in place; safe to keep, share and fork.

    >>> HMTState.empty(hidden_size=4).tokens
    0
    """

    memory: Tensor  # [n * m, d] all memory embeddings of the n closed segments, in order
    recent_ids: Tensor  # [r] int64, the latest tokens before the open segment
    open_ids: Tensor  # [t] int64, tokens of the segment that is not full yet, t < L
    segments: int = 0  # n: how many segments are closed
    tokens: int = 0  # tokens read so far: n * L + t

    @classmethod
    def empty(cls, *, hidden_size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> HMTState:
        """The state before the first token."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(torch.zeros(0, hidden_size, dtype=dtype, device=device), none, none)

    def detach(self) -> HMTState:
        """The same state without gradient history: where truncated back-propagation stops."""
        return replace(self, memory=self.memory.detach())

    def __repr__(self) -> str:
        return f"HMTState({self.tokens} tokens, {self.segments} segments, {len(self.open_ids)} open)"
