"""Answers that are owed: noted in their session once a call is taken, until they are stored or given up.

Notes say who owes an answer and how it stands; nothing that was said belongs there. Whoever owes one is present in the store:
if that process ends, others see it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import HMTError, SessionBusyError
from ..store.backend import Capability
from ..store.rows import OWED, CollectionRow

if TYPE_CHECKING:
    from ..store.transaction import Transaction
    from .storage import Storage
    from .stored_session import StoredSession

Note = Mapping[str, Any]  # with "status" and "owner"
PENDING = ("queued", "in_progress")
_MOST = 100  # notes of one session; the oldest go first, and those of answers that have ended before others
_LOOKS, _COMES_BACK = 1.0, 3  # seconds between looks whether a lock is still held, and how many of them are waited for it


def note(session: StoredSession, name: str, told: Note) -> None:
    """Note that an answer is owed.

    Args:
        session: that it will be added to.
        name: of the answer.
        told: with "status", one of `PENDING`, and "owner", the name of a `Presence`.
    """

    def added(notes: Mapping[str, Note]) -> Mapping[str, Note]:
        kept = sorted(notes.items(), key=lambda item: (item[1]["status"] in PENDING, int(item[1]["number"])))[1 - _MOST :]
        number = 1 + max((int(other["number"]) for _, other in kept), default=-1)
        return {**dict(kept), name: {**told, "number": number}}

    _write(session, added)


def noted(session: StoredSession, name: str) -> Note | None:
    """Return the note of an answer; None: there is none, or the answer is stored."""
    with session._database.reading() as db:
        found: Note | None = _notes(session._row(db)).get(name)
    return found


def is_owing(session: StoredSession) -> bool:
    """Return whether there is a note of any answer."""
    with session._database.reading() as db:
        return bool(_notes(session._row(db)))


def change(session: StoredSession, name: str, **changes: Any) -> bool:
    """Change the note of an answer that is pending. Returns whether it is.

    Args:
        session: is owed the answer.
        name: of the note.
        **changes: fields of the note, and their new values.
    """
    pending = False

    def changed(notes: Mapping[str, Note]) -> Mapping[str, Note]:
        nonlocal pending
        pending = name in notes and notes[name]["status"] in PENDING
        return {**notes, name: {**notes[name], **changes}} if pending else notes

    _write(session, changed)
    return pending


def drop(session: StoredSession, name: str) -> bool:
    """Remove the note of an answer, which is not stored then. Returns whether there was one."""
    found = False

    def dropped(notes: Mapping[str, Note]) -> Mapping[str, Note]:
        nonlocal found
        found = name in notes
        return {other: told for other, told in notes.items() if other != name}

    _write(session, dropped)
    return found


def settled(row: CollectionRow, name: str) -> CollectionRow:
    """Return the row of a session in the transaction that stores an answer: without its note.

    Raises:
        SessionBusyError: the answer was given up meanwhile.
    """
    notes = dict(_notes(row))
    if notes.pop(name, {"status": None})["status"] not in PENDING:
        raise SessionBusyError("the answer was cancelled or deleted while it was written, so it was not stored.")
    return _with(row, notes)


def _write(session: StoredSession, work: Callable[[Mapping[str, Note]], Mapping[str, Note]]) -> None:
    def written(db: Transaction) -> None:
        row = session._row(db)
        if (notes := work(_notes(row))) != _notes(row):
            db.update_collection(_with(row, notes))

    session._database.write(written)


def _notes(row: CollectionRow) -> Mapping[str, Note]:
    found: Mapping[str, Note] = row.settings.get(OWED, {})
    return found


def _with(row: CollectionRow, notes: Mapping[str, Note]) -> CollectionRow:
    others = {name: value for name, value in row.settings.items() if name != OWED}
    return replace(row, settings={**others, OWED: notes} if notes else others)


class Presence:
    """A process in a store: a lock that a thread holds, and that is free when the process ends, however it does.

    A server that has lost the connection has lost the lock, too: it is taken again as soon as there is a server.

    Args:
        store: in which others look for it.
    """

    def __init__(self, store: Storage) -> None:
        self.name = secrets.token_hex(8)
        self._store, self._mutex = store, threading.Lock()
        self._thread: threading.Thread | None = None
        self._held, self._leaving = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def begin(self) -> str:
        """Be present, from the first call on. Returns the name.

        Raises:
            SessionBusyError, StoreError: the lock cannot be had.
        """
        with self._mutex:
            if self._thread is None:
                self._held.clear()
                self._thread = threading.Thread(target=self._hold, name="hmt-presence", daemon=True)
                self._thread.start()
                self._held.wait()
            if self._error is not None:
                error, self._error, self._thread = self._error, None, None
                raise error
        return self.name

    def end(self) -> None:
        """Be gone."""
        self._leaving.set()
        if self._thread is not None:
            self._thread.join()

    def _hold(self) -> None:
        while not self._leaving.is_set():
            try:
                with self._store.database.lock(_lock(self.name)):
                    self._held.set()
                    self._stay()
            except BaseException as error:
                if not self._held.is_set() or not isinstance(error, HMTError):
                    self._error = error
                    self._held.set()
                    return
                self._leaving.wait(_LOOKS)
        self._store.database.forget_lock(_lock(self.name))

    def _stay(self) -> None:
        """Hold the lock until the end; on a server, find out if it is lost, by a lock of the same connection."""
        loses = Capability.MANY_HOSTS in self._store.capabilities
        while not self._leaving.wait(_LOOKS if loses else None):
            with self._store.database.lock(_lock(f"{self.name}-held")):
                pass


def is_present(store: Storage, name: str) -> bool:
    """Return whether the process of a `Presence` is there; one whose connection is lost is given time to come back."""
    if not _is_free(store, name):
        return True
    if Capability.MANY_HOSTS not in store.capabilities:
        return False
    time.sleep(_COMES_BACK * _LOOKS)
    return not _is_free(store, name)


def _is_free(store: Storage, name: str) -> bool:
    try:
        with store.database.lock(_lock(name), timeout=0):
            store.database.forget_lock(_lock(name))
    except SessionBusyError:
        return False
    return True


def _lock(name: str) -> str:
    return f"server-{name}"
