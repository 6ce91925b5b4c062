"""Work that an answer leaves behind: done before its call returns, or by a thread, so that nobody waits for it.

Knows calls; no session.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("hmt_memory")


class Behind:
    """Does work, in the order in which it comes. Safe to use from several threads, and in a forked process.

    Args:
        threaded: whether one thread does it; otherwise the caller does.
    """

    def __init__(self, *, threaded: bool) -> None:
        self._threaded = threaded
        self._begin()

    def _begin(self) -> None:
        """Begin with a thread of this process's, which starts with the first work."""
        self._process, self._thread = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="hmt-behind")

    def do(self, work: Callable[[], None]) -> None:
        """Do a piece of work, now or soon. What fails in the thread is logged: it is work that can be done again."""
        if not self._threaded:
            work()
            return
        if self._process != os.getpid():
            self._begin()
        self._thread.submit(_logged, work)

    def close(self) -> None:
        """Wait until all is done. What comes later is the caller's."""
        self._threaded = False
        if self._process == os.getpid():
            self._thread.shutdown()


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        log.warning("reading behind an answer has failed, and is tried again by the next call: %s", error)
