"""Keys and values of what views begin with, kept between answers: only what has changed goes through the model (extension).

A view begins with what does not change from turn to turn. What is kept is compared with a view's input embeddings, so a hit is
never wrong, whoever kept it; name spaces are there so that nobody can tell from the time what others have said. Knows a
backbone; no view and no memory.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..hot import Hot

if TYPE_CHECKING:
    from .backbone import Backbone


class Prefilled(NamedTuple):
    """A view that was read."""

    hidden: Tensor  # [1, d] the last state
    cache: Any  # behind the view; the caller's own
    known: int  # positions that were not read again


Prefill = Callable[["Backbone", Tensor, Tensor], Prefilled]  # as `ViewCache.prefill`, in one name space
_LIMIT = 256 << 20  # bytes of a cache of its own
_LEAST = 32  # shorter beginnings are not worth a copy
_PATIENCE = 30.0  # seconds that an answer waits for what is being read ahead of it
_UNCUTTABLE = (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)  # of families' caches


class _Entry(NamedTuple):
    namespace: Hashable
    version: Hashable  # of the weights
    embedded: Tensor  # [t, d] of what was read
    cache: Any
    bytes: int
    key: object  # its own in the account


class ViewCache:
    """What answers have kept, the least recently used first. Used by several threads.

    Args:
        hot: the account that bounds it, over all name spaces; None: one of its own.
    """

    def __init__(self, hot: Hot | None = None) -> None:
        self._hot = Hot(_LIMIT) if hot is None else hot
        self._entries: list[_Entry] = []
        self._reading: dict[tuple[int, Hashable], threading.Event] = {}  # what is read ahead, by process and name space
        self.cleared = 0  # how often; what was read from rows before the last time is not kept
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """The bytes that are kept."""
        return sum(entry.bytes for entry in self._entries)

    def of(self, namespace: Hashable, since: int | None = None) -> Prefill:
        """Return what reads the views of one name space; `since` as of `prefill`."""
        return partial(self.prefill, namespace=namespace, since=since)

    def prefill(
        self, backbone: Backbone, before: Tensor, behind: Tensor, namespace: Hashable, since: int | None = None
    ) -> Prefilled:
        """Read a view, but for what was kept of its beginning.

        Args:
            backbone: reads.
            before: [s, d] input embeddings that the view begins with, which are kept.
            behind: [t, d] those that follow.
            namespace: within which what was kept is used.
            since: `cleared` as it was before the rows of the view were read; None: as it is now.
        """
        if not len(behind) or not self._keeps(backbone, before):
            return read_whole(backbone, before, behind)
        if (reading := self._reading.get((os.getpid(), namespace))) is not None:
            reading.wait(_PATIENCE)  # the same is being read: twice at once would take as long
        count, cache = self._begun(backbone, before, namespace, since)
        return Prefilled(*backbone.advance(behind[None], cache), count)

    def prepare(self, backbone: Backbone, before: Tensor, namespace: Hashable, since: int | None = None) -> None:
        """Read what a view will begin with, ahead of the question.

        Args:
            backbone: reads.
            before: [s, d] input embeddings that the view begins with, which are kept.
            namespace: within which what was kept is used.
            since: `cleared` as it was before the rows of the view were read; None: as it is now.
        """
        if not self._keeps(backbone, before):
            return
        key, reading = (os.getpid(), namespace), threading.Event()
        self._reading[key] = reading
        try:
            self._begun(backbone, before, namespace, since)
        finally:
            reading.set()
            self._reading.pop(key, None)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            for entry in self._entries:
                self._hot.drop(entry.key)
            self._entries, self.cleared = [], self.cleared + 1

    def _keeps(self, backbone: Backbone, before: Tensor) -> bool:
        return self._hot.limit > 0 and len(before) >= _LEAST and bool(backbone.appends)

    def _begun(self, backbone: Backbone, before: Tensor, namespace: Hashable, since: int | None) -> tuple[int, Any]:
        """Read what a view begins with, and keep it. Returns how many positions were kept before, and a cache of all."""
        version, cleared = backbone.version, self.cleared if since is None else since
        count, cache = self._longest(namespace, version, before)
        if count < len(before):
            _, cache = backbone.extend(before[count:][None], cache)
            self._keep(_Entry(namespace, version, before.detach(), cache, 0, object()), cleared)
            self._hot.settle()
        return count, cache

    def _longest(self, namespace: Hashable, version: Hashable, embedded: Tensor) -> tuple[int, Any]:
        """Return how many embeddings of the beginning were kept, and a cache of them for the caller; 0 and None without any."""
        with self._lock:
            known = [entry for entry in self._entries if (entry.namespace, entry.version) == (namespace, version)]
            counts = [_common(entry.embedded, embedded) for entry in known]
            for count, entry in sorted(zip(counts, known, strict=True), key=lambda pair: -pair[0]):
                if count < _LEAST:
                    break
                others = [other for other in self._entries if other is not entry]
                if count == len(entry.embedded) < len(embedded):  # what continues it will be kept instead
                    self._entries = others
                    self._hot.drop(entry.key)
                    return count, entry.cache
                cache = _cut(entry.cache, len(entry.embedded) - count)
                if cache is not None:
                    self._entries = [*others, entry]
                    self._hot.touch(entry.key)
                    return count, cache
        return 0, None

    def _keep(self, entry: _Entry, cleared: int) -> None:
        """Keep a copy, instead of those that it continues; unless all was let go of since, which it may have been part of."""
        entry = entry._replace(cache=copy.deepcopy(entry.cache))
        entry = entry._replace(bytes=entry.embedded.nbytes + sum(_bytes(entry.cache)))
        with self._lock:
            if cleared != self.cleared:
                return
            continued = {other.key for other in self._entries if _continues(entry, other)}
            self._entries = [other for other in self._entries if other.key not in continued]
            for key in continued:
                self._hot.drop(key)
            if entry.bytes <= self._hot.limit:
                self._entries.append(entry)
                self._hot.keep("views", entry.key, entry.bytes, partial(self._let_go, entry.key))

    def _let_go(self, key: object) -> None:
        with self._lock:
            self._entries = [entry for entry in self._entries if entry.key is not key]


def read_whole(backbone: Backbone, before: Tensor, behind: Tensor) -> Prefilled:
    """Read a view without anything kept, as `ViewCache.prefill` does.

    Args:
        backbone: reads.
        before: [s, d] input embeddings that the view begins with.
        behind: [t, d] those that follow.
    """
    return Prefilled(*backbone.advance(torch.cat([before, behind])[None]), 0)


def _common(one: Tensor, other: Tensor) -> int:
    """Return how many rows two tensors begin with in common."""
    length = min(len(one), len(other))
    if one.shape[1:] != other.shape[1:] or one.device != other.device:
        return 0
    alike = (one[:length] == other[:length]).all(dim=-1)
    return length if bool(alike.all()) else int((~alike).to(torch.uint8).argmax())


def _continues(entry: _Entry, other: _Entry) -> bool:
    same_weights = entry.version == other.version
    return entry.namespace == other.namespace and (
        not same_weights or _common(entry.embedded, other.embedded) == len(other.embedded)
    )


def _cut(cache: Any, removed: int) -> Any:
    """Return a copy of a cache without its last positions; None where the family's cannot be cut."""
    own = copy.deepcopy(cache)
    try:
        if removed:
            own.crop(-removed)
    except _UNCUTTABLE:  # state spaces have no positions, windows that have moved on lack the first
        return None
    return own


def _bytes(value: Any, depth: int = 4) -> Iterator[int]:
    """Yield the bytes of all tensors in a cache."""
    if isinstance(size := getattr(value, "nbytes", None), int):
        yield size
    elif depth and isinstance(value, (list, tuple)):
        for part in value:
            yield from _bytes(part, depth - 1)
    elif depth and hasattr(value, "__dict__"):
        for part in vars(value).values():
            yield from _bytes(part, depth - 1)
