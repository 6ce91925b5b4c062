"""Responses as they are stored: found by their ids, shown, erased. Knows sessions; no route, no model."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import HMTError, SessionNotFoundError
from ..sessions.names import is_aside
from .failures import NotFoundError
from .items import Stem, items_of, messages_of_call, record_of

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..retrieval.citations import Message
    from ..sessions.memory_store import MemoryStore
    from .guard import Caller

_log = logging.getLogger(__name__)


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


def find(store: MemoryStore, caller: Caller, name: str) -> Found:
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
            own = messages_of_call(stored, stem)
            if own and record_of(own[-1]).get("id") == name:
                behind = stored.from_id(own[-1].id + 1, 1)
                return Found(name, session, stem, own, behind[0].id if behind else None)
    raise NotFoundError("response", name)


def body_of(found: Found, caller: Caller) -> dict[str, Any]:
    """Return the body of a stored response. What was recalled for it is not stored.

    Args:
        found: the response.
        caller: knows its session by a name of its own, if it is listed.
    """
    record, named = record_of(found.answer), caller.shown(found.session)
    about: dict[str, Any] = {"recalled": []}
    whole = {**record, "output": items_of(found.answer, found.stem.number), "hmt": about}
    if named is not None:
        about |= {"session": named, "message_ids": [message.id for message in found.own]}
        whole["conversation"] = {"id": named}
    return whole


def delete(store: MemoryStore, found: Found) -> tuple[str, ...]:
    """Erase a response for good: what its call said, its answer, and what later answers have taken over of both.

    Args:
        store: holds it.
        found: the response.

    Returns:
        Other sessions, as the store names them, that share its messages and still keep them.
    """
    session = store.session(found.session)
    forgotten = session.forget([message.id for message in found.own])
    last = session.messages(-1)
    if is_aside(found.session) and not (last and record_of(last[0]).get("id", "").startswith(f"resp_{session.number:08x}")):
        store.delete(found.session, aside=False)  # nothing in it is its own any more
    return forgotten.also_in


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
