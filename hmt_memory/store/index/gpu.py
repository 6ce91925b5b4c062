"""Exact search on GPUs: a copy of the host's rows in FAISS's flat index, in half precision, cut into blocks.

Knows how far the devices' sums are off. The host's rows are the truth: the scores are made from them, and they answer what a
GPU cannot settle: more rows than FAISS selects from one block, and rows so alike that half precision does not rank them.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .base import Halves, Search
from .devices import SPARE, Block, Device, drop, on_devices, process

log = logging.getLogger("hmt_memory")
_T = TypeVar("_T")
_BLOCK = 128 << 20  # bytes of a block: growing copies it on the device, and takes that much more for the moment
_PIECE = 16 << 20  # bytes uploaded at once, in single precision: FAISS takes no other from the host
_EXTRA = 64  # rows asked for beyond twice as many as are wanted
_EXACT = 4096  # rows whose exact scores are made at once


class GpuSearch(Search):
    """The host's search done on GPUs, with the same answers. After a failure there, the host does it.

    Every device holds blocks of consecutive rows. Growing uploads new rows to the last block; further blocks are dealt to the
    devices in turn. What FAISS holds of a device is used by one thread at a time, whichever search it belongs to.

    Args:
        faiss: the module, a GPU build.
        host: the search on the host, which keeps the rows.
        codes: returns all rows [n, d] of the host.
        width: of a row.
    """

    def __init__(self, faiss: Any, host: Search, codes: Callable[[], Halves], width: int) -> None:
        self.name, self.kind = "faiss GPU Flat fp16", host.kind
        self._faiss, self._host, self._codes, self._width = faiss, host, codes, width
        self._devices = int(faiss.get_num_gpus())
        self._block_rows, self._piece_rows = max(1, _BLOCK // (2 * width)), max(1, _PIECE // (4 * width))
        self._usable, self._mutex = True, threading.Lock()
        self._blocks: list[Block] = []  # in the order of their rows
        self.unsettled = 0  # searches that the host answered, because half precision does not tell which rows are best
        weakref.finalize(self, drop, self._blocks).atexit = False

    @property
    def device_bytes(self) -> dict[int, int]:
        """The bytes of each device that the copy takes, without FAISS's scratch memory."""
        taken: dict[int, int] = {}
        for block in list(self._blocks):
            taken[block.device.number] = taken.get(block.device.number, 0) + on_devices(block.rows, self._width)
        return taken

    @property
    def beside(self) -> int:
        """The bytes of memory, on devices too, that it takes beside the host's rows."""
        return self._host.beside + sum(self.device_bytes.values())

    def describe(self) -> dict[str, Any]:
        """Describe the copy: bytes by device, and searches that the host answered because it does not tell."""
        return {"device_bytes": self.device_bytes, "unsettled": self.unsettled}

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores [k] and rows [k], best first."""
        if self._ready() and self._blocks:
            found = self._attempt(lambda: self._settled(query, min(k, len(self._codes()))))
            if found is not None:
                return found
        return self._host(query, k)

    def add(self, rows: Halves) -> None:
        """Append rows [n, d]."""
        self._host.add(rows)
        self._catch_up()

    def keep(self, kept: NDArray[np.bool_]) -> bool:
        """Drop the rows where `kept` [n] is False. FAISS removes nothing on a GPU: blocks that lose rows are uploaded again."""
        if not self._host.keep(kept):
            return False
        if self._ready():
            self._attempt(lambda: self._refill(kept))
        self._catch_up()
        return True

    def vectors(self, rows: NDArray[np.int64]) -> Halves | None:
        """Return rows as they were added."""
        return self._host.vectors(rows)

    def dump(self) -> Iterator[bytes]:
        """Yield the host's rows in pieces."""
        return self._host.dump()

    def load(self, data: memoryview, rows: int) -> None:
        """Append the `rows` rows that `dump` wrote."""
        self._host.load(data, rows)
        self._catch_up()

    def _ready(self) -> bool:
        """Return whether the GPUs are used: not after a failure, nor after a fork."""
        if self._usable and process.forked:
            self._usable, self.name = False, self._host.name
            self._blocks.clear()
        return self._usable

    def _attempt(self, work: Callable[[], _T]) -> _T | None:
        """Do something with the devices. After any error the host searches from now on, and the devices are freed."""
        try:
            return work()
        except Exception as error:  # out of memory, or a driver that this build does not fit
            reason = str(error) or type(error).__name__
        with self._mutex:
            if not self._usable:
                return None
            self._usable, self.name = False, self._host.name
        drop(self._blocks)
        log.warning("searching on the GPU failed (%s); the CPU does it from now on.", reason)
        return None

    def _catch_up(self) -> None:
        """Upload the host's rows that follow those uploaded."""
        if self._ready():
            self._attempt(self._upload)

    def _upload(self) -> None:
        codes, held = self._codes(), sum(block.rows for block in self._blocks)
        while held < len(codes):
            block = self._growing(min(self._piece_rows, len(codes) - held))
            piece = codes[held : held + min(self._piece_rows, self._block_rows - block.rows)]
            block.add(piece)
            held += len(piece)

    def _growing(self, rows: int) -> Block:
        """Return the block that further rows go to: the last, or a new one on the next device with room for so many.

        Raises:
            MemoryError: there is no room.
        """
        last = self._blocks[-1] if self._blocks else None
        if last and last.rows < self._block_rows and last.has_room(rows):
            return last
        first = last.device.number + 1 if last else 0
        for step in range(self._devices):
            block = Block(process.device(self._faiss, (first + step) % self._devices), self._width)
            if block.has_room(rows):
                self._blocks.append(block)
                return block
        raise MemoryError(f"no GPU has {on_devices(rows, self._width) + SPARE >> 20} MiB free")

    def _refill(self, kept: NDArray[np.bool_]) -> None:
        """Upload again the blocks that have lost rows; all of them where they would be much smaller than they may be."""
        left = int(kept.sum())
        if len(self._blocks) > 1 + 2 * -(-left // self._block_rows):
            drop(self._blocks)
            return
        codes, start = self._codes(), 0
        masks = np.split(kept, np.cumsum([block.rows for block in self._blocks])[:-1]) if self._blocks else []
        for block, mask in zip(list(self._blocks), masks, strict=True):
            stop = start + int(mask.sum())
            if not mask.any():
                self._blocks.remove(block)
                drop([block])
            elif not mask.all():
                block.clear()
                for low in range(start, stop, self._piece_rows):
                    block.add(codes[low : min(low + self._piece_rows, stop)])
            start = stop

    def _settled(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return exact scores [k] and rows [k], best first; None where the devices' sums do not tell which rows they are.

        The query is scaled by a power of two and rounded to half precision, which FAISS would do; the products are summed in
        single precision. By Cauchy and Schwarz the score of a row x is off by at most (|q - half(q)| + d u |half(q)|) |x|. Rows
        left out are therefore no better than the worst that was listed plus so much. If k listed rows are, they are the best.

        Raises:
            RuntimeError: the devices' scores are not those of the rows.
        """
        wide = query.astype(np.float64)
        scale = int(np.frexp(np.abs(wide).max())[1])
        scaled = np.ldexp(wide, -scale)
        asked = scaled.astype(np.float16).astype(np.float32)
        loss = float(np.linalg.norm(scaled - asked)) + self._width * 2.0**-22 * float(np.linalg.norm(asked))
        limit = 2 * k + _EXTRA
        listed, hidden = self._listed(asked, loss, limit)
        order = np.argsort(-listed.scores, kind="stable")
        hidden = max(hidden, float((listed.scores + listed.slack)[order[limit:]].max(initial=-np.inf)))
        kept = order[:limit]
        scores, rows, slack = listed.scores[kept], listed.rows[kept], listed.slack[kept]
        codes = self._codes()
        parts = [codes[rows[low : low + _EXACT]].astype(np.float64) @ scaled for low in range(0, len(rows), _EXACT)]
        exact = np.concatenate(parts)
        if not (np.abs(exact - scores) <= slack).all():
            raise RuntimeError("its scores are not those of the rows")
        best = np.lexsort((rows, -exact))[:k]
        if len(best) < k or exact[best[-1]] < hidden:
            self.unsettled += 1
            return None
        return np.ldexp(exact[best], scale).astype(np.float32), rows[best]

    def _listed(self, asked: NDArray[np.float32], loss: float, limit: int) -> tuple[_Listed, float]:
        """Return the best rows of every block as its device ranks them, and a bound of the exact scores of all others.

        Args:
            asked: [d] the query, which half precision holds.
            loss: how far a score may be off, for a row of norm 1.
            limit: how many rows are wanted of a block, unless it has fewer or FAISS selects fewer.

        Raises:
            RuntimeError: a device lists a row twice, or no numbers.
        """
        blocks = list(self._blocks)
        devices = list({block.device: None for block in blocks})

        def ask(device: Device) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
            return [block.search(asked, limit) for block in blocks if block.device is device]

        if len(devices) == 1:
            answers = [ask(devices[0])]
        else:
            with ThreadPoolExecutor(len(devices)) as pool:
                answers = list(pool.map(ask, devices))
        queues = {device: iter(answer) for device, answer in zip(devices, answers, strict=True)}
        start, hidden, made = 0, float("-inf"), []
        for block in blocks:
            scores, rows = next(queues[block.device])
            slack = loss * block.longest
            if len(rows) < block.rows:
                hidden = max(hidden, float(scores.min()) + slack)
            made.append(_Listed(scores.astype(np.float64), rows + start, np.full(len(rows), slack)))
            start += block.rows
        if start != len(self._codes()):
            raise RuntimeError("it holds another number of rows")
        listed = _Listed(*(np.concatenate(parts) for parts in zip(*made, strict=True)))
        if len(np.unique(listed.rows)) < len(listed.rows) or not np.isfinite(listed.scores).all():
            raise RuntimeError("it lists rows twice, or without a score")
        return listed, hidden


class _Listed(NamedTuple):
    """Rows as devices have ranked them."""

    scores: NDArray[np.float64]  # [n] the devices' scores
    rows: NDArray[np.int64]  # [n]
    slack: NDArray[np.float64]  # [n] how far each score may be off
