"""Who may call, from where, and how much: tokens, origins, sizes, and how many answers are written at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Request
from starlette.exceptions import HTTPException

from ..errors import InputError
from ..sessions.names import ASIDE, is_aside, normal
from .failures import response_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .tokens import Tokens

COOKIE = "hmt_token"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
_LONGEST_NAME = 140  # of a session or corpus, with that of a token before it
# What routes end with, behind the name of a session or corpus.
_ENDINGS = ("messages", "recall", "fork", "corpora", "export", "import", "verify", "documents", "items", "prepare")
_BEFORE_AN_ID = "items"  # what the last part of a route with an id stands behind


def named_in(address: str) -> str:
    """Return the name of a session or corpus that the rest of an address begins with.

    >>> named_in("trips/2026/messages"), named_in("alice/items/msg_1"), named_in("alice")
    ('trips/2026', 'alice', 'alice')
    """
    *before, last = address.split("/")
    if before and last in _ENDINGS:
        return "/".join(before)
    return "/".join(before[:-1]) if len(before) > 1 and before[-1] == _BEFORE_AN_ID else address


@dataclass(frozen=True)
class Caller:
    """Whoever calls: the name space of the sessions that are seen, and whether they may be changed."""

    tenant: str = ""  # empty: the only one, whose sessions have their own names
    read_only: bool = False

    def own(self, name: str) -> str:
        """Return the name in the store of a session or corpus that this caller names.

        Raises:
            InputError: the name is empty, too long, has white space around it, or ends as the address of something else does.
        """
        *before, last = name.split("/")
        impossible = is_aside(name) or last in _ENDINGS or before[-1:] == [_BEFORE_AN_ID]
        if not name.strip() or name != name.strip() or len(name) > _LONGEST_NAME or impossible:
            raise InputError(
                f"a name has 1 to {_LONGEST_NAME} characters, none of white space around it, and no end such as "
                f"/{_ENDINGS[0]} or /{_BEFORE_AN_ID}/1, which mean something in an address. Choose another name."
            )
        return self._stored(name)

    def aside(self, name: str) -> str:
        """Return the name in the store of a session that is kept for this caller's answers, and listed nowhere."""
        return self._stored(f"{ASIDE}{name}")

    def sees(self, name: str) -> bool:
        """Return whether a session or corpus of the store is this caller's."""
        return not self.tenant or name.startswith(f"{self.tenant}/")

    def _stored(self, name: str) -> str:
        return normal(f"{self.tenant}/{name}" if self.tenant else name)

    def shown(self, name: str) -> str | None:
        """Return the name by which this caller knows a session or corpus; None: it is another one's, or listed nowhere."""
        if is_aside(name) or not self.sees(name):
            return None
        return name.removeprefix(f"{self.tenant}/") if self.tenant else name

    @property
    def namespace(self) -> Hashable:
        """The name space within which prompts that were read make the next call faster."""
        return ("server", self.tenant)


async def caller(request: Request) -> Caller:
    """Return who calls: whose token is shown, where the application has tokens.

    A browser shows it in a cookie, which counts for calls that this server's own pages make, and for addresses that somebody
    has typed.

    Args:
        request: the call.

    Raises:
        HTTPException: it shows none that is known.
    """
    tokens: Tokens | None = request.app.state.tokens
    if tokens is None:
        return Caller()
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if not kind and from_here(request):
        kind, secret = "bearer", request.cookies.get(COOKIE, "")
    token = tokens.of(secret.strip()) if kind.lower() == "bearer" else None
    if token is None:
        raise HTTPException(401, "no token is shown that is known here. Send it as: Authorization: Bearer hmt-...")
    return Caller(token.tenant, token.read_only)


def from_here(request: Request) -> bool:
    """Return whether a browser says that a page of this server makes a call, or nobody's page."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin" or (site == "none" and request.method == "GET")
    origin = request.headers.get("origin")
    if origin is None:
        return request.method == "GET"
    return urlsplit(origin).netloc == request.headers.get("host")


class Gate:
    """Lets so many calls work at once, and so many wait.

    Args:
        working: at once.
        waiting: that wait for their turn.
    """

    def __init__(self, working: int, waiting: int) -> None:
        self._free, self._most = asyncio.Semaphore(working), working + waiting
        self._inside = 0  # calls that work or wait

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be one of those that work or wait.

        Raises:
            HTTPException: too many wait already.
        """
        if self._inside >= self._most:
            raise HTTPException(429, "too many calls are waiting. Try again in a moment.")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def place(self, turn: ExitStack | None = None) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Args:
            turn: what holds a turn already, and is closed with the place.

        Raises:
            HTTPException: too many wait already.
        """
        with turn or ExitStack() as inside:
            if turn is None:
                inside.enter_context(self.turn())
            async with self._free:
                yield


class Fence:
    """Refuses calls by other names, calls that pages of other sites make, and bodies that are too large.

    A browser can be led here by a name that somebody else's server gives it; what it then sends says so.

    Args:
        app: what is behind it.
        hosts: names by which this server is called; pages from there may call it. "*": any, and pages from anywhere: then
            every route has to ask who calls (`caller`), whose cookie counts for no other page.
        most_bytes: of a body.
        most_imported: of the body of an import.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], most_bytes: int, most_imported: int) -> None:
        self._app, self._hosts = app, hosts
        self._most, self._most_imported = most_bytes, most_imported

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        most = self._most_imported if scope["path"].endswith("/import") else self._most
        length = headers.get(b"content-length", "0")
        refused = self._refused(headers)
        if refused is None and length.isdigit() and int(length) > most:
            refused = (413, _too_large(most))
        if refused is not None:
            await response_of(*refused)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, _too_large(most))
            return message

        await self._app(scope, counted, send)

    def _refused(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """Return the status and the message by which a call is refused; None: it may pass."""
        if "*" in self._hosts:
            return None
        if _host("//" + headers.get(b"host", "")) not in self._hosts:
            return 400, "this server is not called by that name. Start it with --allow-host NAME."
        origin = headers.get(b"origin")
        if headers.get(b"sec-fetch-site") == "cross-site" or (origin is not None and _host(origin) not in self._hosts):
            return 403, "pages of other sites may not call this server."
        if any(name in headers for name in _FORWARDED):
            return 403, "a proxy has passed this on, and nobody needs a token here. Make one: hmt serve --token NAME."
        return None


def _too_large(most: int) -> str:
    return f"the body is longer than {most:,} bytes. Send less at once."


def _host(url: str) -> str | None:
    """Return the name of a host in a URL, of IPv6 in brackets; None: there is none."""
    try:
        name = urlsplit(url).hostname
    except ValueError:
        return None
    return f"[{name}]" if name and ":" in name else name
