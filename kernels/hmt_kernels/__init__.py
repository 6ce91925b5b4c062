"""Recall kernels. `recall` picks the backend; `naive` is the truth. Imports nothing of `hmt_memory`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from . import naive
from .naive import Recall, Selection, merge, select

__all__ = ["BACKENDS", "Recall", "Selection", "merge", "reason_against", "recall", "select"]

BACKENDS = ("naive", "triton")
log = logging.getLogger("hmt_kernels")


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
        backend: a name in `BACKENDS`, or "auto": Triton on a GPU that it knows, else plain torch.

    Raises:
        ValueError: `backend` is not available here, or does not take these inputs; "auto" always does.
    """
    if backend == "auto":
        backend = "triton" if memory.is_cuda and _taken(query, memory, mask) else "naive"
    if backend not in BACKENDS:
        raise ValueError(f"recall backend {backend!r} is not available. Choose 'auto' or one of {sorted(BACKENDS)}.")
    found: Recall = _backend(backend)(query, memory, mask, dropped=dropped, ceiling=ceiling)
    return found


def reason_against(query: Tensor, memory: Tensor, mask: Tensor | None = None) -> str | None:
    """Return why Triton does not take these inputs, as `recall` does; None: it does.

    Args:
        query: [B, d], folded and scaled.
        memory: [B, n, d] with n >= 1.
        mask: [B, n] bool, True where an embedding exists; None: all exist.
    """
    try:
        from . import triton_recall
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return triton_recall.verify(query, memory, mask)


def _taken(query: Tensor, memory: Tensor, mask: Tensor | None) -> bool:
    reason = reason_against(query, memory, mask)
    if reason is not None:
        _say_once(reason)
    return reason is None


@cache
def _say_once(reason: str) -> None:
    log.warning("recall is computed by plain torch: %s.", reason)


def _backend(name: str) -> Callable[..., Any]:
    if name == "naive":
        return naive.recall
    try:
        from . import triton_recall
    except ImportError as error:
        raise ValueError(f"recall backend 'triton' is not available: {error}. Install triton.") from error
    return triton_recall.recall
