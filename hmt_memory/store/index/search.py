"""Backends that search an index: FAISS's exact 16-bit scan, the same on GPUs, torch without FAISS, or any FAISS factory.

Each is a growing matrix of float16 rows, searched by inner product. Knows vectors; no rows of the record, no file names.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, MissingDependencyError
from .base import DEFAULT, Halves, Search, matrix
from .devices import usable
from .gpu import GpuSearch

_POINTS_PER_LIST = 39  # FAISS wants so many training points for each inverted list
_LARGE = 32 << 20  # bytes of a matrix for which huge pages are worth asking
_HUGE_PAGE, _MADV_HUGEPAGE, _MADV_COLLAPSE = 2 << 20, 14, 25  # Linux; kernels without the last ignore it


def new_search(factory: str, width: int) -> Search:
    """Choose the backend for a `factory` string and vectors of `width`.

    Raises:
        MissingDependencyError: the factory needs FAISS.
        ConfigError: FAISS does not know the factory, or it recalls too little.
    """
    name = factory.partition(";")[0].strip()
    try:
        import faiss
    except (ImportError, OSError, RuntimeError) as error:  # a GPU build without its CUDA libraries raises RuntimeError
        if name != DEFAULT:
            raise MissingDependencyError(
                f"the index {factory!r} needs FAISS ({error}). Run: pip install 'hmt-memory[cpu]'"
            ) from error
        from .torch_search import TorchSearch

        return TorchSearch(width)
    if name == DEFAULT:
        flat = _Flat(faiss, width)
        return GpuSearch(faiss, flat, flat.codes, width) if usable(faiss) else flat
    return _Factory(faiss, width, factory)


class _Flat(Search):
    """FAISS's 16-bit scalar quantizer: its codes are the float16 rows themselves, so it is exact."""

    name, kind = "faiss SQfp16", "flat16"

    def __init__(self, faiss: Any, width: int) -> None:
        self._faiss, self._width = faiss, width
        self._index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True
        self._advised = 0  # the address for which huge pages were last asked

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with _one_thread(self._faiss):
            scores, rows = self._index.search(query[None], k)
        return scores[0], rows[0]

    def add(self, rows: Halves) -> None:
        if len(rows):
            self._index.add_sa_codes(np.ascontiguousarray(rows).view(np.uint8))
            codes = self.codes()
            if codes.nbytes >= _LARGE and codes.ctypes.data != self._advised:  # it has moved to grow
                self._advised = codes.ctypes.data
                _use_huge_pages(self._advised, codes.nbytes)

    def keep(self, kept: NDArray[np.bool_]) -> bool:
        rows = self.codes()[kept]
        self._index.reset()
        self.add(rows)
        return True

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
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
        codes = self.codes()
        for start in range(0, len(codes), 65_536):
            yield codes[start : start + 65_536].astype("<f2", copy=False).tobytes()

    def load(self, data: memoryview, rows: int) -> None:
        self.add(matrix(data, rows, self._width))


class _Factory(Search):
    """Any index that `index_factory` makes. Until there are enough keys to train it, a flat one stands in."""

    def __init__(self, faiss: Any, width: int, factory: str) -> None:
        name, _, self._parameters = (part.strip() for part in factory.partition(";"))
        if "HNSW" in name.upper():
            raise ConfigError(
                f"the index {name!r} searches a graph by inner product, which found only 29 to 41 % of the best of 10,000 to "
                "30,000 memories (docs/log.md). Use 'SQfp16' (exact), or 'IVF1024,SQfp16;nprobe=64' above a million segments."
            )
        self._faiss, self._width = faiss, width
        self._flat: _Flat | None = None
        self.exact = name == "Flat"
        self.name, self.kind = f"faiss {factory}", f"faiss {factory}"
        try:
            self._index = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
            self._set_parameters()
        except Exception as error:  # FAISS raises RuntimeError with a C++ trace
            raise ConfigError(f"FAISS does not know the index {factory!r}: {str(error).splitlines()[-1]}") from error
        self._training = _POINTS_PER_LIST * int(getattr(self._faiss.downcast_index(self._index), "nlist", 1))
        if not self._index.is_trained:
            self._flat = _Flat(faiss, width)

    def _set_parameters(self) -> None:
        if self._parameters:
            self._faiss.ParameterSpace().set_index_parameters(self._index, self._parameters)

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self._flat is not None:
            return self._flat(query, k)
        with _one_thread(self._faiss):
            scores, rows = self._index.search(query[None], k)
        kept = rows[0] >= 0  # probing few lists may find fewer than k
        return scores[0][kept], rows[0][kept]

    def add(self, rows: Halves) -> None:
        if self._flat is None:
            self._index.add(rows.astype(np.float32))
            return
        self._flat.add(rows)
        everything = self._flat.codes()
        if len(everything) >= self._training:
            wide = everything.astype(np.float32)
            self._index.train(wide)
            self._index.add(wide)
            self._flat = None

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        return None

    def dump(self) -> Iterator[bytes]:
        trained = b"" if self._flat is not None else bytes(self._faiss.serialize_index(self._index))
        yield len(trained).to_bytes(8, "little") + trained
        if self._flat is not None:
            yield from self._flat.dump()

    def load(self, data: memoryview, rows: int) -> None:
        length = int.from_bytes(data[:8], "little")
        if not length:
            self.add(matrix(data[8:], rows, self._width))
            return
        self._index = self._faiss.deserialize_index(np.frombuffer(data[8 : 8 + length], np.uint8))
        self._set_parameters()
        self._flat = None
        if self._index.ntotal != rows or self._index.d != self._width:
            raise ValueError("it holds other keys than its header says")


@contextlib.contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """Search on one thread, which is fastest for one query. The setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _use_huge_pages(address: int, size: int) -> None:
    """Ask Linux to lay memory [address, address + size) in huge pages: a scan of it is then a quarter faster. Costs a copy."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        start = -(-address // _HUGE_PAGE) * _HUGE_PAGE
        length = (address + size - start) // _HUGE_PAGE * _HUGE_PAGE
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            advise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
