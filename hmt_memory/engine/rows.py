"""Caches of several streams as the rows of one, padded on the left; whichever engine made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import traced


def joined(caches: Sequence[Any]) -> tuple[Any, list[int]]:
    """Join caches of one row each. Returns one cache, and how many of the first positions of each row are padding."""
    if hasattr(caches[0], "part"):
        whole = type(caches[0]).joined(caches)
        return whole, whole.pads.tolist()
    lengths = [cache.get_seq_length() for cache in caches]
    return traced.joined(caches, max(lengths)), [max(lengths) - length for length in lengths]


def part(cache: Any, row: int, pad: int) -> Any:
    """Return a row of a cache by itself, without its padding."""
    return cache.part(row) if hasattr(cache, "part") else traced.chosen(cache, [row], pad)


def chosen(cache: Any, rows: Sequence[int]) -> Any:
    """Return some rows of a cache; the old one is spent."""
    return cache.choose(rows) if hasattr(cache, "part") else traced.chosen(cache, rows)
