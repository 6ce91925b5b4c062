"""Backends that search an index: FAISS's exact 16-bit scan, the same on GPUs, torch without FAISS, or any FAISS factory.

Each is a growing matrix of float16 rows, searched by inner product. Knows vectors; no rows of the record, no file names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, MissingDependencyError
from .base import DEFAULT, Halves, Search, matrix
from .bounded import BoundedSearch
from .devices import usable
from .flat import FlatSearch, one_thread
from .gpu import GpuSearch

_POINTS_PER_LIST = 39  # FAISS wants so many training points for each inverted list


def new_search(factory: str, width: int, directions: NDArray[np.float32] | None = None) -> Search:
    """Choose the backend.

    Args:
        factory: `DEFAULT`, or what FAISS calls an index.
        width: of a vector.
        directions: [r, d] whose span holds the queries; None, or r = d: they may lie anywhere.

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
        flat = FlatSearch(faiss, width)
        if usable(faiss):
            return GpuSearch(faiss, flat, flat.codes, width)
        if directions is None or len(directions) >= width:
            return flat
        return BoundedSearch(faiss, width, directions)
    return _Factory(faiss, width, factory)


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
        self._flat: FlatSearch | None = None
        self.exact = name == "Flat"
        self.name, self.kind = f"faiss {factory}", f"faiss {factory}"
        try:
            self._index = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
            self._set_parameters()
        except Exception as error:  # FAISS raises RuntimeError with a C++ trace
            raise ConfigError(f"FAISS does not know the index {factory!r}: {str(error).splitlines()[-1]}") from error
        self._training = _POINTS_PER_LIST * int(getattr(self._faiss.downcast_index(self._index), "nlist", 1))
        if not self._index.is_trained:
            self._flat = FlatSearch(faiss, width)

    def _set_parameters(self) -> None:
        if self._parameters:
            self._faiss.ParameterSpace().set_index_parameters(self._index, self._parameters)

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self._flat is not None:
            return self._flat(query, k)
        with one_thread(self._faiss):
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
