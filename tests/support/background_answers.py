"""Answers in the background: what they are written with, and what asks for them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi.testclient import TestClient
from open_responses import events_of
from openai import OpenAI

from hmt_memory.cluster.asgi import Sent, answered
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens
from hmt_memory.sessions import owed


class Pen:
    """What answers are written with: while it is held, none gets further."""

    def __init__(self) -> None:
        self.free, self.used = threading.Event(), threading.Event()
        self.free.set()
        self._left: int | None = None

    def let(self, pieces: int) -> None:
        """Let so many pieces be written."""
        self._left = pieces
        self.free.set()

    def written(self) -> None:
        """Count a piece."""
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.free.clear()
                self._left = None


@contextmanager
def served(assistant: Any, *, tokens: Tokens | None = None, key: str = "none", **settings: Any) -> Iterator[OpenAI]:
    with TestClient(create_app(assistant, Settings(hosts=("testserver",), **settings), tokens=tokens)) as http:
        yield client_of(http, key)


def client_of(http: Any, key: str = "none") -> OpenAI:
    return OpenAI(base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0)


def ask(client: OpenAI, said: Any = "I am Ann.", **options: Any) -> Any:
    return client.responses.create(input=said, background=True, **options)


def ended(client: OpenAI, name: str) -> Any:
    """A response when it has ended, as whoever polls sees it."""
    for _ in range(500):
        found = client.responses.retrieve(name)
        if found.status not in owed.PENDING:
            return found
        time.sleep(0.01)
    raise AssertionError(f"still {found.status}")


class Calling:
    """A call of an application, whose client reads as much of a stream as it likes.

    Args:
        app: is called.
        method: such as "GET".
        address: path and query.
        key: the token.
        **body: of the call.
    """

    def __init__(self, app: Any, method: str, address: str, *, key: str = "none", **body: Any) -> None:
        path, _, query = address.partition("?")
        given = {"host": "testserver", "authorization": f"Bearer {key}", "content-type": "application/json"}
        headers = [(name.encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        self._sent = answered(app, Sent(scope | {"http_version": "1.1", "scheme": "http"}, json.dumps(body).encode()))
        self._status, self._read = 0, b""

    @property
    def told(self) -> list[Any]:
        """The events that are read so far."""
        lines = self._read.decode().split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]

    async def until(self, kind: str, times: int = 1) -> None:
        """Read events until so many of a kind are there."""
        while [event["type"] for event in self.told].count(kind) < times:
            self._take(await anext(self._sent))

    async def leave(self) -> None:
        """Go away."""
        await self._sent.aclose()

    async def whole(self) -> httpx.Response:
        """Read to the end."""
        async for messages in self._sent:
            self._take(messages)
        return httpx.Response(self._status, content=self._read)

    async def events(self, first: int = 0) -> list[dict[str, Any]]:
        """Read a stream to its end, whose first event has a number."""
        return events_of(await self.whole(), first)

    def _take(self, messages: list[Any]) -> None:
        for message in messages:
            self._status = message.get("status", self._status)
            self._read += message.get("body", b"")
