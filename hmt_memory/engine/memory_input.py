"""The entry of memory embeddings into the backbone: unchanged as in the paper, or through one of the extensions.

Knows embeddings as tensors; no backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class MemoryInput(nn.Module):
    """The entry of memory embeddings [..., m, d] into the backbone, in front of a text and at its end. `paper`: unchanged.

    Extensions beyond the paper, because a memory embedding is a hidden state, not an input embedding:
    `scaled`: standardised and brought to the norm of an input embedding times one learned gain. `mapped`: the same, then a
    learned d x d map that starts as the identity. `centred`: the deviation of a memory embedding from the typical one (nine
    tenths of it are the same whatever was read), through a learned d x d map, plus one learned offset per slot in front
    (read) and another at the end (write); and in front of all a learned sink, because a decoder's first position becomes
    an attention sink (Xiao et al., arXiv 2309.17453) and tells the others nothing.
    """

    def __init__(self, kind: str, slots: int, recalled: int, sample: Tensor) -> None:
        """Make the parameters of one kind of entry.

        Args:
            kind: `paper`, `scaled`, `mapped` or `centred`.
            slots: m, the memory embeddings of a segment.
            recalled: the embeddings that P_n has behind those of M_{n-1}.
            sample: [v, d] input embeddings, fp32.
        """
        super().__init__()
        width, self.kind = sample.shape[1], kind
        # A hidden state after the final norm has about unit variance times the norm's own weights.
        self.unit = float(sample.norm(dim=-1).mean()) / width**0.5
        self.gain = nn.Parameter(torch.ones(1)) if kind in ("scaled", "mapped") else None
        self.map = nn.Linear(width, width, bias=False) if kind in ("mapped", "centred") else None
        if self.map is not None:
            nn.init.eye_(self.map.weight)
        if kind == "centred":
            middle = sample.mean(dim=0)
            self.centre = nn.Parameter(torch.zeros(slots, width), requires_grad=False)  # measured, not learned
            self.read = nn.Parameter(middle.repeat(slots + recalled, 1))
            self.write = nn.Parameter(middle + 0.3 * sample.std() * noise(slots, width).to(sample.device))
            self.sink = nn.Parameter(middle[None].clone())

    @property
    def ahead(self) -> int:
        """The number of learned embeddings in front of the prompt."""
        return int(self.kind == "centred")

    def front(self, prompt: Tensor) -> Tensor:
        """Turn memory embeddings [..., m + r, d] into the input embeddings [..., ahead + m + r, d] that a text begins with."""
        if self.kind != "centred" or not prompt.numel():
            return self._scaled(prompt)
        entering = self._deviation(prompt) + self.read[: prompt.shape[-2]]
        return torch.cat([self.sink.expand(*entering.shape[:-2], -1, -1), entering], dim=-2)

    def end(self, prompt: Tensor) -> Tensor:
        """Turn memory embeddings [..., m, d] into the input embeddings [..., m, d] whose hidden states become M_n."""
        return self._deviation(prompt) + self.write if self.kind == "centred" and prompt.numel() else self._scaled(prompt)

    def _deviation(self, prompt: Tensor) -> Tensor:
        assert self.map is not None
        # Recalled embeddings are the last of their segments.
        behind = prompt.shape[-2] - len(self.centre)
        centre = torch.cat([self.centre, self.centre[-behind:]]) if behind > 0 else self.centre
        return linear(prompt.float() - centre, self.map.weight.float())

    def _scaled(self, prompt: Tensor) -> Tensor:
        if self.gain is None or not prompt.numel():
            return prompt
        wide = prompt.float()
        deviation, mean = torch.std_mean(wide, dim=-1, keepdim=True, correction=0)
        scaled = (wide - mean) / (deviation + 1e-6) * self.unit * self.gain
        return scaled if self.map is None else linear(scaled, self.map.weight.float())


def noise(rows: int, width: int) -> Tensor:
    """Return [rows, width] numbers that are normally distributed and the same each time."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
