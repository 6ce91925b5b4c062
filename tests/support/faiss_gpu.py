"""A stand-in for the GPU calls of FAISS, in numpy, with as many devices as wanted.

Stricter than FAISS: what FAISS converts silently, or what would end the process, is an error and is written down in `broken`.
Everything else is asked of the FAISS that is installed. Scores are rounded as on a GPU, and then shaken as far as summing in
another order may do it.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

INNER_PRODUCT, FLOAT32, LARGEST_K = 0, 0, 2048

# As `inspect.signature` gives them for faiss-gpu 1.15.1. FAISS tells the constructors of an index apart by their arguments.
SIGNATURES = {
    "get_num_gpus": "()",
    "StandardGpuResources.__init__": "(self)",
    "StandardGpuResources.setTempMemory": "(self, size)",
    "StandardGpuResources.setPinnedMemory": "(self, size)",
    "GpuIndexFlatConfig.__init__": "(self)",
    "GpuIndexFlat.__init__": "(self, *args)",
    "GpuIndexFlat.add": "(self, x, numeric_type=0)",
    "GpuIndexFlat.search": "(self, x, k, *, params=None, D=None, I=None, numeric_type=0)",
    "GpuIndexFlat.reset": "(self)",
}
FIELDS = {
    "StandardGpuResources": {"thisown"},
    "GpuIndexFlatConfig": {"useFloat16", "use_cuvs", "device"},
    "GpuIndexFlat": {"thisown", "ntotal", "d"},
}


def signatures(faiss: Any) -> dict[str, str]:
    """The signatures of a FAISS module that the table has."""
    found = {}
    for name in SIGNATURES:
        called = faiss
        for part in name.split("."):
            called = getattr(called, part)
        signature = inspect.signature(called)
        plain = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
        if inspect.ismethod(called) or "." not in name:
            plain = [one for one in plain if one.name != "self"]
        found[name] = str(inspect.Signature(plain))
    return found


class FakeFaiss:
    """The module, with `devices` GPUs of `memory` bytes each."""

    METRIC_INNER_PRODUCT, Float32 = INNER_PRODUCT, FLOAT32

    def __init__(self, cpu: Any, devices: int = 1, memory: int = 1 << 34) -> None:
        self._cpu, self._devices, self.memory, self.pid = cpu, devices, memory, os.getpid()
        self.used, self.scratch = [0] * devices, [0] * devices  # bytes; the second are among the first
        self.uploaded = [0] * devices  # rows
        self.largest_upload = 0  # bytes of one call
        self.calls: list[str] = []
        self.broken: list[str] = []  # what FAISS would have answered with the end of the process, or with nonsense
        self.failing: dict[str, int] = {}  # call: after how many of them it fails, from then on
        self.pause = 0.0  # seconds that every call takes longer
        self.freed: Callable[[int], None] = lambda device: None  # called when an index goes
        self.spoil: Callable[[Any, Any], Any] = lambda scores, rows: (scores, rows)  # what a search returns
        self.StandardGpuResources = _bound(_Resources, self)
        self.GpuIndexFlat = _bound(_Flat, self)
        self.GpuIndexFlatConfig = _Config

    def __getattr__(self, name: str) -> Any:
        if "Gpu" in name or "gpu" in name:
            raise AttributeError(f"this stand-in has no {name}")
        return getattr(self._cpu, name)

    def get_num_gpus(self) -> int:
        self.check(os.getpid() == self.pid, "CUDA is used after a fork")
        return self._devices

    def mem_get_info(self, device: int) -> tuple[int, int]:
        """As torch has it."""
        self.check(os.getpid() == self.pid, "CUDA is used after a fork")
        return self.memory - self.used[device], self.memory

    def check(self, holds: bool, otherwise: str) -> None:
        """Note what must never happen, because whoever calls may catch the error."""
        if not holds:
            self.broken.append(otherwise)
            if os.getpid() != self.pid:
                os._exit(134)  # as if it had aborted
            raise RuntimeError(otherwise)

    def take(self, device: int, size: int) -> None:
        """Allocate bytes of a device."""
        if self.used[device] + size > self.memory:
            raise RuntimeError(f"StandardGpuResources: alloc fail size {size} (cudaMalloc error out of memory [2])")
        self.used[device] += size

    def count(self, call: str) -> None:
        """Note a call, and fail if it is its turn."""
        self.calls.append(call)
        if self.failing.get(call, 1 << 60) < self.calls.count(call):
            raise RuntimeError(f"StandardGpuResources: alloc fail in {call} (cudaMalloc error out of memory [2])")


def _bound(kind: type[Any], faiss: FakeFaiss) -> type[Any]:
    """A class of this module, made for one stand-in."""
    return type(kind.__name__.strip("_"), (kind,), {"faiss": faiss})


class _Resources:
    faiss: FakeFaiss

    def __init__(self) -> None:
        self.thisown = True
        self.scratch, self.pinned = 1536 << 20, 256 << 20  # as FAISS has it
        self.begun: set[int] = set()  # devices
        self.user: int | None = None  # the thread that is inside a call

    def setTempMemory(self, size: int) -> None:
        self.faiss.check(type(size) is int and size >= 0 and not self.begun, "setTempMemory takes a number of bytes, first")
        self.scratch = size

    def setPinnedMemory(self, size: int) -> None:
        self.faiss.check(type(size) is int and size >= 0 and not self.begun, "setPinnedMemory takes a number of bytes, first")
        self.pinned = size

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let a call run, if no other thread is inside one."""
        self.faiss.check(os.getpid() == self.faiss.pid, "CUDA is used after a fork")
        self.faiss.check(self.user in (None, threading.get_ident()), "two threads use the same resources at once")
        self.user = threading.get_ident()
        try:
            time.sleep(self.faiss.pause)
            yield
        finally:
            self.user = None

    def __del__(self) -> None:
        if self.thisown:
            self.faiss.check(os.getpid() == self.faiss.pid, "resources are freed after a fork")
            for device in self.begun:
                self.faiss.used[device] -= self.scratch
                self.faiss.scratch[device] -= self.scratch


