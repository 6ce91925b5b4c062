"""Top-k search over a collection's vectors: memory embeddings, and keys by meaning. Caches of the rows; see `derived.py`.

Inner product of a query with raw float16 vectors. The default, FAISS's 16-bit scalar quantizer, is exact and needs no
training; without FAISS, torch searches the same matrix; on a GPU, FAISS's GPU build. Any `index_factory` string may replace it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, StoreDamagedError
from ..rows import SegmentRow
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


class Bound(NamedTuple):
    """What is known of the memory embeddings that a search leaves out."""

    longest: float  # norm of the longest one that it holds
    rounding: float  # as of the search
    exact: bool  # whether it finds the best ones

    def ceiling(self, query: NDArray[np.float32], lowest: float) -> float:
        """Return what no embedding left out scores higher than.

        Args:
            query: [d], folded.
            lowest: the lowest score of those that were found.
        """
        largest = float(np.linalg.norm(query)) * self.longest
        return min((lowest if self.exact else float("inf")) + self.rounding * largest, largest * (1 + self.rounding))


class KeyHit(NamedTuple):
    """A key that a question was compared with."""

    position: int  # its segment
    number: int  # which of the segment's keys it is
    score: float


class _Vectors(Derived):
    """Vectors of a collection's segments in order, each with the segment it belongs to, in a search.

    Args:
        path: its file; it may be missing, stale or damaged.
        width: of a vector.
        factory: a FAISS `index_factory` string for inner product, with `;name=value` search parameters after it.
        made_by: digest of the model; an index of another model is not used.
        directions: [r, width] whose span holds the queries; None: they may lie anywhere.

    Raises:
        ConfigError: the factory string is unknown, or recalls too little.
        MissingDependencyError: the factory needs FAISS.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        factory: str = DEFAULT,
        made_by: str = "",
        directions: NDArray[np.float32] | None = None,
    ) -> None:
        self.width, self.factory, self._made_by, self._directions = width, factory, made_by, directions
        self._search: Search = new_search(factory, width, directions)
        super().__init__(path)

    def _clear(self) -> None:
        self._search = new_search(self.factory, self.width, self._directions)
        self._owners = np.zeros(0, np.int64)  # the segment of each vector, in order

    def _of(self, row: SegmentRow, position: int) -> Halves:
        """Return a segment's vectors [n, width]."""
        raise NotImplementedError

    def _extend(self, db: Transaction, shelf: Shelf, start: int, stop: int) -> None:
        made, owners = [], []
        for position, row in enumerate(shelf.rows(db, start, stop), start):
            vectors = self._of(row, position)
            made.append(vectors)
            owners += [position] * len(vectors)
        if made:
            self._search.add(np.concatenate(made))
        self._owners = np.concatenate([self._owners, np.array(owners, np.int64)])

    def _keep(self, kept: NDArray[np.bool_]) -> bool:
        vectors = kept[self._owners]
        if not self._search.keep(vectors):
            return False
        self._owners = (np.cumsum(kept) - 1)[self._owners[vectors]]
        return True

    @property
    def nbytes(self) -> int:
        """The bytes of memory that it takes."""
        return self._owners.nbytes + 2 * self.width * len(self._owners) + self._search.beside

    def _vectors(self, data: bytes, position: int) -> Halves:
        vectors: Halves = np.frombuffer(data, "<f2") if data else np.zeros(0, np.float16)
        if len(vectors) % self.width or not np.isfinite(vectors).all():
            raise StoreDamagedError(
                f"segment {position} does not hold embeddings of width {self.width}. Rebuild the collection."
            )
        return vectors.reshape(-1, self.width)

    def _check_query(self, query: NDArray[np.float32]) -> None:
        if query.shape != (self.width,) or not np.isfinite(query).all():
            raise InputError(
                f"a recall query must be {self.width} finite numbers, not shape {query.shape} with NaN or infinity."
            )

    def _best(self, shelf: Shelf, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores and numbers of the k best vectors of a shelf; a newer one may have added more."""
        known = int(np.searchsorted(self._owners, shelf.total))
        rows = min(k, known)
        if not rows:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        scores, hits = self._search(query, rows + len(self._owners) - known)
        return scores[hits < known][:rows], hits[hits < known][:rows]

    def _wanted(self) -> dict[str, Any]:
        return {"kind": self._search.kind, "width": self.width, "made_by": self._made_by}

    def _facts(self) -> dict[str, Any]:
        return {"owners": len(self._owners)}

    def _dump(self) -> Iterator[bytes | memoryview]:
        yield self._owners.astype("<i8").tobytes()
        yield from self._search.dump()

    def _restore(self, header: dict[str, Any], body: memoryview) -> None:
        split = 8 * header["owners"]
        self._search.load(body[split:], header["owners"])
        self._owners = np.frombuffer(body[:split], "<i8").astype(np.int64)


class KeyIndex(_Vectors):
    """The keys by meaning of a collection's segments, in order."""

    def _of(self, row: SegmentRow, position: int) -> Halves:
        return self._vectors(row.keys or b"", position)

    def search(self, db: Transaction, shelf: Shelf, query: NDArray[np.float32], k: int) -> list[KeyHit]:
        """Return the k best keys, by falling score, as the rows are now.

        Args:
            db: the transaction to read rows in.
            shelf: the segments to search.
            query: [width], a question's key.
            k: how many are wanted.

        Raises:
            InputError: the query is not finite or not of this width.
        """
        self._check_query(query)
        with self._alone():
            self._sync(db, shelf)
            scores, hits = self._best(shelf, query, k)
            owners = self._owners[hits]
            numbers = hits - np.searchsorted(self._owners, owners)
            rows = zip(owners.tolist(), numbers.tolist(), scores.tolist(), strict=True)
            return [KeyHit(*row) for row in rows]


class MemoryIndex(_Vectors):
    """The memory embeddings of a collection's segments that may be recalled, in order.

    Args:
        path: its file.
        width: d, the width of an embedding.
        slots: m, the embeddings of a segment that may be recalled.
        others: the number of embeddings before these in a row.
        **options: as of any search of vectors.
    """

    def __init__(self, path: Path, *, width: int, slots: int, others: int = 0, **options: Any) -> None:
        self.slots, self._others = slots, others
        super().__init__(path, width=width, **options)

    def _clear(self) -> None:
        super()._clear()
        self._largest = 0.0  # norm of the longest memory embedding

    @property
    def bound(self) -> Bound:
        """What is known of the embeddings that it leaves out."""
        return Bound(self._largest, self._search.rounding, self._search.exact)

    def describe(self) -> dict[str, Any]:
        """Describe the search: backend, number of vectors, whether it is exact."""
        known = {"backend": self._search.name, "segments": self.count, "keys": len(self._owners), "exact": self._search.exact}
        return known | self._search.describe()

    def _of(self, row: SegmentRow, position: int) -> Halves:
        memory = self._vectors(row.memory, position)[self._others :]
        self._largest = max(self._largest, float(np.linalg.norm(memory.astype(np.float32), axis=1).max(initial=0)))
        return memory

    def search(self, db: Transaction, shelf: Shelf, query: NDArray[np.float32], k: int) -> Hits:
        """Return the segments with the k best embeddings (times m, where a segment has m), as the rows are now.

        Args:
            db: the transaction to read rows in.
            shelf: the segments to search.
            query: [d], folded.
            k: how many segments are wanted.

        Raises:
            InputError: the query is not finite or not of this width.
        """
        self._check_query(query)
        with self._alone():
            self._sync(db, shelf)
            scores, hits = self._best(shelf, query, k * max(1, self.slots))
            if not len(hits):
                return Hits(np.zeros(0, np.int64), np.zeros((0, self.slots, self.width), np.float16), float("-inf"))
            owners, first = np.unique(self._owners[hits], return_index=True)
            positions = owners[np.argsort(first)]
            ceiling = float("-inf")
            if len(positions) < shelf.total:
                ceiling = self.bound.ceiling(query, float(scores.min()))
            return Hits(positions, self._memory(db, shelf, positions), ceiling)

    def _memory(self, db: Transaction, shelf: Shelf, positions: NDArray[np.int64]) -> Halves:
        """Return [k, m, d] from the index if it holds the embeddings unchanged, else from the rows."""
        shape = (len(positions), self.slots, self.width)
        rows = (positions[:, None] * self.slots + np.arange(self.slots)).ravel()
        vectors = self._search.vectors(rows)
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
        return {**super()._wanted(), "slots": self.slots, "others": self._others}

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "largest": self._largest}

    def _restore(self, header: dict[str, Any], body: memoryview) -> None:
        super()._restore(header, body)
        self._largest = header["largest"]
