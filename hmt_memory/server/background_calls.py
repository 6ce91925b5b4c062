"""A call of Responses that is answered in the background: noted in its session before anything is written. Knows no route.

What is noted is content-free; what the call has said stays in memory until it is stored with its answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import SessionNotFoundError
from ..sessions import owed
from .items import Stem
from .response_calls import ResponseCall
from .response_events import Events
from .stored_responses import STOPPED, Owed, body_of

if TYPE_CHECKING:
    from ..sessions.memory_store import MemoryStore
    from ..sessions.session import Session
    from .replays import Version

# What a body repeats of its call that may hold what was said, and what stands in its place.
_SAID: dict[str, Any] = {
    "instructions": None,
    "metadata": {},
    "tools": [],
    "tool_choice": "auto",
    "text": {"format": {"type": "text"}},
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
}


class BackgroundCall(ResponseCall):
    """A call of Responses that is answered in the background."""

    _reserved: tuple[Session, Stem] | None = None
    reserved_at: Version = None  # the version of its session then

    @property
    def store(self) -> MemoryStore:
        """The store that the response is kept in."""
        return self._assistant.store

    @property
    def id(self) -> str:
        """The id of the response, once it is reserved."""
        return str(self._owed)

    @property
    def about(self) -> dict[str, Any]:
        """The body of the response, as far as it is known before anything is written."""
        return dict(self._about or {})

    @property
    def events(self) -> Events:
        """The events of the response, once it is reserved."""
        assert self._events is not None, "it is reserved"
        return self._events

    def reserve(self, owner: str) -> dict[str, Any]:
        """Note the response in the session that it will be added to, in another thread. Returns its body.

        Args:
            owner: name of the `Presence` of this process.

        Raises what is wrong with the call, as `begin` does.
        """
        self.body.options(self._settings.usual, self._settings.longest)
        self._messages, self._refers = self._said(), False
        name, _ = self._place()
        session = self._assistant.session(str(name))
        stem, self.reserved_at = Stem.new(session), session.epoch()
        self._about = self._told(stem)
        note = {"status": "queued", "owner": owner, "error": None, "about": {**self._about, **_SAID}}
        owed.note(session, stem.response, note)  # from here on nothing fails
        self._reserved, self._owed = (session, stem), stem.response
        body = body_of(Owed(self.id, session, note), self._caller, self._about)
        self._events = Events({**body, "status": "in_progress"}, stem.message(len(self._messages)))
        return body

    def take_up(self) -> bool:
        """Note that the answer is being written, in another thread. Returns whether it is still wanted."""
        return self._changed(status="in_progress")

    def is_wanted(self) -> bool:
        """Return whether nobody has cancelled or deleted the response, in another thread."""
        note = self._noted()
        return note is not None and note["status"] in owed.PENDING

    def give_up(self, error: Mapping[str, Any] | None) -> owed.Note | None:
        """Note that the response has failed, unless it is stored, cancelled or deleted, in another thread.

        Args:
            error: what it failed of; None: the server is stopped.

        Returns:
            What is noted then; None: it is stored or deleted.
        """
        self._changed(**failed(error))
        return self._noted()

    def _noted(self) -> owed.Note | None:
        if self._reserved is not None:
            with suppress(SessionNotFoundError):  # it was deleted
                return owed.noted(self._reserved[0], self.id)
        return None

    def _changed(self, **changes: Any) -> bool:
        if self._reserved is not None:
            with suppress(SessionNotFoundError):  # it was deleted
                return owed.change(self._reserved[0], self.id, **changes)
        return False

    def _stem(self) -> Stem:
        return super()._stem() if self._reserved is None else self._reserved[1]

    def _place(self) -> tuple[str | None, int | None]:
        if self._reserved is None:
            return super()._place()
        name = self._assistant.store.named("session", self._reserved[1].number)  # it may be renamed
        if name is None:
            raise SessionNotFoundError("the session of this response was deleted.")
        return name, None

    def close(self) -> None:
        """Erase the session that was made for the answer, if not even a note is in it."""
        if self._reserved is None:
            super().close()


def failed(error: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is noted of a response that failed.

    Args:
        error: of what; None: the server is stopped.
    """
    told = STOPPED if error is None else {"code": error["code"] or error["type"], "message": error["message"]}
    return {"status": "failed", "error": told}
