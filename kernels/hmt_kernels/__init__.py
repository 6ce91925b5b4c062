"""Recall kernels. `recall` picks the backend; `naive` is the truth. Imports nothing of `hmt_memory`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import naive
from .naive import Recall, Selection, merge, select

__all__ = ["BACKENDS", "Recall", "Selection", "merge", "recall", "select"]

BACKENDS: dict[str, Callable[..., Recall]] = {"naive": naive.recall}


def recall(
    query: Tensor,
    memory: Tensor,
    mask: Tensor | None = None,
    *,
    dropped: int = 0,
    ceiling: Tensor | None = None,
    backend: str = "auto",
) -> Recall:
    """Compute `softmax(q M^T) M` with weights, log-sum-exp and covered mass.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d] with n >= 1.
        mask: [B, n] bool, True where an embedding exists; None: all exist.
        dropped: the number of embeddings that a preselection left out of every row.
        ceiling: [B] fp32, no embedding left out scores higher; None: the lowest score kept.
        backend: a name in `BACKENDS`, or "auto".

    Raises:
        ValueError: `backend` is not available here; "auto" always is.
    """
    name = "naive" if backend == "auto" else backend
    if name not in BACKENDS:
        raise ValueError(f"recall backend {backend!r} is not available. Choose 'auto' or one of {sorted(BACKENDS)}.")
    return BACKENDS[name](query, memory, mask, dropped=dropped, ceiling=ceiling)
