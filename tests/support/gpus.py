"""Search on stand-ins for GPUs, and what its answers must be."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from faiss_gpu import FakeFaiss

from hmt_memory.store.index import devices, gpu, search

faiss = pytest.importorskip("faiss")
D = 16
BLOCK, PIECE = 100, 40  # rows

Halves = np.ndarray[Any, Any]


class Machine:
    """Stand-ins for GPUs, and what this process holds on them."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        self.faiss = FakeFaiss(faiss, count, **options)
        self.process = devices._Process()
        self._patches = pytest.MonkeyPatch()
        self._patches.setitem(sys.modules, "faiss", self.faiss)
        for module in (devices, gpu):
            self._patches.setattr(module, "process", self.process)
        self._patches.setattr(torch.cuda, "is_available", lambda: True)
        self._patches.setattr(torch.cuda, "mem_get_info", self.faiss.mem_get_info)
        self._patches.setattr(gpu, "_BLOCK", BLOCK * 2 * D)
        self._patches.setattr(gpu, "_PIECE", PIECE * 4 * D)

    def search(self, rows: Halves | None = None) -> gpu.GpuSearch:
        made = search.new_search("SQfp16", D)
        assert isinstance(made, gpu.GpuSearch)
        if rows is not None:
            made.add(rows)
        return made

    @property
    def held(self) -> int:
        """Bytes of rows on all devices, without the help of the garbage collector."""
        return sum(self.faiss.used) - sum(self.faiss.scratch)

    def close(self) -> None:
        assert self.held == 0, "memory of a device is not freed"
        self._patches.undo()
        assert self.faiss.broken == []


def vectors(kind: str, count: int, seed: int = 0) -> Halves:
    """Rows [count, D], in half precision."""
    chance = np.random.default_rng(seed)
    noise = chance.standard_normal((count, D))
    if kind == "tied":
        return noise[chance.integers(0, max(1, count // 3), count)].astype(np.float16)
    if kind == "anisotropic":  # with a common mean, drifting, of unequal norms
        scale = np.arange(1, D + 1) ** -0.5
        walk = np.cumsum(noise * 0.2, axis=0) * scale
        noise = (walk + 2 * chance.standard_normal(D) + noise * scale) * np.exp(0.15 * chance.standard_normal((count, 1)))
    return noise.astype(np.float16)


def query(seed: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(D).astype(np.float32)


def check(found: tuple[Any, Any], rows: Halves, asked: np.ndarray[Any, Any], k: int, off: float = 0.0) -> None:
    """The k best scores, each that of its row; no row twice. The host's sums may be `off` by so much where they cancel."""
    truth = rows.astype(np.float64) @ asked.astype(np.float64)
    off *= float(np.linalg.norm(rows.astype(np.float64), axis=1).max() * np.linalg.norm(asked.astype(np.float64)))
    scores, numbers = found
    assert scores.dtype == np.float32 and numbers.dtype == np.int64
    assert len(set(numbers.tolist())) == len(numbers) == min(k, len(rows))
    better = np.sort(truth)[::-1][: len(numbers)] - np.sort(truth[numbers])[::-1]
    assert better.max(initial=0) <= off, "others are better"
    assert np.all(np.diff(scores) <= 0)
    assert np.allclose(scores, truth[numbers], rtol=1e-6, atol=max(off, 1e-6 * float(np.abs(truth).max())))
    if len(numbers) < len(rows):
        ceiling = float(scores.min())
        assert np.delete(truth, numbers).max() <= ceiling + gpu.GpuSearch.rounding * abs(ceiling) + off
