"""Top-k search over the index keys of one collection, and its file. A cache: the rows decide, and it is rebuilt on any doubt.

Inner product of a folded query with raw float16 keys. The default, FAISS's 16-bit scalar quantizer, is exact and needs no
training; without FAISS, torch searches the same matrix; on a GPU, FAISS's GPU build. Any `index_factory` string may replace it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, MissingDependencyError, SessionBusyError, StoreDamagedError
from .records import Shelf

Halves = NDArray[np.float16]

log = logging.getLogger("hmt_memory")
DEFAULT = "SQfp16"
_MAGIC = b"HMTINDEX"
_FORMAT = 1
_ROWS_PER_FETCH = 4096
_POINTS_PER_LIST = 39  # FAISS wants so many training points for each inverted list
_GPU_K = 2048  # the largest k of FAISS's GPU selection
_SAVE_ALWAYS_BELOW = 10_000  # segments; a larger file is written when a twentieth of it is new


class Hits(NamedTuple):
    """What a search found."""

    positions: NDArray[np.int64]  # segments by falling score of their best key
    memory: Halves  # [k, m, d] their memory embeddings, as stored
    ceiling: float  # no memory embedding of a segment left out scores higher; -inf where none is left out


class MemoryIndex:
    """The index keys of a collection's segments, in order, and the memory embeddings where they are the keys.

    Args:
        path: its file; it may be missing, stale or damaged.
        width: d. slots: m, embeddings a segment.
        factory: a FAISS `index_factory` string for inner product, with `;name=value` search parameters after it.
        made_by: digest of the model; an index of another one is not used.

    Raises:
        ConfigError: the factory string is unknown, or recalls too little. MissingDependencyError: it needs FAISS.
    """

    def __init__(self, path: Path, *, width: int, slots: int, factory: str = DEFAULT, made_by: str = "") -> None:
        self.path, self.width, self.slots = path, width, slots
        self.factory, self._made_by = factory, made_by
        self._mutex = threading.Lock()
        self._search: _Search = _new_search(factory, width)
        self._looked_for_file = False
        self._clear()

    def _clear(self) -> None:
        self._search = _new_search(self.factory, self.width)
        self._owners = np.zeros(0, np.int64)  # the segment of each key, in order
        self._largest = 0.0  # norm of the longest memory embedding
        self._keys_are_memory = True
        self.count, self._check, self._saved = 0, "", 0
        self._version: tuple[int, int, int] | None = None

    def describe(self) -> dict[str, Any]:
        """What searches: backend, keys, whether it is exact."""
        return {"backend": self._search.name, "segments": self.count, "keys": len(self._owners), "exact": self._exact}

    @property
    def _exact(self) -> bool:
        return self._search.exact and self._keys_are_memory

    # --- keeping up with the rows -----------------------------------------------------------------------------------

    def sync(self, db: sqlite3.Connection, shelf: Shelf) -> None:
        """Take over what the rows have more, or everything anew where they are not what the index was made of."""
        with self._mutex:
            self._sync(db, shelf)

    def _sync(self, db: sqlite3.Connection, shelf: Shelf) -> None:
        if self._version is not None and shelf.version is not None:
            if shelf.version[:2] == self._version[:2] and shelf.total <= self.count:
                return  # rows are only appended within an epoch, and the search leaves out what is beyond the shelf
            if shelf.version[1] < self._version[1]:
                raise SessionBusyError("what is searched was rewritten meanwhile. Try again.")
        if not self._looked_for_file and shelf.total:
            self._looked_for_file = True
            self._load(db, shelf)
        if self.count > shelf.total or (self.count and shelf.check(db, self.count) != self._check):
            self._clear()
        for start in range(self.count, shelf.total, _ROWS_PER_FETCH):
            self._extend(db, shelf, start, min(start + _ROWS_PER_FETCH, shelf.total))
            self._check = shelf.check(db, self.count)
        self._version = shelf.version

    def _extend(self, db: sqlite3.Connection, shelf: Shelf, start: int, stop: int) -> None:
        keys, owners = [], []
        for at, row in enumerate(shelf.rows(db, start, stop), start):
            memory = self._vectors(row.memory, at)
            key = memory if row.keys is None else self._vectors(row.keys, at)
            self._keys_are_memory &= row.keys is None
            self._largest = max(self._largest, float(np.linalg.norm(memory.astype(np.float32), axis=1).max(initial=0)))
            keys.append(key)
            owners += [at] * len(key)
        if keys:
            self._search.add(np.concatenate(keys))
        self._owners = np.concatenate([self._owners, np.array(owners, np.int64)])
        self.count = stop

    def _vectors(self, data: bytes, at: int) -> Halves:
        vectors: Halves = np.frombuffer(data, "<f2") if data else np.zeros(0, np.float16)
        if len(vectors) % self.width or not np.isfinite(vectors).all():
            raise StoreDamagedError(f"segment {at} does not hold embeddings of width {self.width}. Rebuild the collection.")
        return vectors.reshape(-1, self.width)

    # --- searching --------------------------------------------------------------------------------------------------

    def search(self, db: sqlite3.Connection, shelf: Shelf, query: NDArray[np.float32], k: int) -> Hits:
        """The segments of the k best keys (times m, where a segment has m) for a folded query [d], as the rows are now.

        Raises:
            InputError: the query is not finite or not of this width.
        """
        if query.shape != (self.width,) or not np.isfinite(query).all():
            raise InputError(
                f"a recall query must be {self.width} finite numbers, not shape {query.shape} with NaN or infinity."
            )
        with self._mutex:
            self._sync(db, shelf)
            known = int(np.searchsorted(self._owners, shelf.total))  # keys of the shelf; a newer one may have brought more
            rows = min(k * max(1, self.slots), known)
            if not rows:
                return Hits(np.zeros(0, np.int64), np.zeros((0, self.slots, self.width), np.float16), float("-inf"))
            scores, found = self._search(query, rows + len(self._owners) - known)
            scores, found = scores[found < known][:rows], found[found < known][:rows]
            owners, first = np.unique(self._owners[found], return_index=True)
            positions = owners[np.argsort(first)]
            ceiling = float("-inf")
            if len(positions) < shelf.total:
                lowest = float(scores.min()) if self._exact else float("inf")
                ceiling = min(lowest, float(np.linalg.norm(query)) * self._largest)
                ceiling += self._search.rounding * abs(ceiling)
            return Hits(positions, self._memory(db, shelf, positions), ceiling)

    def _memory(self, db: sqlite3.Connection, shelf: Shelf, positions: NDArray[np.int64]) -> Halves:
        """[k, m, d] from the index where it holds the embeddings as they are, else from the rows."""
        shape = (len(positions), self.slots, self.width)
        rows = (positions[:, None] * self.slots + np.arange(self.slots)).ravel()
        found = self._search.vectors(rows) if self._keys_are_memory else None
        if found is None:
            stored = (next(shelf.rows(db, at, at + 1)).memory for at in positions.tolist())
            found = np.frombuffer(b"".join(stored), "<f2").astype(np.float16)
        return found.reshape(shape)

    # --- the file ---------------------------------------------------------------------------------------------------

    def save(self, db: sqlite3.Connection, shelf: Shelf, *, always: bool = False) -> None:
        """Replace the file, if enough is new and `shelf`, the collection as it is now, still begins with what is indexed.

        Failing is no loss: the index is made of the rows again. Nobody may rewrite the rows meanwhile.
        """
        with self._mutex:
            new = self.count - self._saved
            if not new or not (always or self.count < _SAVE_ALWAYS_BELOW or new * 20 >= self.count):
                return
            if self.count > shelf.total or shelf.check(db, self.count) != self._check:
                return
            try:
                self._write()
            except OSError as error:
                log.warning("the index %s could not be saved (%s); it is made again when it is needed.", self.path, error)
            else:
                self._saved = self.count

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        scratch = self.path.with_name(f"{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        header = {
            "format": _FORMAT,
            "kind": self._search.kind,
            "width": self.width,
            "slots": self.slots,
            "count": self.count,
            "check": self._check,
            "made_by": self._made_by,
            "largest": self._largest,
            "keys_are_memory": self._keys_are_memory,
            "owners": len(self._owners),
        }
        text = json.dumps(header).encode()
        try:
            with scratch.open("wb") as file:
                crc = 0
                for piece in (text, self._owners.astype("<i8").tobytes(), *self._search.dump()):
                    crc = zlib.crc32(piece, crc)
                    if piece is text:
                        file.write(_MAGIC + len(text).to_bytes(8, "little"))
                    file.write(piece)
                file.write(crc.to_bytes(4, "little"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.path)
            _sync_folder(self.path.parent)
        finally:
            scratch.unlink(missing_ok=True)

    def _load(self, db: sqlite3.Connection, shelf: Shelf) -> None:
        """Start from the file, if it is whole and was made of the very rows that are there."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            return self._distrust(str(error))
        try:
            header, body = _unpack(content)
        except ValueError as error:
            return self._distrust(str(error))
        wanted = {"kind": self._search.kind, "width": self.width, "slots": self.slots, "made_by": self._made_by}
        if any(header.get(name) != value for name, value in wanted.items()):
            return self._distrust("it was made for other settings or another model")
        if header["count"] > shelf.total or shelf.check(db, header["count"]) != header["check"]:
            return self._distrust("the record says otherwise")
        split = 8 * header["owners"]
        try:
            self._search.load(body[split:], header["owners"])
        except Exception as error:  # whatever FAISS meets in a file that is not its own
            return self._distrust(str(error))
        self._owners = np.frombuffer(body[:split], "<i8").astype(np.int64)
        self._largest, self._keys_are_memory = header["largest"], header["keys_are_memory"]
        self.count = self._saved = header["count"]
        self._check = header["check"]

    def _distrust(self, reason: str) -> None:
        log.warning("the index %s is made again from the record: %s.", self.path, reason)
        self._clear()


