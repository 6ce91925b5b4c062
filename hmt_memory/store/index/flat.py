"""FAISS's exact scan of 16-bit rows. Knows FAISS; no rows of the record, no file names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Halves, Search, dumped, matrix

_LARGE = 32 << 20  # bytes of a matrix for which huge pages are worth asking


class FlatSearch(Search):
    """FAISS's 16-bit scalar quantizer: its codes are the float16 rows themselves, so it is exact."""

    name, kind = "faiss SQfp16", "flat16"

    def __init__(self, faiss: Any, width: int) -> None:
        self._faiss, self._width = faiss, width
        self._index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True
        self._advised = 0  # the address for which huge pages were last asked

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores [k] and rows [k], best first."""
        with one_thread(self._faiss):
            scores, rows = self._index.search(query[None], k)
        return scores[0], rows[0]

    def add(self, rows: Halves) -> None:
        """Append rows [n, d]."""
        if len(rows):
            self._index.add_sa_codes(np.ascontiguousarray(rows).view(np.uint8))
            codes = self.codes()
            if codes.nbytes >= _LARGE and codes.ctypes.data != self._advised:  # it has moved to grow
                self._advised = codes.ctypes.data
                from hmt_kernels.byte_codes import use_huge_pages  # imports torch, which looking at rows does without

                use_huge_pages(self._advised, codes.nbytes)

    def keep(self, kept: NDArray[np.bool_]) -> bool:
        """Drop the rows where `kept` [n] is False."""
        rows = self.codes()[kept]
        self._index.reset()
        self.add(rows)
        return True

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        """Return rows as they were added."""
        return np.ascontiguousarray(self.codes()[rows])

    def codes(self) -> Halves:
        """Return all rows [n, d], without a copy."""
        size = self._index.ntotal * self._width * 2
        if not size:
            return np.zeros((0, self._width), np.float16)
        codes = self._faiss.rev_swig_ptr(self._index.codes.data(), size)
        rows: Halves = codes.view(np.float16).reshape(-1, self._width)
        return rows

    def dump(self) -> Iterator[bytes]:
        """Yield the rows."""
        return dumped(self.codes())

    def load(self, data: memoryview, rows: int) -> None:
        """Append the `rows` rows that `dump` wrote."""
        self.add(matrix(data, rows, self._width))


@contextlib.contextmanager
def one_thread(faiss: Any) -> Iterator[None]:
    """Search on one thread, which is fastest for one query. The setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
