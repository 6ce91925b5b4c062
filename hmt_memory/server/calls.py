"""A call that is answered, and its answer while it is written, in whichever protocol. Knows no route."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import anyio
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import SessionNotFoundError
from .bodies import Answered

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..engine.generate import Usage
    from ..sessions.answer import Answer
    from ..sessions.memory_store import MemoryStore
    from .guard import Caller
    from .replays import Version
    from .settings import Settings

_LOOKS = 0.1  # seconds between looks whether a client is still there
Event = str | ServerSentEvent  # of a stream
Body = TypeVar("Body", bound=Answered)
Piece = TypeVar("Piece")
PieceOut = TypeVar("PieceOut", covariant=True)


class Pieces(Protocol[PieceOut]):
    """What is written piece by piece: an answer, or several texts."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, there with the last piece; None before."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing any more, and it is stored if it is to be."""
        ...

    @property
    def usage(self) -> Usage:
        """Its tokens."""
        ...

    def __next__(self) -> PieceOut: ...


class Written(ABC, Generic[Piece]):
    """What is written, as its protocol has it."""

    answer: Pieces[Piece]

    @property
    @abstractmethod
    def input_tokens(self) -> int:
        """The tokens that it is answered from, as its usage counts them."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is finished."""

    def kept(self) -> dict[str, Any]:
        """Return the body as it is given again: without what was recalled, which may be forgotten by then."""
        return self.whole()

    def opening(self) -> Iterator[Event]:
        """Yield the first events of a stream."""
        return iter(())

    @abstractmethod
    def piece(self, piece: Piece) -> Iterator[Event]:
        """Yield the events of a piece."""

    @abstractmethod
    def closing(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the last events of a stream, which the whole body tells."""

    def failure(self, error: Mapping[str, Any]) -> Event:
        """Return the event of an answer that failed; `error` is the body of a call that fails so."""
        return json.dumps(error)


class Call(ABC, Generic[Body]):
    """A call that wants an answer.

    Args:
        assistant: answers.
        settings: what is allowed.
        body: of the call.
        name: of the session that it names; None: it names none.
    """

    operation: ClassVar[str] = "chat"  # as traces name it
    prepares: ClassVar[bool] = False  # whether there is something to look for, and to clear away: each costs another thread

    def __init__(self, assistant: Assistant, settings: Settings, body: Body, name: str | None = None) -> None:
        self._assistant, self._settings, self.body, self._name = assistant, settings, body, name

    @property
    def asked(self) -> str:
        """All that tells it from another call."""
        return json.dumps([type(self).__name__, self._name, self.body.model_dump()], default=str)

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self._assistant.name

    def look(self) -> None:
        """Look for what the call refers to, in another thread. Raises what is wrong with it."""
        return

    def session(self, busy: Container[str]) -> str | None:
        """Return the session, as the store names it, in which nobody else may be answered meanwhile; None: there is none.

        Args:
            busy: the sessions in which others are being answered.
        """
        return None

    @abstractmethod
    def begin(self) -> Written[Any]:
        """Begin the answer, in another thread."""

    @abstractmethod
    def again(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield all events of an answer that is whole already."""

    def version(self) -> Version:
        """Return what changes when something is forgotten of the session that was answered from, in another thread."""
        return None

    def holds(self, version: Version) -> bool:
        """Return whether nothing was forgotten since a session had a version, in another thread."""
        return holds(self._assistant.store, version)

    def close(self) -> None:
        """Clear away, in another thread, what the call has made and what nobody needs after all."""
        return


def holds(store: MemoryStore, version: Version) -> bool:
    """Return whether nothing was forgotten since a session had a version; None: there is nothing to forget."""
    if version is None:
        return True
    name = store.named("session", version[0])
    with suppress(SessionNotFoundError):  # it was deleted meanwhile
        return name is not None and store.session(name).epoch() == version
    return False


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


def without_recalled(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of an answer without what was recalled for it."""
    return {**body, "hmt": {**body["hmt"], "recalled": []}}


def started(call: Call[Any], noted: Callable[[Pieces[Any]], object]) -> tuple[Written[Any], object]:
    """Begin an answer, in another thread. Returns it with its first piece: what is wrong with a call shows by then.

    Args:
        call: wants it.
        noted: called with it once the piece is there.
    """
    written = call.begin()
    first = next(written.answer, None)
    noted(written.answer)
    return written, first


async def pieces(answer: Pieces[Piece], until: float, noted: Callable[[Pieces[Any]], object]) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of an answer, which is written in another thread. Whoever stops early stops the writing, too.

    Args:
        answer: being written.
        until: by the clock of the event loop.
        noted: called with it in that thread after each piece.

    Raises:
        TimeoutError: it is later than that, and the answer is not finished.
    """
    loop = asyncio.get_running_loop()
    written: asyncio.Queue[Piece | None] = asyncio.Queue()

    def tell(piece: Piece | None) -> None:
        loop.call_soon_threadsafe(written.put_nowait, piece)

    async with _writing(answer, until, noted, tell) as writing:
        while (piece := await written.get()) is not None:
            yield piece
        await writing


async def to_the_end(
    answer: Pieces[Piece], until: float, noted: Callable[[Pieces[Any]], object], here: Callable[[], Awaitable[bool]]
) -> bool:
    """Write an answer to its end in another thread, which tells of no piece: that would cost more than many a token.

    Args:
        answer: being written.
        until: by the clock of the event loop.
        noted: called with it in that thread after each piece.
        here: whether the client is there, asked now and then. The writing stops if not; once the last piece is there, it ends.

    Returns:
        Whether the client was there until then; if not, the answer may have no end.

    Raises:
        TimeoutError: it is later than that, and the answer is not finished.
    """
    async with _writing(answer, until, noted, lambda piece: None) as writing:
        while not (await asyncio.wait({writing}, timeout=_LOOKS))[0]:
            if answer.finish_reason is None and not await here():
                return False
        await writing
        return True


@asynccontextmanager
async def _writing(
    answer: Pieces[Piece], until: float, noted: Callable[[Pieces[Any]], object], tell: Callable[[Piece | None], object]
) -> AsyncIterator[asyncio.Future[None]]:
    """Write an answer in another thread until it ends, or whoever waits for it leaves.

    Args:
        answer: being written.
        until: by the clock of the event loop.
        noted: called with it in that thread after each piece.
        tell: called there with each piece, and with None when there is none any more, whatever the reason.
    """
    gone = threading.Event()
    last = time.monotonic() + until - anyio.current_time()

    def write() -> None:
        try:
            while not gone.is_set():
                if answer.finish_reason is None and time.monotonic() > last:
                    raise TimeoutError
                piece = next(answer, None)
                noted(answer)
                if piece is None:
                    return
                tell(piece)
        finally:
            tell(None)

    writing = asyncio.ensure_future(run_in_threadpool(write))
    try:
        yield writing
    finally:
        gone.set()
        with anyio.CancelScope(shield=True):  # the token that is being computed
            await asyncio.wait({writing})
        if not writing.cancelled():
            writing.exception()  # whoever has left does not hear of it