def remove(path: Path) -> None:
    """Delete an index file and what a crash left of writing it."""
    for found in (path, *path.parent.glob(f"{path.name}.*")):
        found.unlink(missing_ok=True)


def stale(path: Path, db: sqlite3.Connection, shelf: Shelf) -> str | None:
    """Why an index file would not be used; None: it would, or there is none."""
    try:
        header, _ = _unpack(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return str(error)
    agrees = header["count"] <= shelf.total and shelf.check(db, header["count"]) == header["check"]
    return None if agrees else "the record says otherwise"


def _unpack(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and body of an index file. Raises ValueError where it is not whole."""
    start = len(_MAGIC) + 8
    if len(content) < start + 4 or content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is not an index file, or torn")
    inner = memoryview(content)[start:-4]
    if zlib.crc32(inner).to_bytes(4, "little") != content[-4:]:
        raise ValueError("it is damaged: its checksum does not fit")
    length = int.from_bytes(content[len(_MAGIC) : start], "little")
    try:
        header = json.loads(bytes(inner[:length]))
    except ValueError as error:
        raise ValueError("its header is damaged") from error
    if header.get("format") != _FORMAT:
        raise ValueError("it is of another version")
    return header, inner[length:]


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system syncs folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- backends ---------------------------------------------------------------------------------------------------------


class _Search:
    """Inner-product search over a growing matrix of float16 rows."""

    name = kind = "none"
    exact = True
    rounding = 1e-5  # relative difference between its scores and the true ones

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores [k] and rows [k], best first."""
        raise NotImplementedError

    def add(self, rows: Halves) -> None:
        raise NotImplementedError

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        """Rows as they were added, if they are kept so."""
        raise NotImplementedError

    def dump(self) -> Iterator[bytes]:
        """What `load` takes, in pieces."""
        raise NotImplementedError

    def load(self, data: memoryview, rows: int) -> None:
        raise NotImplementedError


def _new_search(factory: str, width: int) -> _Search:
    name = factory.partition(";")[0].strip()
    try:
        import faiss
    except (ImportError, OSError, RuntimeError) as error:  # a GPU build whose CUDA libraries are missing raises the latter
        if name != DEFAULT:
            raise MissingDependencyError(
                f"the index {factory!r} needs FAISS ({error}). Run: pip install 'hmt-memory[cpu]'"
            ) from error
        return _Torch(width)
    if name == DEFAULT:
        return _Gpu(faiss, width) if _gpu_usable(faiss) else _Flat(faiss, width)
    return _Factory(faiss, width, factory)


class _Torch(_Search):
    """Exact search in torch, for machines without FAISS. Rows lie in blocks, so that growing copies little."""

    name, kind = "torch", "flat16"
    _BLOCK = 65_536

    def __init__(self, width: int) -> None:
        self._blocks: list[torch.Tensor] = []
        self._width = width

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        wanted = torch.from_numpy(query)
        scores = torch.cat([block.float() @ wanted for block in self._blocks])
        best = scores.topk(min(k, len(scores)))
        return best.values.numpy(), best.indices.numpy()

    def add(self, rows: Halves) -> None:
        new = torch.from_numpy(rows.copy())
        if self._blocks and len(self._blocks[-1]) + len(new) <= self._BLOCK:
            self._blocks[-1] = torch.cat([self._blocks[-1], new])
        else:
            self._blocks.append(new)

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        picked = [self._blocks[at][row - starts[at]] for at, row in zip(owner.tolist(), rows.tolist(), strict=True)]
        found: Halves = torch.stack(picked).numpy() if picked else np.zeros((0, self._width), np.float16)
        return found

    def dump(self) -> Iterator[bytes]:
        for block in self._blocks:
            yield block.numpy().astype("<f2").tobytes()

    def load(self, data: memoryview, rows: int) -> None:
        self.add(_matrix(data, rows, self._width))


class _Flat(_Search):
    """FAISS's 16-bit scalar quantizer: its codes are the float16 rows themselves, so it is exact."""

    name, kind = "faiss SQfp16", "flat16"

    def __init__(self, faiss: Any, width: int) -> None:
        self._faiss, self._width = faiss, width
        self._index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with _one_thread(self._faiss):
            scores, rows = self._index.search(query[None], k)
        return scores[0], rows[0]

    def add(self, rows: Halves) -> None:
        if len(rows):
            self._index.add_sa_codes(np.ascontiguousarray(rows).view(np.uint8))

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        return np.ascontiguousarray(self.codes()[rows])

    def codes(self) -> Halves:
        """[n, d] all rows, without a copy."""
        size = self._index.ntotal * self._width * 2
        if not size:
            return np.zeros((0, self._width), np.float16)
        codes = self._faiss.rev_swig_ptr(self._index.codes.data(), size)
        found: Halves = codes.view(np.float16).reshape(-1, self._width)
        return found

    def dump(self) -> Iterator[bytes]:
        codes = self.codes()
        for start in range(0, len(codes), 65_536):
            yield codes[start : start + 65_536].astype("<f2", copy=False).tobytes()

    def load(self, data: memoryview, rows: int) -> None:
        self.add(_matrix(data, rows, self._width))


class _Gpu(_Flat):
    """The same on a GPU: a copy there searches, the rows here are what is saved. Falls back to them once a search fails."""

    rounding = 1e-2  # it sums in half precision

    def __init__(self, faiss: Any, width: int) -> None:
        super().__init__(faiss, width)
        self.name = "faiss GPU Flat fp16"
        self._resources: Any = faiss.StandardGpuResources()
        self._copy: Any = None
        self._usable = True

    def add(self, rows: Halves) -> None:
        super().add(rows)
        self._copy = None

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self._usable and k <= _GPU_K:
            try:
                return self._search_there(query, k)
            except Exception as error:  # out of memory, or a driver this build does not fit
                log.warning("searching on the GPU failed (%s); the CPU does it from now on.", error)
                self._usable, self._copy, self.name = False, None, _Flat.name
        return super().__call__(query, k)

    def _search_there(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self._copy is None:
            options = self._faiss.GpuClonerOptions()
            options.useFloat16, options.use_cuvs = True, False
            self._copy = self._faiss.index_cpu_to_gpu(self._resources, 0, self._index, options)
        scores, rows = self._copy.search(query[None], k)
        exact = self.codes()[rows[0]].astype(np.float32) @ query
        if not np.allclose(exact, scores[0], rtol=self.rounding, atol=self.rounding * float(np.abs(exact).max(initial=0))):
            raise RuntimeError("its scores are not those of the rows")
        return exact, rows[0]


class _Factory(_Search):
    """Any index that `index_factory` makes. Until there are enough keys to train it, a flat one stands in."""

    def __init__(self, faiss: Any, width: int, factory: str) -> None:
        name, _, self._parameters = (part.strip() for part in factory.partition(";"))
        if "HNSW" in name.upper():
            raise ConfigError(
                f"the index {name!r} searches a graph by inner product, which found only 29 to 41 % of the best of 10,000 to "
                "30,000 memories (docs/LOG.md). Use 'SQfp16' (exact), or 'IVF1024,SQfp16;nprobe=64' above a million segments."
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
            self.add(_matrix(data[8:], rows, self._width))
            return
        self._index = self._faiss.deserialize_index(np.frombuffer(data[8 : 8 + length], np.uint8))
        self._set_parameters()
        self._flat = None
        if self._index.ntotal != rows or self._index.d != self._width:
            raise ValueError("it holds other keys than its header says")


def _matrix(data: memoryview, rows: int, width: int) -> Halves:
    if len(data) != rows * width * 2:
        raise ValueError("it holds another number of keys than its header says")
    found: Halves = np.frombuffer(data, "<f2").reshape(rows, width)
    return found


@contextlib.contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """One query is searched fastest on one thread, whose setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _gpu_usable(faiss: Any) -> bool:
    """Whether this is a GPU build of FAISS and there is a GPU; torch is asked first, because it does not abort."""
    return hasattr(faiss, "StandardGpuResources") and torch.cuda.is_available() and faiss.get_num_gpus() > 0
