"""The state that reading leaves behind, as a value: pass it in, get a new one back. Knows tensors; no model, no disk."""

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

    memory: Tensor  # [h * m, d] memory embeddings of the latest h closed segments, in order; reading keeps all, h = n
    recent_ids: Tensor  # [r] int64, the latest tokens before the open segment
    open_ids: Tensor  # [t] int64, tokens of the segment that is not full yet, t < L
    segments: int = 0  # n: the number of closed segments
    tokens: int = 0  # tokens read so far: n * L + t
    held: int = 0  # h: the number of segments in `memory`
    keys: tuple[Tensor, ...] = ()  # [n, d_key] float16, keys by meaning of the latest segments that were read here
    memory_bits: int = 16  # 8: memory and keys are rounded as they are made, to what is stored in 8 bits (`mxint8`)

    @classmethod
    def empty(cls, *, hidden_size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> HMTState:
        """Make the state before the first token.

        Args:
            hidden_size: d, the width of a memory embedding.
            dtype: the precision that memory is kept in.
            device: where memory is kept.
        """
        none = torch.zeros(0, dtype=torch.long)
        return cls(torch.zeros(0, hidden_size, dtype=dtype, device=device), none, none)

    @property
    def nbytes(self) -> int:
        """The bytes of memory that it takes."""
        return sum(tensor.nbytes for tensor in (self.memory, self.recent_ids, self.open_ids, *self.keys))

    def tail(self, segments: int) -> HMTState:
        """Return the same stream with the memory of its latest `segments` segments only.

        Reading on needs as many as the recall window; a stream of any length then takes the same room.
        """
        held = min(segments, self.held)
        rows = held * (len(self.memory) // max(1, self.held))
        keys = self.keys[max(0, len(self.keys) - held) :]
        return replace(self, memory=self.memory[len(self.memory) - rows :].clone(), held=held, keys=keys)

    def detach(self) -> HMTState:
        """Return the same state without gradient history, so that back-propagation is truncated here."""
        return replace(self, memory=self.memory.detach())

    def __repr__(self) -> str:
        return f"HMTState({self.tokens} tokens, {self.segments} segments, {len(self.open_ids)} open)"
