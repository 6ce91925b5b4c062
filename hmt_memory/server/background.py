"""Answers that are written while nobody waits for them, as long as the application runs. Knows no body and no route."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..sessions.owed import Presence
from . import failures
from .background_calls import failed
from .background_streams import Stream, Streams
from .calls import holds, pieces, started

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ..sessions.memory_store import MemoryStore
    from ..sessions.owed import Note
    from .background_calls import BackgroundCall
    from .calls import Written
    from .guard import Gate
    from .metrics import Timed

_LOOKS = 1.0  # seconds between looks whether an answer is still wanted: another server may have cancelled it
_POLL = 0.1  # seconds between looks whether all are written
_STOPPING = "the server is being stopped. Try again in a moment."
_TRIES = 60  # so often it is tried to note an end, a second apart


class Background:
    """The answers that are written in the background.

    Args:
        gate: through which all answers go.
        seconds: that one answer may take.
    """

    def __init__(self, gate: Gate, seconds: float) -> None:
        self._gate, self._seconds = gate, seconds
        self._group: TaskGroup | None = None
        self._presence: Presence | None = None
        self.stopping: anyio.Event | None = None  # set by whoever sees first that the server is being stopped
        self.streams = Streams()
        self._calls: dict[str, BackgroundCall] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write answers inside; what is not finished by the end is given up."""
        async with anyio.create_task_group() as group:
            self._group, self.stopping = group, anyio.Event()
            group.start_soon(self._stop_when_told, self.stopping)
            try:
                yield
            finally:
                self._group = None
                group.cancel_scope.cancel()
        if self._presence is not None:
            await run_in_threadpool(self._presence.end)
            self._presence = None
        self.streams = Streams()

    async def finished(self) -> None:
        """Wait until no answer is being written."""
        while self._calls:
            await anyio.sleep(_POLL)

    async def owner(self, store: MemoryStore) -> str:
        """Return the name under which this process is present in the store.

        Raises:
            HTTPException: the application does not run, or not any more.
        """
        if self._group is None:
            raise HTTPException(503, _STOPPING)
        self._presence = self._presence or Presence(store)
        return await run_in_threadpool(self._presence.begin)

    def start(self, call: BackgroundCall, timed: Timed, turn: ExitStack, held: AsyncExitStack) -> Stream:
        """Write an answer from now on. Returns its events.

        Args:
            call: which is reserved.
            timed: counts it.
            turn: the turn of the call at the gate.
            held: what is let go of when the answer has ended.

        Raises:
            HTTPException: the application does not run any more.
        """
        if self._group is None:
            raise HTTPException(503, _STOPPING)
        self._calls[call.id], self._scopes[call.id] = call, anyio.CancelScope()
        stream = Stream(call.events, partial(holds, call.store, call.reserved_at))
        stream.add(call.events.queued())
        self.streams.open(call.id, stream)
        self._group.start_soon(self._work, call, stream, timed, turn, held)
        return stream

    def about(self, name: str) -> dict[str, Any] | None:
        """Return the body of a response, as far as it is known before anything is written; None: it is not written here."""
        call = self._calls.get(name)
        return None if call is None else call.about

    def stop(self, name: str) -> None:
        """Write no more of a response, if it is written here."""
        if (scope := self._scopes.get(name)) is not None:
            scope.cancel()

    def erase(self, name: str) -> None:
        """Write no more of a response that was deleted, and let nobody have its events."""
        self.stop(name)
        self.streams.erase(name)

    async def _stop_when_told(self, stopping: anyio.Event) -> None:
        """Give up all answers, so that whoever follows them is told before the server waits for their connections."""
        await stopping.wait()
        self._group = None
        for scope in self._scopes.values():
            scope.cancel()

    async def _work(self, call: BackgroundCall, stream: Stream, timed: Timed, turn: ExitStack, held: AsyncExitStack) -> None:
        """Write an answer, and note what it fails of."""
        name = call.id
        error: dict[str, Any] | None = None
        try:
            with self._scopes[call.id]:
                async with held, self._gate.place(turn):
                    await self._write(call, stream, timed)
        except Exception as failure:
            error = failures.of_stream(failure)["error"]
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(call, stream, error)
        if stream.is_whole:
            await self.streams.keep(name)

    async def _write(self, call: BackgroundCall, stream: Stream, timed: Timed) -> None:
        until = anyio.current_time() + self._seconds
        if not await run_in_threadpool(call.take_up):
            return
        stream.add(call.events.opening())
        with timed:
            written, first = await run_in_threadpool(started, call, lambda _: None)
            timed.first()
            try:
                if first:
                    stream.add(call.events.piece(str(first)))
                await self._to_the_end(call, stream, written, until)
            finally:
                if (answer := written.answer).is_whole:
                    timed.ends(answer.usage, written.input_tokens, answer.finish_reason)
                    stream.close(call.events.closing(written.whole()))

    async def _to_the_end(self, call: BackgroundCall, stream: Stream, written: Written[Any], until: float) -> None:
        looked = time.monotonic()
        async with aclosing(pieces(written.answer, until, lambda _: None)) as writing:
            async for piece in writing:
                stream.add(call.events.piece(piece))
                if time.monotonic() - looked >= _LOOKS and written.answer.finish_reason is None:
                    if not await run_in_threadpool(call.is_wanted):
                        return
                    looked = time.monotonic()

    async def _end(self, call: BackgroundCall, stream: Stream, error: dict[str, Any] | None) -> None:
        """Note that an answer was given up, unless it is there. A store that is busy may let nobody write for a while."""
        note: Note | None = failed(error)
        for _ in range(_TRIES):
            try:
                note = await run_in_threadpool(call.give_up, error)
                break
            except Exception as failure:
                failures.of_stream(failure)
            if self._group is None:  # it counts as failed once this process is gone
                break
            await anyio.sleep(_LOOKS)
        del self._calls[call.id], self._scopes[call.id]
        if not stream.is_whole:
            self.streams.close(call.id)
            _tell_end(stream, note or (error and failed(error)))
        stream.end()


def _tell_end(stream: Stream, note: Note | None) -> None:
    """Tell whoever follows how a response ended that is not stored; None: it was deleted."""
    if note is None:
        stream.erase()
    elif note["status"] == "cancelled":
        stream.add([stream.events.cancelled()])
    else:
        stream.add([stream.events.failure(note["error"]["message"], note["error"]["code"])])
