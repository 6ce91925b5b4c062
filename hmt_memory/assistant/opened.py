"""Sessions kept ready for the next call, each with a log to compare a conversation with when it is sent again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..chat.message import SYSTEM_ROLES, system_texts
from .reconcile import Entry, HistoryMode, entry, reconcile

if TYPE_CHECKING:
    from ..hot import Hot
    from ..sessions.session import Session

_SESSION, _ENTRY = 4096, 256  # bytes that an open session takes beside its memory, and each message of its log


@dataclass
class _Log:
    """The content of a session, as far as it is compared, and its version."""

    version: tuple[int, int]
    messages: int = 0  # system messages included
    entries: list[Entry] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # ids of the same messages
    system: int = -1  # id of the last system message


class OpenSessions:
    """The sessions that an assistant has open; the least recently used are closed first. Safe to use from several threads.

    Args:
        opener: opens a session by its name.
        is_there: tells whether a session still has that name.
        hot: returns the account of memory that bounds them.
    """

    def __init__(
        self, opener: Callable[[str], Session], is_there: Callable[[str, Session], bool], hot: Callable[[], Hot]
    ) -> None:
        self._opener, self._is_there, self._hot = opener, is_there, hot
        self._opening = threading.RLock()  # what is opened may make the account close another
        self._open: OrderedDict[str, tuple[Session, _Log]] = OrderedDict()
        self._comparing: WeakValueDictionary[str, Any] = WeakValueDictionary()  # a lock for each session in use

    def get(self, name: str) -> Session:
        """Return the session of that name, made if there is none."""
        return self._opened(name)[0]

    def names(self) -> list[str]:
        """Return the names of the open sessions, the least recently used first."""
        return list(self._open)

    def _opened(self, name: str) -> tuple[Session, _Log]:
        """Return a session with its log."""
        with self._opening:
            known = self._open.get(name)
            if known is None or not self._is_there(name, known[0]):
                known = self._open[name] = (self._opener(name), _Log((-1, -1)))
            self._open.move_to_end(name)
            size = _SESSION + _ENTRY * len(known[1].entries)
            self._hot().keep("sessions", (id(self), name), size, partial(self._close, name))
            return known

    def _close(self, name: str) -> None:
        with self._opening:
            self._open.pop(name, None)

    @contextmanager
    def comparing(self, session: str) -> Iterator[None]:
        """Serialise compare-then-add for one session. Other sessions proceed."""
        with self._opening:
            lock = self._comparing.setdefault(session, threading.Lock())
        with lock:
            yield

    def news(
        self, session: Session, batch: Sequence[Mapping[str, Any]], history: HistoryMode
    ) -> tuple[list[Mapping[str, Any]], int | None]:
        """Return the messages of a call that are new to a session, and the id of the first message they replace.

        Call it inside `comparing`.

        Args:
            session: the session.
            batch: the messages of the call.
            history: how they are compared with the session's.
        """
        system = [message for message in batch if message["role"] in SYSTEM_ROLES]
        said = [message for message in batch if message["role"] not in SYSTEM_ROLES]
        log = self._log(session)
        plan = reconcile(log.entries, [entry(message) for message in said], history)
        replacing = next(iter(log.ids[plan.keep :]), None)
        stays = replacing is None or log.system < replacing
        if stays and "\n\n".join(system_texts(system)) == session.system():
            system = []  # in force already
        return [*system, *said[plan.new :]], replacing

    def _log(self, session: Session) -> _Log:
        """Bring the log of a session up to date; only messages since the last call are looked at."""
        version = session.version()
        log = self._opened(session.name)[1]
        if log.version[0] != version[0]:
            log.version, log.messages, log.system = (version[0], -1), 0, -1
            log.entries.clear()
            log.ids.clear()
        if log.version != version:
            for message in session.messages(log.messages):
                log.messages += 1
                if message.role in SYSTEM_ROLES:
                    log.system = message.id
                else:
                    log.entries.append(entry(message.to_dict()))
                    log.ids.append(message.id)
            log.version = version
        return log
