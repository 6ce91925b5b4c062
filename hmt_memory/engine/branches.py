"""Several continuations of a beginning, none of which sees another, with their gradient: in one pass where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .backbone import Backbone
from .modes import eval_mode
from .traced import window

_ALIKE, _ALIKE_HALF = 1e-3, 0.05  # the largest relative differences that rounding explains
_known: WeakKeyDictionary[Backbone, bool] = WeakKeyDictionary()  # which take a mask


class Branching(NamedTuple):
    """A beginning, and what goes on behind it in several ways."""

    beginning: Tensor  # [n, d]
    branches: Sequence[Tensor]  # B x [t_b, d]


def branched(backbone: Backbone, rows: Sequence[Branching]) -> list[list[Tensor]]:
    """Compute the hidden states B x [t_b, d] of each row's branches, each behind its beginning.

    Raises:
        BackboneError: the family takes no such mask, and has a cache that cannot be repeated.
    """
    if backbone not in _known:
        _known[backbone] = _masks(backbone)
    if _known[backbone]:
        return _in_one(backbone, rows)
    return [behind(backbone, backbone.extend(row.beginning[None])[1], row.branches) for row in rows]


def behind(backbone: Backbone, cache: Any, branches: Sequence[Tensor]) -> list[Tensor]:
    """Compute the hidden states B x [t_b, d] of branches B x [t_b, d], each behind a cache of one row; it is spent.

    Args:
        backbone: computes them.
        cache: of keys and values of what stands before all of them; one row.
        branches: B x [t_b, d] embeddings.

    Raises:
        BackboneError: the family's cache cannot be repeated.
    """
    repeated = backbone.repeat(cache, len(branches))
    hidden, _ = backbone.extend(pad_sequence(list(branches), batch_first=True), repeated)
    return [row[: len(branch)] for row, branch in zip(hidden, branches, strict=True)]


def _in_one(backbone: Backbone, rows: Sequence[Branching]) -> list[list[Tensor]]:
    """Compute all in one pass: no beginning is repeated, and rows are padded at their ends, where nothing looks."""
    flat = [torch.cat([row.beginning, *row.branches]) for row in rows]
    most = max(map(len, flat))
    seen = torch.ones(most, most, dtype=torch.bool, device=flat[0].device).tril().repeat(len(rows), 1, 1)
    positions = torch.arange(most, device=flat[0].device).repeat(len(rows), 1)
    for number, (beginning, branches) in enumerate(rows):
        first = start = len(beginning)
        for branch in branches:
            last = first + len(branch)
            seen[number, first:last, start:first] = False
            positions[number, first:last] -= first - start
            first = last
    hidden = backbone.masked(pad_sequence(flat, batch_first=True), seen, positions)
    return [
        list(torch.split(states[len(beginning) : len(ids)], list(map(len, branches))))
        for states, ids, (beginning, branches) in zip(hidden, flat, rows, strict=True)
    ]


@torch.no_grad()
def _masks(backbone: Backbone) -> bool:
    """Tell whether a backbone heeds masks and positions: some families have other masks, or none, or a window that slides."""
    if window(backbone.config) is not None:
        return False
    sample = backbone.embed(torch.arange(1, 8, device=backbone.device).clamp(max=backbone.vocab_size - 1))
    beginning, branches = sample[:3], [sample[3:5], sample[4:7]]
    with eval_mode(backbone):
        try:
            alone = [_in_one(backbone, [Branching(beginning, [branch])])[0][0] for branch in branches]
            together = _in_one(backbone, [Branching(beginning, branches)])[0]
        except Exception:  # whatever a model's code raises that takes no mask of this form
            return False
    expected = torch.cat(alone).float()
    alike = _ALIKE if sample.dtype == torch.float32 else _ALIKE_HALF
    return bool((torch.cat(together).float() - expected).norm() <= alike * expected.norm())
