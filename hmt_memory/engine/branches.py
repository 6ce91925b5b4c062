"""Several continuations of one beginning, none of which sees another, with their gradient: in one pass where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .backbone import Backbone
from .modes import eval_mode
from .traced import window

_ALIKE, _ALIKE_HALF = 1e-3, 0.05  # the largest relative differences that rounding explains
_known: WeakKeyDictionary[Backbone, bool] = WeakKeyDictionary()  # which take a mask


def branched(backbone: Backbone, beginning: Tensor, branches: Sequence[Tensor]) -> list[Tensor]:
    """Compute the hidden states B x [t_b, d] of branches B x [t_b, d], each behind the same beginning [n, d].

    Raises:
        BackboneError: the family takes no such mask, and has a cache that cannot be repeated.
    """
    if backbone not in _known:
        _known[backbone] = _masks(backbone)
    if _known[backbone]:
        return _in_one(backbone, beginning, branches)
    return behind(backbone, backbone.extend(beginning[None])[1], branches)


def behind(backbone: Backbone, cache: Any, branches: Sequence[Tensor]) -> list[Tensor]:
    """Compute the hidden states B x [t_b, d] of branches B x [t_b, d], each behind a cache of one row; it is spent.

    Raises:
        BackboneError: the family's cache cannot be repeated.
    """
    repeated = backbone.repeat(cache, len(branches))
    hidden, _ = backbone.extend(pad_sequence(list(branches), batch_first=True), repeated)
    return [row[: len(branch)] for row, branch in zip(hidden, branches, strict=True)]


def _in_one(backbone: Backbone, beginning: Tensor, branches: Sequence[Tensor]) -> list[Tensor]:
    """Compute all in one row: nothing is padded, and the beginning is not repeated."""
    lengths = [len(branch) for branch in branches]
    start, total = len(beginning), len(beginning) + sum(lengths)
    seen = torch.ones(total, total, dtype=torch.bool, device=beginning.device).tril()
    positions = torch.arange(total, device=beginning.device)
    first = start
    for length in lengths:
        seen[first : first + length, start:first] = False
        positions[first : first + length] -= first - start
        first += length
    hidden = backbone.masked(torch.cat([beginning, *branches])[None], seen[None], positions[None])[0]
    return list(torch.split(hidden[start:], lengths))


@torch.no_grad()
def _masks(backbone: Backbone) -> bool:
    """Tell whether a backbone heeds masks and positions: some families have other masks, or none, or a window that slides."""
    if window(backbone.config) is not None:
        return False
    sample = backbone.embed(torch.arange(1, 8, device=backbone.device).clamp(max=backbone.vocab_size - 1))
    beginning, branches = sample[:3], [sample[3:5], sample[4:7]]
    with eval_mode(backbone):
        try:
            alone = [_in_one(backbone, beginning, [branch])[0] for branch in branches]
            together = _in_one(backbone, beginning, branches)
        except Exception:  # whatever a model's code raises that takes no mask of this form
            return False
    expected = torch.cat(alone).float()
    alike = _ALIKE if sample.dtype == torch.float32 else _ALIKE_HALF
    return bool((torch.cat(together).float() - expected).norm() <= alike * expected.norm())
