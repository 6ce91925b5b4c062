"""A value that each thread has for itself. Knows no store."""

from __future__ import annotations

import os
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """A value of each thread, which a forked process does not take over: what it stands for goes on being its parent's."""

    def __init__(self) -> None:
        self._values = threading.local()

    def get(self) -> T | None:
        """Return this thread's value; None: it has none."""
        pid, value = getattr(self._values, "set", (0, None))
        return value if pid == os.getpid() else None

    def set(self, value: T | None) -> None:
        """Give this thread a value, or none."""
        self._values.set = (os.getpid(), value)
