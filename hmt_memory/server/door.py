"""The way from calls that want an answer to the assistant, one way for every protocol. Knows no body."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import HMTError, SessionBusyError
from . import failures, replays
from .calls import Call, Event, Written, pieces
from .guard import Caller, Gate
from .metrics import Metrics, Timed

if TYPE_CHECKING:
    from ..sessions.answer import Answer
    from .settings import Settings

_TOO_LONG = "the answer took too long. Ask for a shorter one."
_log = logging.getLogger(__name__)
_LOOKS = 0.1  # seconds between looks whether a client is still there
_CLOSED = 499  # as others name a call whose client went away
_END = "[DONE]"  # of a stream


class Door:
    """The way from calls to the assistant.

    Args:
        settings: what is allowed.
        metrics: where answers are counted.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._replays = replays.Replays()
        self._gate = Gate(settings.answers, settings.waiting)
        self._answering: set[str] = set()  # the sessions in which an answer is being written

    async def answer(self, call: Call, request: Request, caller: Caller) -> Response:
        """Answer a call, whole or in pieces."""
        key = request.headers.get(replays.HEADER)
        before = self._replays.find(caller.tenant, key, call.asked)
        if before is not None:
            answered = before.answered
            if answered is None or before.version != await run_in_threadpool(call.version, answered):
                raise HTTPException(410, replays.GONE)
            return _streamed(_again(call, answered)) if call.stream else JSONResponse(answered)
        until = anyio.current_time() + self._settings.seconds
        async with AsyncExitStack() as held:
            keeper = held.enter_context(self._replays.keeping(caller.tenant, key, call.asked))
            await run_in_threadpool(call.look)
            held.enter_context(self._alone(call.session(self._answering)))
            timed = Timed(self._metrics)
            await held.enter_async_context(self._gate.place())
            held.enter_context(timed)
            if await request.is_disconnected():
                return Response(status_code=_CLOSED)
            held.push_async_callback(_closed, call)
            answer, first = await run_in_threadpool(_begun, call)
            timed.first()
            written = call.written(answer)

            def finished() -> None:
                """Note that the answer is whole, and stored: from here on it is given again for its key."""
                if answer.is_whole and timed.ends(answer.usage) and key is not None:
                    whole = written.whole()
                    keeper.keep(whole, call.version(whole))

            if call.stream:
                kept = held.pop_all()
                events = self._events(answer, first, written, kept, until, finished)
                return _streamed(events, background=BackgroundTask(kept.aclose))
            try:
                async with aclosing(pieces(answer, until)) as written_pieces:
                    looked = time.monotonic()
                    async for _ in written_pieces:
                        if time.monotonic() - looked < _LOOKS or answer.finish_reason is not None:
                            continue
                        if await request.is_disconnected():
                            return Response(status_code=_CLOSED)
                        looked = time.monotonic()
            except TimeoutError as error:
                raise HTTPException(504, _TOO_LONG) from error
            finally:
                finished()
            return JSONResponse(written.whole())

    @contextmanager
    def _alone(self, session: str | None) -> Iterator[None]:
        """Hold a session while an answer is written in it.

        Raises:
            SessionBusyError: another call holds it.
        """
        if session is None:
            yield
            return
        if session in self._answering:
            raise SessionBusyError("another call is being answered in this session. Try again when it is finished.")
        self._answering.add(session)
        try:
            yield
        finally:
            self._answering.discard(session)

    async def _events(
        self,
        answer: Answer,
        first: str | None,
        written: Written,
        held: AsyncExitStack,
        until: float,
        finished: Callable[[], object],
    ) -> AsyncIterator[Event]:
        """Yield the events of an answer as it is written, and hold its place until then."""
        async with held:
            try:
                for event in (*written.opening(), *(written.piece(first) if first else ())):
                    yield event
                async with aclosing(pieces(answer, until)) as written_pieces:
                    async for piece in written_pieces:
                        finished()
                        for event in written.piece(piece):
                            yield event
                finished()
                for event in written.closing(written.whole()):
                    yield event
            except HMTError as error:
                status, code = failures.status_of(error)
                yield written.failure(status, failures.message_of(error), code)
            except TimeoutError:
                yield written.failure(504, _TOO_LONG)
            except Exception as error:
                _log.exception("an answer failed")
                yield written.failure(500, failures.UNFORESEEN, type(error).__name__)
            finally:
                finished()
            yield _END


def _begun(call: Call) -> tuple[Answer, str | None]:
    """Begin an answer. Returns it with its first piece: what is wrong with a call shows by then."""
    answer = call.begin()
    return answer, next(answer, None)


async def _closed(call: Call) -> None:
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(call.close)


async def _again(call: Call, whole: dict[str, Any]) -> AsyncIterator[Event]:
    """Yield the events of an answer that was given before."""
    for event in call.again(whole):
        yield event
    yield _END


def _streamed(events: AsyncIterator[Event], background: BackgroundTask | None = None) -> Response:
    return EventSourceResponse(events, background=background, sep="\n")
