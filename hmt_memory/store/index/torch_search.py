"""Exact search in torch, for machines without FAISS."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from .base import Halves, Search, matrix


class TorchSearch(Search):
    """A growing matrix in blocks, so that growing copies little."""

    name, kind = "torch", "flat16"
    _BLOCK = 65_536

    def __init__(self, width: int) -> None:
        self._blocks: list[torch.Tensor] = []
        self._width = width

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores [k] and rows [k], best first."""
        wanted = torch.from_numpy(query)
        scores = torch.cat([block.float() @ wanted for block in self._blocks])
        best = scores.topk(min(k, len(scores)))
        return best.values.numpy(), best.indices.numpy()

    def add(self, rows: Halves) -> None:
        """Append rows [n, d]."""
        new = torch.from_numpy(rows.copy())
        if self._blocks and len(self._blocks[-1]) + len(new) <= self._BLOCK:
            self._blocks[-1] = torch.cat([self._blocks[-1], new])
        else:
            self._blocks.append(new)

    def keep(self, kept: NDArray[np.bool_]) -> bool:
        """Drop the rows where `kept` [n] is False."""
        masks = np.split(kept, np.cumsum([len(block) for block in self._blocks])[:-1])
        self._blocks = [block[torch.from_numpy(mask)] for block, mask in zip(self._blocks, masks, strict=True)]
        return True

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        """Return rows as they were added."""
        starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        picked = [self._blocks[number][row - starts[number]] for number, row in zip(owner.tolist(), rows.tolist(), strict=True)]
        vectors: Halves = torch.stack(picked).numpy() if picked else np.zeros((0, self._width), np.float16)
        return vectors

    def dump(self) -> Iterator[bytes]:
        """Yield the rows as bytes, a block at a time."""
        for block in self._blocks:
            yield block.numpy().astype("<f2").tobytes()

    def load(self, data: memoryview, rows: int) -> None:
        """Append the `rows` rows that `dump` wrote."""
        self.add(matrix(data, rows, self._width))
