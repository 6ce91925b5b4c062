"""The events of answers in the background, for whoever joins: while they are written, and for a moment after. In memory only.

Knows no call and no route. What has ended is given again without what was recalled, and only if it is stored and nothing of its
session was forgotten.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

import anyio
from starlette.concurrency import run_in_threadpool

from . import failures
from .response_events import Events, without_recalled

if TYPE_CHECKING:
    from sse_starlette import ServerSentEvent

_SECONDS = 60.0  # for which events are kept when an answer has ended
_MOST, _MOST_BYTES = 64, 8 << 20  # ended ones that are kept, and their bytes; the oldest go first
_LOOKS = 1.0  # seconds between looks whether what is kept was forgotten


class Stream:
    """The events of one response, from the first on. Belongs to the event loop.

    Args:
        events: makes them.
        holds: returns, in another thread, whether nothing of its session was forgotten.
    """

    def __init__(self, events: Events, holds: Callable[[], bool]) -> None:
        self.events, self.holds = events, holds
        self.is_whole, self.has_ended = False, False
        self._told: list[ServerSentEvent | None] = []  # at the places that their numbers say; None: nobody gets it any more
        self._news = anyio.Event()

    @property
    def size(self) -> int:
        """The bytes of its events."""
        return sum(len(event.data or "") for event in self._told if event is not None)

    def add(self, events: Iterable[ServerSentEvent]) -> None:
        """Add the next events, unless it has ended."""
        if not self.has_ended:
            self._told.extend(events)
            self._wake()

    def close(self, events: Iterable[ServerSentEvent]) -> None:
        """Add the last events of an answer that is stored."""
        self.add(events)
        self.is_whole = True

    def end(self) -> None:
        """Let go of whoever follows, once they have all events."""
        self.has_ended = True
        self._wake()

    def erase(self) -> None:
        """Give none of its events any more; whoever follows is told why."""
        self._told = [None] * len(self._told)
        self.add([self.events.deleted()])
        self.end()

    def kept(self) -> Stream:
        """Return what is kept of it when it has ended: nothing that was recalled."""
        kept = Stream(self.events, self.holds)
        kept._told = [event and without_recalled(event) for event in self._told]
        kept.is_whole = kept.has_ended = True
        return kept

    async def follow(self, after: int = -1) -> AsyncIterator[ServerSentEvent]:
        """Yield its events, as soon as each is there.

        Args:
            after: number of the event before the first.
        """
        place = after + 1
        while True:
            news = self._news
            while place < len(self._told):
                event = self._told[place]
                place += 1
                if event is not None:
                    yield event
            if self.has_ended:
                return
            await news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class Streams:
    """The streams that can be joined, by the ids of their responses."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}  # those that have ended in the order in which they did

    def open(self, name: str, stream: Stream) -> None:
        """Let a stream be joined."""
        self._streams[name] = stream

    async def find(self, name: str) -> Stream | None:
        """Return a stream; None: it is not here, or something of its session was forgotten."""
        stream = self._streams.get(name)
        if stream is not None and stream.has_ended and not await _holds(stream):
            self.erase(name)
            return None
        return stream

    def close(self, name: str) -> None:
        """Let a stream be joined no more; whoever follows it goes on."""
        self._streams.pop(name, None)

    def erase(self, name: str) -> None:
        """Give no events of a response any more."""
        if (stream := self._streams.pop(name, None)) is not None:
            stream.erase()

    async def keep(self, name: str) -> None:
        """Let a stream that has ended be joined for a while yet."""
        if (ended := self._streams.pop(name, None)) is None:
            return
        stream = self._streams[name] = ended.kept()
        self._make_room()
        until = anyio.current_time() + _SECONDS
        try:
            while self._streams.get(name) is stream and anyio.current_time() < until and await _holds(stream):
                await anyio.sleep(_LOOKS)
        finally:
            if self._streams.get(name) is stream:
                self.close(name)

    def _make_room(self) -> None:
        """Let go of the oldest of those that have ended, as far as there are too many."""
        kept = [(name, stream.size) for name, stream in self._streams.items() if stream.has_ended]
        size = sum(own for _, own in kept)
        for place, (name, own) in enumerate(kept):
            if len(kept) - place <= _MOST and size <= _MOST_BYTES:
                return
            self.close(name)
            size -= own


async def _holds(stream: Stream) -> bool:
    """Return whether what has ended may be given again."""
    try:
        return await run_in_threadpool(stream.holds)
    except Exception as error:
        failures.of_stream(error)
        return False
