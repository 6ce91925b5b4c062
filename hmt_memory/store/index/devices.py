"""What this process holds on GPUs: blocks of rows in FAISS's flat index, and its resources, one thread at a time.

Knows the FAISS calls and what they cost in memory, and nothing of what is searched for. A forked process leaves GPUs alone.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .base import Halves

_T = TypeVar("_T")
LARGEST_K = 2048  # of FAISS's selection on a GPU
_SCRATCH = 64 << 20  # bytes that FAISS keeps on each device to work in; its default is 1.5 GiB
SPARE = 512 << 20  # bytes left free on a device: where cuBLAS finds none it ends the process, and the model needs some


def usable(faiss: Any) -> bool:
    """Return whether this is a GPU build of FAISS, there is a GPU, and this process may use it.

    torch is asked first: FAISS ends the process where CUDA was used before a fork.
    """
    if not hasattr(faiss, "StandardGpuResources") or process.forked:
        return False
    import torch

    if getattr(torch.cuda, "_is_in_bad_fork", bool)() or not torch.cuda.is_available():
        return False
    process.touch()
    return int(faiss.get_num_gpus()) > 0


class Block:
    """Consecutive rows on one device."""

    def __init__(self, device: Device, width: int) -> None:
        self.device, self._width = device, width
        self.index: Any = None
        self.clear()

    def clear(self) -> None:
        """Free the rows."""
        self.rows, self.longest = 0, 0.0  # the longest is a bound of the rows' norms
        if self.index is not None:
            self.device.do(lambda: self.index.reset())

    def has_room(self, rows: int) -> bool:
        """Return whether the device has room for so many rows more, while those there are copied."""
        return self.device.free() >= on_devices(self.rows + rows, self._width) + 6 * self._width * rows + SPARE

    def add(self, rows: Halves) -> None:
        """Upload rows [n, d]."""
        wide = rows.astype(np.float32)
        longest = float(np.sqrt(np.einsum("ij,ij->i", wide, wide).max())) * 1.001  # the rest is for its own rounding

        def upload() -> None:
            if self.index is None:
                self.index = self.device.flat(self._width)
            self.index.add(wide)
            self.device.warm_up(self.index, self._width)

        self.device.do(upload)
        self.rows, self.longest = self.rows + len(rows), max(self.longest, longest)

    def search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return scores and rows of the best `k`, or as many as there are or FAISS selects; rows count from the first here."""

        def ask() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            if self.index is None:
                raise RuntimeError("another thread has given up the GPU")
            scores, rows = self.index.search(query[None], min(k, self.rows, LARGEST_K))
            return scores[0], rows[0]

        return self.device.do(ask)


class Device:
    """FAISS's resources of one GPU, shared by all searches of the process, one thread at a time."""

    def __init__(self, faiss: Any, number: int) -> None:
        self.number, self._faiss = number, faiss
        self._resources = process.owned(faiss.StandardGpuResources())
        self._resources.setTempMemory(_SCRATCH)
        self._resources.setPinnedMemory(0)  # else it takes 256 MiB of the host
        self._mutex, self._dropped = threading.Lock(), deque[Any]()
        self._warm = False

    def do(self, work: Callable[[], _T]) -> _T:
        """Do something while no other thread uses the device, and free what was dropped, which changes the resources too.

        Raises:
            RuntimeError: the work failed. An error of FAISS would keep alive, in its traceback, an index to be freed here.
        """
        try:
            with self._mutex:
                self._dropped.clear()
                try:
                    return work()
                except Exception as error:
                    reason = str(error) or type(error).__name__
        finally:
            self._free()
        raise RuntimeError(reason)

    def drop(self, block: Block) -> None:
        """Free a block's index as soon as no thread uses the device. Never waits: the garbage collector calls it anywhere."""
        self._dropped.append(block.index)
        block.index = None
        self._free()

    def _free(self) -> None:
        """Free what was dropped, unless a thread uses the device, which does it afterwards."""
        while self._dropped and self._mutex.acquire(blocking=False):
            self._dropped.clear()
            self._mutex.release()

    def flat(self, width: int) -> Any:
        """Make an empty index. The caller is alone."""
        config = self._faiss.GpuIndexFlatConfig()
        config.useFloat16, config.device, config.use_cuvs = True, self.number, False
        return process.owned(self._faiss.GpuIndexFlat(self._resources, width, self._faiss.METRIC_INNER_PRODUCT, config))

    def warm_up(self, index: Any, width: int) -> None:
        """Search once, so that cuBLAS loads what it needs while there is room: it ends the process where there is none."""
        if not self._warm:
            index.search(np.zeros((1, width), np.float32), 1)
            self._warm = True

    def free(self) -> int:
        """Return the free bytes of the device, without those that FAISS takes on first use."""
        import torch

        return int(torch.cuda.mem_get_info(self.number)[0]) - (0 if self._warm else _SCRATCH)


class _Process:
    """What this process has on GPUs."""

    def __init__(self) -> None:
        self.forked = False  # after its parent has used a GPU
        self._touched, self._mutex = False, threading.Lock()
        self._devices: dict[int, Device] = {}
        self._owned = weakref.WeakValueDictionary[int, Any]()  # what frees memory of a GPU as it goes

    def touch(self) -> None:
        """Note that CUDA is used, which a fork does not survive. At the end of the process the driver frees everything."""
        with self._mutex:
            if not self._touched:
                self._touched = True
                atexit.register(self._disown)
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=self._abandon)

    def device(self, faiss: Any, number: int) -> Device:
        """Return a device, which is made on first use."""
        self.touch()
        with self._mutex:
            if number not in self._devices:
                self._devices[number] = Device(faiss, number)
            return self._devices[number]

    def owned(self, made: Any) -> Any:
        """Return what was made, and remember it."""
        self._owned[id(made)] = made
        return made

    def _disown(self) -> None:
        for reference in self._owned.valuerefs():
            made = reference()
            if made is not None:
                made.thisown = False  # SWIG then frees nothing

    def _abandon(self) -> None:
        self._disown()
        self.forked, self._devices, self._mutex = True, {}, threading.Lock()


process = _Process()


def drop(blocks: list[Block]) -> None:
    """Free blocks, and empty the list of them."""
    for block in blocks:
        block.device.drop(block)
    blocks.clear()


def on_devices(rows: int, width: int) -> int:
    """Return the bytes of rows on a device: two for each number, and FAISS keeps the norm of each row."""
    return rows * (2 * width + 4)
