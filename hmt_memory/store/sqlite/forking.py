"""Forks: no connection is open at the moment when the process is forked, by whichever thread.

A forked process inherits SQLite's knowledge of locks that it does not hold: any connection to the same file, even a new one,
would read and write unprotected (https://www.sqlite.org/howtocorrupt.html, 2.6).
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ...errors import StoreError

_PATIENCE_SECONDS = 10.0  # how long a fork waits for the connections of other threads


class Pool(Protocol):
    """A set of connections, some of them idle."""

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        ...

    def begin_anew(self) -> None:
        """Go on in a forked process."""
        ...


class Gate:
    """The gate of every connection of the process. Threads pass it to use a connection; forks wait until none is in use."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        self._mine = threading.local()  # the number of connections that a thread uses
        self._changed, self._used, self._forks = threading.Condition(), 0, 0
        self._inherited = False  # whether the process was forked while a connection was open

    def add(self, pool: Pool) -> None:
        """Close the idle connections of a pool before a fork."""
        self._pools.add(pool)

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Use a connection inside. A thread that uses one already does not wait for a fork, which waits for the thread.

        Raises:
            StoreError: the process was forked by, or beside, a thread that used a connection.
        """
        if self._inherited:
            raise StoreError(
                "this process was forked while a store was being read or written, and SQLite cannot be used in it. Fork it at "
                "another moment, or start it anew: multiprocessing.get_context('spawn')."
            )
        mine = self._count()
        with self._changed:
            while self._forks and not mine:
                self._changed.wait()
            self._used += 1
        self._mine.count = mine + 1
        try:
            yield
        finally:
            self._mine.count = mine
            with self._changed:
                self._used -= 1
                self._changed.notify_all()

    def _count(self) -> int:
        return int(getattr(self._mine, "count", 0))

    def before_fork(self) -> None:
        """Wait until no other thread uses a connection, let none begin to, and close the idle ones."""
        self._changed.acquire()
        self._forks += 1
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._used > self._count() and (left := deadline - time.monotonic()) > 0:
            self._changed.wait(left)
        for pool in list(self._pools):
            pool.close_idle()

    def after_in_parent(self) -> None:
        """Let others use connections again."""
        self._forks -= 1
        self._changed.notify_all()
        self._changed.release()

    def after_in_child(self) -> None:
        """Start with nothing in use but the connections of this thread."""
        self._inherited = self._inherited or self._used > 0
        self._changed, self._used, self._forks = threading.Condition(), self._count(), 0
        for pool in list(self._pools):
            pool.begin_anew()


GATE = Gate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=GATE.before_fork, after_in_parent=GATE.after_in_parent, after_in_child=GATE.after_in_child)