class _Config:
    __slots__ = ("_values",)

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {"useFloat16": False, "use_cuvs": False, "device": 0})

    def __getattr__(self, name: str) -> Any:
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._values or type(value) is not type(self._values[name]):
            raise TypeError(f"in method 'GpuIndexFlatConfig_{name}_set', argument 2")
        self._values[name] = value


class _Flat:
    faiss: FakeFaiss

    def __init__(self, *args: Any) -> None:
        self.thisown, self._resources = False, None
        resources, width, metric, config = args
        kinds = (isinstance(resources, _Resources), type(width) is int, type(metric) is int, isinstance(config, _Config))
        if not all(kinds):
            raise TypeError("Wrong number or type of arguments for overloaded function 'new_GpuIndexFlat'.")
        self.faiss.check(config.device < self.faiss._devices, "Invalid GPU device")
        self.faiss.check(not config.use_cuvs, "cuVS has not been compiled into the current version so it cannot be used.")
        self.faiss.check(metric == INNER_PRODUCT and config.useFloat16, "this stand-in knows inner products of halves only")
        self._resources, self._device, self.d = resources, config.device, width
        with resources.inside():
            if self._device not in resources.begun:
                free = self.faiss.mem_get_info(self._device)[0]
                self.faiss.check(free >= resources.scratch + (64 << 20), "cuBLAS finds no memory and ends the process")
                self.faiss.check(not resources.pinned, "it pins memory of the host")
                self.faiss.take(self._device, resources.scratch)
                self.faiss.scratch[self._device] += resources.scratch
                resources.begun.add(self._device)
        self.thisown, self._rows = True, np.zeros((0, width), np.float16)

    @property
    def ntotal(self) -> int:
        return len(self._rows)

    def _held(self, rows: int) -> int:
        return rows * (2 * self.d + 4)

    def add(self, x: Any, numeric_type: int = 0) -> None:
        self._check(x)
        self.faiss.check(numeric_type == FLOAT32, "a flat index takes single precision only")
        with self._resources.inside():
            self.faiss.count("add")
            before, grown = self._held(self.ntotal), self._held(self.ntotal + len(x))
            overflow = max(0, 6 * x.size - self._resources.scratch)
            self.faiss.take(self._device, grown + overflow)  # the old rows stay until they are copied
            self.faiss.used[self._device] -= before + overflow
            halves = x.astype(np.float16)
            self.faiss.check(np.array_equal(halves, x), "rows lose precision on the device")
            self._rows = np.concatenate([self._rows, halves])
            self.faiss.uploaded[self._device] += len(x)
            self.faiss.largest_upload = max(self.faiss.largest_upload, x.nbytes)

    def search(self, x: Any, k: int, *, params: Any = None, D: Any = None, I: Any = None, numeric_type: int = 0) -> Any:  # noqa: E741
        self._check(x)
        self.faiss.check(type(k) is int and 0 < k <= LARGEST_K, f"GPU index only supports selection up to {LARGEST_K} ({k})")
        self.faiss.check((params, D, I, numeric_type) == (None, None, None, FLOAT32), "this stand-in knows no such argument")
        with self._resources.inside():
            self.faiss.count("search")
            with np.errstate(over="ignore"):
                query = x[0].astype(np.float16).astype(np.float32)
            rows = self._rows.astype(np.float32)
            scores = rows @ query
            noise = np.random.default_rng(len(self.faiss.calls)).uniform(-1, 1, len(rows))
            shaken = noise * self.d * 2.0**-24 * np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
            scores = (scores + shaken).astype(np.float32)
            order = np.argsort(-scores, kind="stable")[:k]
            missing = k - len(order)
            found = np.append(scores[order], np.full(missing, -np.finfo(np.float32).max, np.float32))
            return self.faiss.spoil(found[None], np.append(order, np.full(missing, -1))[None].astype(np.int64))

    def reset(self) -> None:
        with self._resources.inside():
            self.faiss.used[self._device] -= self._held(self.ntotal)
            self._rows = self._rows[:0]

    def _check(self, x: Any) -> None:
        whole = isinstance(x, np.ndarray) and x.dtype == np.float32 and x.ndim == 2 and x.shape[1] == self.d
        self.faiss.check(whole and x.flags.c_contiguous and len(x) > 0, "rows must be a matrix in single precision")

    def __del__(self) -> None:
        if not self.thisown:
            return
        self.faiss.freed(self._device)
        with self._resources.inside():
            self.faiss.used[self._device] -= self._held(self.ntotal)
