"""A call of HTTP as values that pass between processes, and its answer piece by piece. Knows ASGI; no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope

# Of a scope; what else is in it are objects of the process that has received the call.
_PLAIN = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_ADDRESSES = ("client", "server")


class Sent(NamedTuple):
    """A call that was received whole."""

    scope: dict[str, Any]
    body: bytes


async def received(scope: Scope, receive: Receive) -> Sent | None:
    """Receive a call whole; None: its client went away first."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    plain = {name: scope[name] for name in _PLAIN if name in scope}
    plain["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    plain |= {name: tuple(scope[name]) for name in _ADDRESSES if scope.get(name)}
    return Sent(plain, b"".join(parts))


async def answered(app: ASGIApp, call: Sent) -> AsyncGenerator[list[Message], None]:
    """Let an application answer a call; yield what it sends as it sends it, in one list what came together.

    Whoever stops early has gone away, which the application is told; this ends when it has.

    Args:
        app: answers.
        call: is answered.
    """
    sent: asyncio.Queue[Message] = asyncio.Queue()
    gone, unread = asyncio.Event(), [call.body]

    async def receive() -> MutableMapping[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    answering = asyncio.ensure_future(app({**call.scope, "state": {}}, receive, sent.put))
    try:
        while not (answering.done() and sent.empty()):
            coming = asyncio.ensure_future(sent.get())
            await asyncio.wait({coming, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                continue
            messages = [coming.result()]
            while not sent.empty():
                messages.append(sent.get_nowait())
            yield messages
        answering.result()  # raises what it has failed with
    finally:
        gone.set()
        await asyncio.shield(asyncio.wait({answering}))
