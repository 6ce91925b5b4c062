"""Streams of segments in a real database, to be indexed: grown, rewritten and searched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmt_memory.store import lineage
from hmt_memory.store.index.vectors import KeyIndex, MemoryIndex
from hmt_memory.store.rows import SegmentRow, chain
from hmt_memory.store.shelf import Shelf, volume
from hmt_memory.store.sqlite.database import Database

D = 24


def drifting(count: int, seed: int = 0, slots: int = 1) -> np.ndarray[Any, Any]:
    """[count, slots, D] float16 vectors as memories are: anisotropic, with a common mean, drifting, of unequal norms."""
    noise = np.random.default_rng(seed)
    scale = np.arange(1, D + 1) ** -0.5
    walk = np.cumsum(noise.standard_normal((count, slots, D)) * 0.2, axis=0) * scale
    vectors = walk + 2 * noise.standard_normal(D) + noise.standard_normal((count, slots, D)) * scale
    return (vectors * np.exp(0.15 * noise.standard_normal((count, slots, 1)))).astype(np.float16)


class Rows:
    """A stream of segments in a real database, to be grown and rewritten."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder, timeout=1)
        self.count, self._digest = 0, b""
        self.restart()

    def restart(self) -> None:
        """Other rows from now on."""
        with self.database.writing() as db:
            self.stream = lineage.add_stream(db)
        self.count, self._digest = 0, b""

    def add(self, memory: np.ndarray[Any, Any], keys: Sequence[np.ndarray[Any, Any]] | None = None) -> None:
        with self.database.writing() as db:
            parts = lineage.of_stream(db, self.stream)
            for at, vectors in enumerate(memory):
                data = vectors.astype("<f2").tobytes()
                key = None if keys is None else keys[at].astype("<f2").tobytes()
                span = (self.count * 16, self.count * 16 + 16)
                self._digest = chain(self._digest, span, data, key)
                lineage.append_segments(db, parts, [SegmentRow(self.count, span, data, key, self._digest)])
                self.count += 1

    def shelf(self) -> Shelf:
        with self.database.reading() as db:
            return Shelf((volume(db, lineage.of_stream(db, self.stream)),))

    def save(self, index: MemoryIndex | KeyIndex, **options: Any) -> None:
        with self.database.reading() as db:
            index.save(db, self.shelf(), **options)

    def search(self, index: Any, query: np.ndarray[Any, Any], k: int) -> Any:
        with self.database.reading() as db:
            return index.search(db, self.shelf(), query.astype(np.float32), k)
