"""Rounding of memory embeddings and keys to what 8 bits hold (`mxint8.py`). Knows tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .mxint8 import BLOCK, FRACTION, LARGEST, SMALLEST


def rounded(values: Tensor) -> Tensor:
    """Return values of any shape as float16 that 8 bits hold, off by a 127th of the largest of their block at most.

    Values that are not finite, or not in float16, stay so: whoever stores them refuses them.
    """
    flat = values.to(torch.float16).float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    exponents = (torch.frexp(blocks.abs().amax(dim=1, keepdim=True)).exponent - 1 - FRACTION).clamp(min=SMALLEST)
    codes = torch.ldexp(blocks, -exponents).round().clamp(-LARGEST, LARGEST)
    kept = torch.where(blocks.isfinite(), torch.ldexp(codes + 0.0, exponents), blocks)  # codes know no -0.0
    return kept.flatten()[: len(flat)].view(values.shape).to(torch.float16)
