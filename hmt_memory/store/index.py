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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SessionBusyError, StoreDamagedError
from .records import Shelf
from .search import DEFAULT, Halves, Search, new_search

log = logging.getLogger("hmt_memory")
_MAGIC = b"HMTINDEX"
_FORMAT = 1
_ROWS_PER_FETCH = 4096
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
        self._search: Search = new_search(factory, width)
        self._looked_for_file = False
        self._clear()

    def _clear(self) -> None:
        self._search = new_search(self.factory, self.width)
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

    def _sync(self, db: sqlite3.Connection, shelf: Shelf) -> None:
        """Take over what the rows have more, or everything anew where they are not what the index was made of."""
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
