"""Who may call, from where, and how much: tokens, origins, sizes, and how many answers are written at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.exceptions import HTTPException

from .failures import response_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .tokens import Tokens

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Caller:
    """Whoever calls: the name space of the sessions that are seen, and whether they may be changed."""

    tenant: str = ""  # empty: the only one, whose sessions have their own names
    read_only: bool = False

    def own(self, name: str) -> str:
        """Return the name in the store of a session or corpus that this caller names."""
        return f"{self.tenant}/{name}" if self.tenant else name

    def shown(self, name: str) -> str | None:
        """Return the name by which this caller knows a session or corpus; None: it is another one's."""
        if not self.tenant:
            return name
        return name.removeprefix(f"{self.tenant}/") if name.startswith(f"{self.tenant}/") else None

    @property
    def namespace(self) -> Hashable:
        """The name space within which prompts that were read make the next call faster."""
        return ("server", self.tenant)


def caller(request: Request) -> Caller:
    """Return who calls: whose token is shown, where the application has tokens.

    Args:
        request: the call.

    Raises:
        HTTPException: it shows none that is known.
    """
    tokens: Tokens | None = request.app.state.tokens
    if tokens is None:
        return Caller()
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    token = tokens.of(secret.strip()) if kind.lower() == "bearer" else None
    if token is None:
        raise HTTPException(401, "no token is shown that is known here. Send it as: Authorization: Bearer hmt-...")
    return Caller(token.name, token.read_only)


class Gate:
    """Lets so many answers be written at once, and so many wait.

    Args:
        answers: written at once.
        waiting: that wait for their turn.
    """

    def __init__(self, answers: int, waiting: int) -> None:
        self._free, self._waiting, self._most = asyncio.Semaphore(answers), 0, waiting

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises:
            HTTPException: too many wait already.
        """
        if self._free.locked() and self._waiting >= self._most:
            raise HTTPException(429, "too many answers are being written. Try again in a moment.")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class Fence:
    """Refuses calls from pages of other sites, and bodies that are too large, before anything else sees them.

    Args:
        app: what is behind it.
        hosts: names by which this server is called; pages that come from one may call it.
        most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], most_bytes: int) -> None:
        self._app, self._hosts, self._most = app, hosts, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not self._known(origin):
            await response_of(403, "pages of other sites may not call this server.")(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            await self._too_large(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, self._large)
            return message

        await self._app(scope, counted, send)

    @property
    def _large(self) -> str:
        return f"the body is longer than {self._most:,} bytes. Send less at once."

    def _known(self, origin: str) -> bool:
        parts = urlsplit(origin)
        name = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
        return parts.scheme in ("http", "https") and ("*" in self._hosts or name in self._hosts)

    async def _too_large(self, scope: Any, receive: Any, send: Any) -> None:
        await response_of(413, self._large)(scope, receive, send)
