"""The way from calls that want an answer to the assistant, one way for every protocol. Knows no body."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import SessionBusyError
from . import failures, replays
from .background import Background
from .calls import Call, Event, Pieces, Written, pieces, started, to_the_end
from .guard import Caller, Gate
from .metrics import Metrics, Timed
from .tracing import Span

if TYPE_CHECKING:
    from .background_calls import BackgroundCall
    from .background_streams import Stream
    from .settings import Settings

_LAST_WORDS = 10.0  # seconds that streams of the background have to end when the server is stopped
END = "[DONE]"  # of a stream


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
        self._joined = Gate(settings.waiting, 0)
        self.background = Background(self._gate, settings.seconds)

    async def answer(self, call: Call[Any], request: Request, caller: Caller) -> Response:
        """Answer a call, whole or in pieces."""
        key, stream = request.headers.get(replays.HEADER), call.body.stream
        asked = "" if key is None else call.asked
        answered = await self._answered(call, caller, key, asked)
        if answered is not None:
            return _streamed(_again(call, answered)) if stream else JSONResponse(answered)
        until = anyio.current_time() + self._settings.seconds
        async with AsyncExitStack() as held:
            keeper = held.enter_context(self._replays.keeping(caller.tenant, key, asked))
            if call.prepares:
                await run_in_threadpool(call.look)
            held.enter_context(self._alone(call.session(self._answering)))
            span = Span(call.operation, request.headers, model=call.model, asked=call.body.requested())
            timed = Timed(self._metrics, held.enter_context(span))
            await held.enter_async_context(self._gate.place())
            held.enter_context(timed)
            if await request.is_disconnected():
                return Response(status_code=failures.CLOSED)
            if call.prepares:
                held.push_async_callback(_closed, call)

            def noted(answer: Pieces[Any]) -> None:
                """Look, in the thread that writes, which version of its session an answer is of that is whole."""
                if key is not None and answer.is_whole and keeper.version is None:
                    keeper.version = call.version()

            written, first = await run_in_threadpool(started, call, noted)
            timed.first()

            def finished() -> None:
                """Note that the answer is whole, and stored: from here on it is given again for its key."""
                answer = written.answer
                if answer.is_whole and timed.ends(answer.usage, written.input_tokens, answer.finish_reason) and key is not None:
                    keeper.keep(written.kept())

            if stream:
                kept, writing = held.pop_all(), pieces(written.answer, until, noted)
                return _streamed(self._events(written, first, writing, kept, finished), BackgroundTask(kept.aclose))
            try:
                if not await to_the_end(written.answer, until, noted, partial(_is_there, request)):
                    return Response(status_code=failures.CLOSED)
            except TimeoutError as error:
                raise HTTPException(504, failures.TOO_LONG) from error
            finally:
                finished()
            return JSONResponse(written.whole())

    async def take(self, call: BackgroundCall, request: Request, caller: Caller) -> Response:
        """Take a call that is answered in the background. Returns the response as it is until then, or its events."""
        key = request.headers.get(replays.HEADER)
        asked = "" if key is None else call.asked
        body = await self._answered(call, caller, key, asked)
        if body is not None:
            return await self.join(body["id"]) if call.body.stream else JSONResponse(body)
        with self._replays.keeping(caller.tenant, key, asked) as keeper:
            async with AsyncExitStack() as held:
                turn = ExitStack()
                held.callback(turn.close)
                turn.enter_context(self._gate.turn())
                await run_in_threadpool(call.look)
                held.enter_context(self._alone(call.session(self._answering)))
                span = Span(call.operation, request.headers, model=call.model, asked=call.body.requested())
                timed = Timed(self._metrics, held.enter_context(span))
                held.push_async_callback(_closed, call)
                body = await run_in_threadpool(call.reserve, await self.background.owner(call.store))
                if key is not None:
                    keeper.version = call.reserved_at
                    keeper.keep(body)
                stream = self.background.start(call, timed, turn, held.pop_all())
        return self._followed(stream, -1, AsyncExitStack()) if call.body.stream else JSONResponse(body)

    async def join(self, name: str, after: int = -1) -> Response:
        """Give the events of a response that is written in the background: those that were sent again, then the next ones.

        Args:
            name: its id.
            after: number of the event before the first.

        Raises:
            NoStreamError: they are not here.
            HTTPException: too many have joined already.
        """
        async with AsyncExitStack() as held:
            held.enter_context(self._joined.turn())
            stream = await self.background.streams.find(name)
            if stream is None:
                raise failures.NoStreamError(name)
            return self._followed(stream, after, held.pop_all())

    def _followed(self, stream: Stream, after: int, held: AsyncExitStack) -> Response:
        """Return the events of a stream as they come, and hold a place until then."""

        async def events() -> AsyncIterator[Event]:
            async with held:
                async for event in stream.follow(after):
                    yield event
            yield END

        stopping = {"shutdown_event": self.background.stopping, "shutdown_grace_period": _LAST_WORDS}
        return _streamed(events(), BackgroundTask(held.aclose), **stopping)

    async def _answered(self, call: Call[Any], caller: Caller, key: str | None, asked: str) -> dict[str, Any] | None:
        """Return the answer that a call with a key was given before; None: it is new.

        Args:
            call: wants an answer.
            caller: who calls.
            key: that the call has; None: it has none.
            asked: what tells it from other calls.

        Raises:
            HTTPException: the answer is being written, or not given again.
        """
        before = self._replays.find(caller.tenant, key, asked)
        if before is None:
            return None
        if before.answered is None or not await run_in_threadpool(call.holds, before.version):
            raise HTTPException(410, replays.GONE)
        return before.answered

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
        written: Written[Any],
        first: object,
        writing: AsyncGenerator[Any, None],
        held: AsyncExitStack,
        finished: Callable[[], object],
    ) -> AsyncIterator[Event]:
        """Yield the events of an answer as it is written, and hold its place until then."""
        try:
            async with held:
                try:
                    for event in (*written.opening(), *(written.piece(first) if first else ())):
                        yield event
                    async with aclosing(writing):
                        async for piece in writing:
                            finished()
                            for event in written.piece(piece):
                                yield event
                    finished()
                    for event in written.closing(written.whole()):
                        yield event
                finally:
                    finished()
        except Exception as error:
            yield written.failure(failures.of_stream(error))
        yield END


async def _is_there(request: Request) -> bool:
    return not await request.is_disconnected()


async def _closed(call: Call[Any]) -> None:
    with anyio.CancelScope(shield=True):
        await run_in_threadpool(call.close)


async def _again(call: Call[Any], whole: dict[str, Any]) -> AsyncIterator[Event]:
    """Yield the events of an answer that was given before."""
    for event in call.again(whole):
        yield event
    yield END


def _streamed(events: AsyncIterator[Event], background: BackgroundTask | None = None, **stopping: Any) -> Response:
    return EventSourceResponse(events, background=background, sep="\n", **stopping)
