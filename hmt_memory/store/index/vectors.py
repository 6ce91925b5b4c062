"""Top-k search over the index keys of one collection. A cache of the rows; see `derived.py`.

Inner product of a folded query with raw float16 keys. The default, FAISS's 16-bit scalar quantizer, is exact and needs no
training; without FAISS, torch searches the same matrix; on a GPU, FAISS's GPU build. Any `index_factory` string may replace it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, StoreDamagedError
from ..shelf import Shelf
from ..transaction import Transaction
from .base import DEFAULT, Halves, Search
from .derived import Derived
from .search import new_search


class Hits(NamedTuple):
    """The result of a search."""

    positions: NDArray[np.int64]  # segments by falling score of their best key
    memory: Halves  # [k, m, d] their memory embeddings, as stored
    ceiling: float  # no memory embedding of a segment left out scores higher; -inf where none is left out


class MemoryIndex(Derived):
    """The index keys of a collection's segments, in order, and the memory embeddings where they are the keys.

    Args:
        path: its file; it may be missing, stale or damaged.
        width: d, the width of an embedding.
        slots: m, the embeddings of a segment that may be recalled.
        others: the number of embeddings before these in a row.
        factory: a FAISS `index_factory` string for inner product, with `;name=value` search parameters after it.
        made_by: digest of the model; an index of another model is not used.

    Raises:
        ConfigError: the factory string is unknown, or recalls too little.
        MissingDependencyError: the factory needs FAISS.
    """

    def __init__(
        self, path: Path, *, width: int, slots: int, others: int = 0, factory: str = DEFAULT, made_by: str = ""
    ) -> None:
        self.width, self.slots, self._others = width, slots, others
        self.factory, self._made_by = factory, made_by
        self._search: Search = new_search(factory, width)
        super().__init__(path)

    def _clear(self) -> None:
        self._search = new_search(self.factory, self.width)
        self._owners = np.zeros(0, np.int64)  # the segment of each key, in order
        self._largest = 0.0  # norm of the longest memory embedding
        self._keys_are_memory = True

    def describe(self) -> dict[str, Any]:
        """Describe the search: backend, number of keys, whether it is exact."""
        return {"backend": self._search.name, "segments": self.count, "keys": len(self._owners), "exact": self._exact}

    @property
    def _exact(self) -> bool:
        return self._search.exact and self._keys_are_memory

    def _extend(self, db: Transaction, shelf: Shelf, start: int, stop: int) -> None:
        keys, owners = [], []
        for position, row in enumerate(shelf.rows(db, start, stop), start):
            memory = self._vectors(row.memory, position)[self._others :]
            key = memory if row.keys is None else self._vectors(row.keys, position)
            self._keys_are_memory &= row.keys is None
            self._largest = max(self._largest, float(np.linalg.norm(memory.astype(np.float32), axis=1).max(initial=0)))
            keys.append(key)
            owners += [position] * len(key)
        if keys:
            self._search.add(np.concatenate(keys))
        self._owners = np.concatenate([self._owners, np.array(owners, np.int64)])

    def _keep(self, kept: NDArray[np.bool_]) -> bool:
        keys = kept[self._owners]
        if not self._search.keep(keys):
            return False
        self._owners = (np.cumsum(kept) - 1)[self._owners[keys]]
        return True

    @property
    def nbytes(self) -> int:
        """The bytes of memory that it takes."""
        return self._owners.nbytes + 2 * self.width * len(self._owners)

    def _vectors(self, data: bytes, position: int) -> Halves:
        vectors: Halves = np.frombuffer(data, "<f2") if data else np.zeros(0, np.float16)
        if len(vectors) % self.width or not np.isfinite(vectors).all():
            raise StoreDamagedError(
                f"segment {position} does not hold embeddings of width {self.width}. Rebuild the collection."
            )
        return vectors.reshape(-1, self.width)

    def search(self, db: Transaction, shelf: Shelf, query: NDArray[np.float32], k: int) -> Hits:
        """Return the segments with the k best keys (times m, where a segment has m), as the rows are now.

        Args:
            db: the transaction to read rows in.
            shelf: the segments to search.
            query: [d], folded.
            k: how many segments are wanted.

        Raises:
            InputError: the query is not finite or not of this width.
        """
        if query.shape != (self.width,) or not np.isfinite(query).all():
            raise InputError(
                f"a recall query must be {self.width} finite numbers, not shape {query.shape} with NaN or infinity."
            )
        with self._alone():
            self._sync(db, shelf)
            known = int(np.searchsorted(self._owners, shelf.total))  # keys of this shelf; a newer shelf may have added more
            rows = min(k * max(1, self.slots), known)
            if not rows:
                return Hits(np.zeros(0, np.int64), np.zeros((0, self.slots, self.width), np.float16), float("-inf"))
            scores, hits = self._search(query, rows + len(self._owners) - known)
            scores, hits = scores[hits < known][:rows], hits[hits < known][:rows]
            owners, first = np.unique(self._owners[hits], return_index=True)
            positions = owners[np.argsort(first)]
            ceiling = float("-inf")
            if len(positions) < shelf.total:
                lowest = float(scores.min()) if self._exact else float("inf")
                ceiling = min(lowest, float(np.linalg.norm(query)) * self._largest)
                ceiling += self._search.rounding * abs(ceiling)
            return Hits(positions, self._memory(db, shelf, positions), ceiling)

    def _memory(self, db: Transaction, shelf: Shelf, positions: NDArray[np.int64]) -> Halves:
        """Return [k, m, d] from the index if it holds the embeddings unchanged, else from the rows."""
        shape = (len(positions), self.slots, self.width)
        rows = (positions[:, None] * self.slots + np.arange(self.slots)).ravel()
        vectors = self._search.vectors(rows) if self._keys_are_memory else None
        if vectors is None:
            stored = (next(shelf.rows(db, position, position + 1)).memory for position in positions.tolist())
            vectors = np.frombuffer(b"".join(stored), "<f2").astype(np.float16)
            vectors = vectors.reshape(len(positions), self._others + self.slots, self.width)[:, self._others :]
        return vectors.reshape(shape)

    def embeddings(self, db: Transaction, shelf: Shelf, positions: NDArray[np.int64]) -> Halves:
        """Return the memory embeddings [k, m, d] of segments.

        Args:
            db: the transaction to read rows in.
            shelf: the segments that positions count in.
            positions: [k] of the segments.
        """
        with self._alone():
            self._sync(db, shelf)
            return self._memory(db, shelf, positions)

    def _wanted(self) -> dict[str, Any]:
        shape = {"width": self.width, "slots": self.slots, "others": self._others}
        return {"kind": self._search.kind, **shape, "made_by": self._made_by}

    def _facts(self) -> dict[str, Any]:
        return {"largest": self._largest, "keys_are_memory": self._keys_are_memory, "owners": len(self._owners)}

    def _dump(self) -> Iterator[bytes | memoryview]:
        yield self._owners.astype("<i8").tobytes()
        yield from self._search.dump()

    def _restore(self, header: dict[str, Any], body: memoryview) -> None:
        split = 8 * header["owners"]
        self._search.load(body[split:], header["owners"])
        self._owners = np.frombuffer(body[:split], "<i8").astype(np.int64)
        self._largest, self._keys_are_memory = header["largest"], header["keys_are_memory"]
