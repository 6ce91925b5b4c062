"""Responses as they are stored: found by their ids, shown, erased. Knows sessions; no route, no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.exceptions import HTTPException

from ..errors import HMTError, InputError, SessionNotFoundError
from ..sessions import owed
from ..sessions.names import is_aside
from .failures import NotFoundError
from .items import Stem, items_of, messages_of_call, record_of

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..retrieval.citations import Message
    from ..sessions.memory_store import MemoryStore
    from ..sessions.stored_session import StoredSession
    from .guard import Caller

_log = logging.getLogger(__name__)
STOPPED = {"code": "server_error", "message": "the server was stopped before the answer was finished. Ask again."}


class Found(NamedTuple):
    """A stored response."""

    id: str
    session: str  # as the store names it
    stem: Stem
    own: list[Message]  # the messages of its call; the last is the answer
    next: int | None  # id of the message behind the answer; None: the answer is the session's last

    @property
    def answer(self) -> Message:
        """The answer."""
        return self.own[-1]


class Owed(NamedTuple):
    """A response that is not stored: its answer is being written, or was given up."""

    id: str
    session: StoredSession
    note: Mapping[str, Any]

    @property
    def is_pending(self) -> bool:
        """Whether its answer is being written, or waits for its turn."""
        return self.note["status"] in owed.PENDING


def find(store: MemoryStore, caller: Caller, name: str) -> Found | Owed:
    """Return the response of an id.

    Args:
        store: holds it.
        caller: whose it has to be.
        name: its id.

    Raises:
        NotFoundError: there is none.
    """
    stem = Stem.of(name)
    session = None if stem is None else store.named("session", stem.number)
    if stem is not None and session is not None and caller.sees(session):
        with suppress(SessionNotFoundError):  # it was deleted meanwhile
            stored = store.session(session)
            note = _note(store, stored, name)  # first: what is stored has none
            if note is not None:
                return Owed(name, stored, note)
            own = messages_of_call(stored, stem)
            if own and record_of(own[-1]).get("id") == name:
                behind = stored.from_id(own[-1].id + 1, 1)
                return Found(name, session, stem, own, behind[0].id if behind else None)
    raise NotFoundError("response", name)


def _note(store: MemoryStore, session: StoredSession, name: str) -> Mapping[str, Any] | None:
    """Return what is noted of a response: that it failed, if whoever was to write it is gone."""
    note = owed.noted(session, name)
    if note is None or note["status"] not in owed.PENDING or owed.is_present(store, note["owner"]):
        return note
    owed.change(session, name, status="failed", error=STOPPED)
    return owed.noted(session, name)


def find_answered(store: MemoryStore, caller: Caller, name: str) -> Found:
    """Return the response of an id, from whose answer another one can go on.

    Args:
        store: holds it.
        caller: whose it has to be.
        name: its id.

    Raises:
        NotFoundError: there is none.
        HTTPException: its answer is not there yet.
        InputError: it will have none.
    """
    found = find(store, caller, name)
    if isinstance(found, Found):
        return found
    if found.is_pending:
        raise HTTPException(409, f"the response {name!r} is still being written. Try again when it is completed.")
    raise InputError(f"the response {name!r} has no answer to go on from: it is {found.note['status']}.")


def begun(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a response of which nothing is written yet."""
    empty: dict[str, Any] = {
        "status": "in_progress",
        "incomplete_details": None,
        "completed_at": None,
        "output": [],
        "usage": None,
    }
    return {**about, **empty}


def body_of(found: Found | Owed, caller: Caller, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the body of a response. What was recalled for it is not stored.

    Args:
        found: the response.
        caller: knows its session by a name of its own, if it is listed.
        about: what is known of one that is owed, besides what is noted.
    """
    hmt: dict[str, Any] = {"recalled": []}
    if isinstance(found, Found):
        named, ids = caller.shown(found.session), [message.id for message in found.own]
        whole = {**record_of(found.answer), "output": items_of(found.answer, found.stem.number)}
    else:
        named, ids = caller.shown(found.session.name), []
        whole = {**begun(about or found.note["about"]), "status": found.note["status"], "error": found.note["error"]}
    if named is not None:
        hmt |= {"session": named, "message_ids": ids}
        whole["conversation"] = {"id": named}
    return {**whole, "hmt": hmt}


def cancel(store: MemoryStore, caller: Caller, name: str) -> Found | Owed:
    """Give up a response that is written in the background; one that has ended stays as it is.

    Args:
        store: holds it.
        caller: whose it has to be.
        name: its id.

    Raises:
        NotFoundError: there is none.
        InputError: it is not one of the background.
    """
    found = find(store, caller, name)
    if isinstance(found, Found) and not record_of(found.answer).get("background"):
        raise InputError(f"the response {name!r} cannot be cancelled: it was not made with background=true.")
    if isinstance(found, Owed) and found.is_pending:
        owed.change(found.session, name, status="cancelled")
        return find(store, caller, name)
    return found


def delete(store: MemoryStore, caller: Caller, name: str) -> tuple[str, ...]:
    """Erase a response for good: what its call said, its answer, and what later answers have taken over of both.

    Args:
        store: holds it.
        caller: whose it has to be.
        name: its id.

    Returns:
        Other sessions, as the store names them, that share its messages and still keep them.

    Raises:
        NotFoundError: there is none.
    """
    found = find(store, caller, name)
    while isinstance(found, Owed):
        if owed.drop(found.session, name):
            _delete_if_empty(store, found.session)
            return ()
        found = find(store, caller, name)  # its answer was stored meanwhile
    session = store.session(found.session)
    forgotten = session.forget([message.id for message in found.own])
    _delete_if_empty(store, session)
    return forgotten.also_in


def _delete_if_empty(store: MemoryStore, session: StoredSession) -> None:
    """Delete a session that is kept for answers, if nothing in it is its own any more."""
    if not is_aside(session.name) or owed.is_owing(session):
        return
    last = session.messages(-1)
    if not (last and record_of(last[0]).get("id", "").startswith(f"resp_{session.number:08x}")):
        store.delete(session.name, aside=False)


def tidy(assistant: Assistant, seconds: float) -> None:
    """Erase the sessions that were made for answers which a crash has cut off.

    Args:
        assistant: keeps the sessions.
        seconds: after which nobody is writing an answer any more.
    """
    try:
        store = assistant.store
        for name in filter(is_aside, store.unused(store.now() - seconds)):
            with suppress(SessionNotFoundError):  # another server does the same
                store.delete(name)
    except HMTError as error:
        _log.warning("what unfinished answers have left is still there", exc_info=error)
