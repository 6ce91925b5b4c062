"""Work that an answer leaves behind: done before its call returns, or by a thread, so that nobody waits for it.

Knows calls; no session. What it does not come to is no loss: whoever needs it does it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("hmt_memory")


class Behind:
    """Does work, in the order in which it comes. Safe to use from several threads; a forked process has a thread of its own.

    Args:
        threaded: whether one thread does it; otherwise the caller does.
    """

    def __init__(self, *, threaded: bool) -> None:
        self.threaded = threaded
        self._thread = _thread_of_this_process()
        self.closing = False  # whoever works looks at it now and then

    def do(self, name: str, work: Callable[[], None]) -> None:
        """Do a piece of work, now or soon.

        Args:
            name: what it is for, should it fail in the thread, which logs that.
            work: what to do.
        """
        if not self.threaded:
            work()
            return
        process, thread = self._thread
        if process != os.getpid():
            self._thread = _, thread = _thread_of_this_process()
        with contextlib.suppress(RuntimeError):  # the store is being closed, or the process ends
            thread.submit(_logged, name, work)

    def close(self) -> None:
        """Wait for the work that has begun, which is told to come to an end; the rest is not done."""
        self.closing = True
        process, thread = self._thread
        if process == os.getpid():
            thread.shutdown(cancel_futures=True)


def _thread_of_this_process() -> tuple[int, ThreadPoolExecutor]:
    return os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="hmt-behind")  # starts with the first work


def _logged(name: str, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:
        log.warning("reading behind an answer in %s has failed; the next call tries again", name, exc_info=True)
