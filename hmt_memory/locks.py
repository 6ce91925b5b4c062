"""A lock between threads that survives a fork. Knows nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ThreadLock:
    """Lets one thread in at a time; a forked process has a lock of its own, because a thread of its parent may have held it."""

    def __init__(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let one thread in."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            yield
