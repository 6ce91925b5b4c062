"""An account of what a process keeps in memory and can make again. Knows sizes and when each was used; not what it is."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .locks import ThreadLock


class _Entry(NamedTuple):
    kind: str
    bytes: int
    let_go: Callable[[], None]


class Hot:
    """What is kept in memory, of all kinds together: the least recently used goes first. Safe to use from several threads.

    Args:
        limit: bytes, in memory and on devices together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._used: Collection[Hashable] = ()
        self._dropped = deque[Hashable]()
        self._lock = ThreadLock()

    @property
    def bytes(self) -> int:
        """The bytes that are kept."""
        return sum(self.by_kind().values())

    def by_kind(self) -> dict[str, int]:
        """Return the bytes of each kind."""
        taken: Counter[str] = Counter()
        with self._alone():
            for entry in self._entries.values():
                taken[entry.kind] += entry.bytes
        return dict(taken)

    def keep(self, kind: str, key: Hashable, size: int, let_go: Callable[[], None]) -> None:
        """Note what is kept, or how large it is now, as the latest used.

        Args:
            kind: of what is kept, for people.
            key: its own.
            size: its bytes.
            let_go: frees it. It is called outside of the account's lock.
        """
        with self._alone():
            self._entries[key] = _Entry(kind, size, let_go)
            self._entries.move_to_end(key)

    def touch(self, key: Hashable) -> None:
        """Note that something is used, if it is still kept."""
        with self._alone():
            if key in self._entries:
                self._entries.move_to_end(key)

    def drop(self, key: Hashable) -> None:
        """Note that something is kept no longer. Never waits: the garbage collector may call it anywhere."""
        self._dropped.append(key)

    def free(self, group: Hashable) -> None:
        """Let go of everything whose key is a pair that begins with `group`, however lately it was used."""
        with self._alone():
            keys = [key for key in self._entries if isinstance(key, tuple) and key[0] == group]
            going = [self._entries.pop(key) for key in keys]
        for entry in going:
            entry.let_go()

    def using(self, keys: Collection[Hashable]) -> None:
        """Note what stays, however large it is, until this is called again: what the latest call works with."""
        self._used = keys

    def settle(self) -> None:
        """Let go of the least recently used until the rest fits. Hold no lock, and no view of rows: it may be saved first."""
        with self._alone():
            total, going = sum(entry.bytes for entry in self._entries.values()), []
            for key in [key for key in self._entries if key not in self._used]:
                if total <= self.limit:
                    break
                going.append(self._entries.pop(key))
                total -= going[-1].bytes
        for entry in going:
            entry.let_go()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one thread in, which first takes out what is kept no longer."""
        with self._lock.held():
            while self._dropped:
                self._entries.pop(self._dropped.popleft(), None)
            yield
