"""A call that is answered, and its answer while it is written, in whichever protocol. Knows no route."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..sessions.answer import Answer
    from .guard import Caller
    from .replays import Version

Event = str | ServerSentEvent  # of a stream


class Written(ABC):
    """An answer as its protocol writes it."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is finished."""

    @abstractmethod
    def opening(self) -> Iterator[Event]:
        """Yield the first events of a stream."""

    @abstractmethod
    def piece(self, text: str) -> Iterator[Event]:
        """Yield the events of a piece of text."""

    @abstractmethod
    def closing(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the last events of a stream, which the whole body tells."""

    @abstractmethod
    def failure(self, status: int, message: str, code: str | None = None) -> Event:
        """Return the event of an answer that failed.

        Args:
            status: that it would have had if nothing had been sent.
            message: what is wrong, and what to do.
            code: a name for programs.
        """


class Call(ABC):
    """A call that wants an answer."""

    stream: bool
    asked: str  # all that tells it from another call

    def look(self) -> None:
        """Look for what the call refers to, in another thread. Raises what is wrong with it."""
        return

    @abstractmethod
    def session(self, busy: Container[str]) -> str | None:
        """Return the session, as the store names it, in which nobody else may be answered meanwhile; None: there is none.

        Args:
            busy: the sessions in which others are being answered.
        """

    @abstractmethod
    def begin(self) -> Answer:
        """Begin the answer, in another thread."""

    @abstractmethod
    def written(self, answer: Answer) -> Written:
        """Return the answer as the protocol writes it."""

    @abstractmethod
    def again(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield all events of an answer that is whole already."""

    @abstractmethod
    def version(self, whole: Mapping[str, Any]) -> Version:
        """Return what changes when something is forgotten of the session that an answer was given in."""

    def close(self) -> None:
        """Clear away, in another thread, what the call has made and what nobody needs after all."""
        return


def check_model(assistant: Assistant, name: str | None) -> None:
    """Refuse another model's name. None is the model that answers.

    Raises:
        HTTPException: it is another's.
    """
    if name not in (None, assistant.name):
        raise HTTPException(404, f"there is no model {name!r} here, but {assistant.name!r}.")


def remembered(answer: Answer, caller: Caller, session: str | None) -> dict[str, Any]:
    """Return what was recalled for an answer, and where it was stored.

    Args:
        answer: finished.
        caller: knows sessions and corpora by their names in its own name space.
        session: by which the caller knows it; None: none.
    """
    recalled = [passage.to_dict() | {"source": caller.shown(passage.source)} for passage in answer.recalled]
    about: dict[str, Any] = {"recalled": recalled, "view_tokens": answer.usage.view_tokens}
    if session is not None:
        about |= {"session": session, "message_ids": list(getattr(answer, "message_ids", ()))}
    return about


async def pieces(answer: Answer, until: float) -> AsyncGenerator[str, None]:
    """Yield the pieces of an answer, which is written in another thread. Whoever stops early stops the writing, too.

    Args:
        answer: being written.
        until: by the clock of the event loop.

    Raises:
        TimeoutError: it is later than that, and the answer is not finished.
    """
    loop, gone = asyncio.get_running_loop(), threading.Event()
    last = time.monotonic() + until - anyio.current_time()
    written: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

    def write() -> None:
        piece: str | BaseException | None = ""
        while piece is not None and not gone.is_set():
            try:
                if answer.finish_reason is None and time.monotonic() > last:
                    raise TimeoutError
                piece = next(answer, None)
            except BaseException as error:
                loop.call_soon_threadsafe(written.put_nowait, error)
                return
            loop.call_soon_threadsafe(written.put_nowait, piece)

    writing = asyncio.ensure_future(run_in_threadpool(write))
    try:
        while (piece := await written.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        gone.set()
        with anyio.CancelScope(shield=True):  # the token that is being computed
            await writing
