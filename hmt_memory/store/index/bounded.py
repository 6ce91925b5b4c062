"""Exact search on a CPU by codes of a byte, once there are many rows and it is known where queries lie. Knows the kernel.

Until then, the rows are scanned as they are: below some ten thousand that is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import Halves, Search, dumped, matrix
from .flat import FlatSearch, one_thread

if TYPE_CHECKING:
    from hmt_kernels.cpu_recall import BoundedScan

MANY = 32_768  # rows from which on codes are faster; at 10,000 they take 1.8 times as long as the rows (docs/log.md)


class BoundedSearch(Search):
    """FAISS's 16-bit scan, and from `MANY` rows on a scan of codes with a proven bound, which finds the same.

    Args:
        faiss: the module.
        width: of a row.
        directions: [r, d] whose span holds the queries; r < d.
    """

    name, kind = FlatSearch.name, FlatSearch.kind

    def __init__(self, faiss: Any, width: int, directions: NDArray[np.float32]) -> None:
        self._faiss, self._width, self._directions = faiss, width, directions
        self._flat: FlatSearch | None = FlatSearch(faiss, width)
        self._scan: BoundedScan | None = None

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores [k] and rows [k], best first."""
        if self._scan is None:
            assert self._flat is not None
            return self._flat(query, k)
        with one_thread(self._faiss):
            found = self._scan.search(query, k)
        return found.scores, found.rows

    def add(self, rows: Halves) -> None:
        """Append rows [n, d]."""
        if self._scan is not None:
            self._scan.add(rows)
            return
        assert self._flat is not None
        self._flat.add(rows)
        if len(self._flat.codes()) >= MANY:
            from hmt_kernels import cpu_recall  # imports torch, which looking at rows does without

            scan = cpu_recall.BoundedScan(self._width, self._directions)
            scan.add(self._flat.codes())
            self._scan = scan
            self._flat, self.name = None, f"{FlatSearch.name} behind codes of {len(self._directions)} bytes"

    def keep(self, kept: NDArray[np.bool_]) -> bool:
        """Drop the rows where `kept` [n] is False."""
        if self._scan is None:
            assert self._flat is not None
            return self._flat.keep(kept)
        self._scan.remove(np.flatnonzero(~kept))
        return True

    def vectors(self, rows: NDArray[np.int64]) -> Halves:
        """Return rows as they were added."""
        return np.ascontiguousarray(self._rows()[rows])

    def dump(self) -> Iterator[bytes]:
        """Yield the rows; codes are made again when they are loaded."""
        return dumped(self._rows())

    def load(self, data: memoryview, rows: int) -> None:
        """Append the `rows` rows that `dump` wrote."""
        self.add(matrix(data, rows, self._width))

    @property
    def beside(self) -> int:
        """The bytes of memory that it takes beside its rows."""
        return 0 if self._scan is None else self._scan.nbytes - 2 * self._width * len(self._scan)

    def _rows(self) -> Halves:
        if self._scan is None:
            assert self._flat is not None
            return self._flat.codes()
        return self._scan.rows


def missed(count: int, width: int, inner: int, k: int) -> int:
    """Search made-up rows by codes, and by FAISS's scan; return how many of the best the codes miss.

    Args:
        count: how many rows.
        width: of a row.
        inner: how many directions span the queries.
        k: how many are searched for.

    Raises:
        ImportError: FAISS does not load.
    """
    import faiss

    from hmt_kernels.cpu_recall import BoundedScan

    drawn = np.random.default_rng(0)
    rows = drawn.integers(-100, 101, (count, width), np.int8).astype(np.float16)
    directions = drawn.standard_normal((inner, width), np.float32)
    query = drawn.standard_normal(inner, np.float32) @ directions
    by_codes, by_rows = BoundedScan(width, directions), FlatSearch(faiss, width)
    with one_thread(faiss):
        by_codes.add(rows)
        found = by_codes.search(query, k).rows
    by_rows.add(rows)
    return len(np.setdiff1d(by_rows(query, k)[1], found))
