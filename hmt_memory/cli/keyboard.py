"""The keyboard while the model works: text typed meanwhile does not show within the answer and waits for the next prompt."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_NO_TERMINAL = (ImportError, OSError, ValueError)  # another system, no terminal, or a stream that is no file


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """Hide what is typed inside. The terminal is as before afterwards, whatever happens."""
    with contextlib.ExitStack() as after:
        with contextlib.suppress(*_NO_TERMINAL):
            _switch_off(after)
        yield


def _switch_off(after: contextlib.ExitStack) -> None:
    """Switch the echo of standard input off, and on again `after`."""
    import termios

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    with contextlib.suppress(termios.error):
        after.callback(termios.tcsetattr, keyboard, termios.TCSADRAIN, before)
        _end_orderly(after)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)


def _end_orderly(after: contextlib.ExitStack) -> None:
    """Let a signal that would end the process at once end it by an exception."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            after.callback(signal.signal, number, signal.SIG_DFL)
            signal.signal(number, _leave)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
