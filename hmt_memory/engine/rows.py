"""Caches of several streams as the rows of one, padded on the left; whichever engine made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BackboneError
from . import traced

if TYPE_CHECKING:
    from .backbone import Backbone


def joined(caches: Sequence[Any]) -> tuple[Any, list[int]]:
    """Join caches of one row each. Returns one cache, and how many of the first positions of each row are padding."""
    if hasattr(caches[0], "part"):
        whole = type(caches[0]).joined(caches)
        return whole, whole.pads.tolist()
    lengths = [traced.positions(cache) for cache in caches]
    return traced.joined(caches, max(lengths)), [max(lengths) - length for length in lengths]


def part(cache: Any, row: int, pad: int) -> Any:
    """Return a row of a cache by itself, without its padding.

    Args:
        cache: of keys and values, of some rows.
        row: number of the row.
        pad: positions before it that are padding.
    """
    return cache.part(row) if hasattr(cache, "part") else traced.chosen(cache, [row], pad)


def chosen(cache: Any, rows: Sequence[int]) -> Any:
    """Return some rows of a cache; the old one is spent."""
    return cache.choose(rows) if hasattr(cache, "part") else traced.chosen(cache, rows)


def extended(backbone: Backbone, embeddings: Tensor, cache: Any, pads: Sequence[int]) -> tuple[Tensor, Any]:
    """Append [B, 1, d] to a cache of B rows, as `joined` makes it. Returns hidden states [B, 1, d] and the new cache.

    Args:
        backbone: has made the caches.
        embeddings: one new input embedding for each row.
        cache: is spent.
        pads: how many of the first positions of each row are padding.

    Raises:
        BackboneError: torch computes, and a window slides over the cache.
    """
    if hasattr(cache, "part"):
        return backbone.extend(embeddings, cache)
    if traced.window(backbone.config) is not None:
        raise BackboneError("the window of its attention slides.")
    held = traced.positions(cache)
    before = torch.tensor(pads, device=embeddings.device)
    seen = torch.arange(held + 1, device=embeddings.device)[None] >= before[:, None]
    return backbone.masked(embeddings, seen[:, None], (held - before)[:, None], cache), cache
