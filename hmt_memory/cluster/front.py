"""The front of the replicas: each call goes to the one that holds its session, and its answer comes back as it is written."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from ..server import failures
from ..server.door import END
from ..server.guard import Fence, caller
from ..server.metrics import CONTENT_TYPE
from ..server.pages.routes import failure
from .affinity import key_of
from .asgi import Sent, received
from .measuring import merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive, Scope, Send

    from ..server.settings import Settings
    from ..server.tokens import Tokens

_DIED = "the worker that answered has died. What it had stored stays stored; another one has taken over: try again."
_NONE_LEFT = "no worker can answer at the moment. Try again in a while."
_TOO_MANY = "too many calls are waiting. Try again in a moment."
_log = logging.getLogger(__name__)
Answering = Callable[[str, Sent], AsyncIterator[list[Any]]]  # by a replica: of an affinity key, a call


def front(answering: Answering, measured: Callable[[], Any], settings: Settings, tokens: Tokens | None) -> Starlette:
    """Make the application that passes calls on.

    Args:
        answering: lets a replica answer.
        measured: asks all replicas for their metrics.
        settings: what is allowed.
        tokens: one of which every caller has to show; None: nobody needs one.
    """

    async def metrics(request: Request) -> Response:
        """Add up what the replicas have counted."""
        await caller(request)
        texts: Sequence[bytes] = await measured()
        return Response(merged(texts), media_type=CONTENT_TYPE)

    fence = Middleware(Fence, hosts=settings.hosts, most_bytes=settings.most_bytes, most_imported=settings.most_imported)
    routes = [Route("/metrics", metrics), Mount("/", _Front(answering))]
    handlers: Mapping[Any, Any] = {HTTPException: failures.of_http, Exception: failures.of_others}
    app = Starlette(routes=routes, middleware=[fence], exception_handlers=handlers)
    app.state.tokens, app.state.failure = tokens, failure
    return app


class _Front:
    """Passes calls on.

    Args:
        answering: lets a replica answer.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, and its answer back."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

        call = await received(scope, receive)
        if call is None:
            return
        answer = _Answer(send)
        try:
            async for messages in self._answering(await _key(scope, call), call):
                for message in messages:
                    await answer.send(message)
        except BackPressureError:
            await answer.refuse(429, _TOO_MANY)
        except DeploymentUnavailableError:
            await answer.refuse(503, _NONE_LEFT)
        except RayTaskError:
            _log.exception("an answer failed")
            await answer.refuse(500, failures.UNFORESEEN)
        except (RayError, RayServeException):
            _log.warning("a worker has died while it answered")
            await answer.refuse(503, _DIED)


class _Answer:
    """An answer on its way back.

    Args:
        send: to whoever calls.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._begun, self._streams = send, False, False

    async def send(self, message: Message) -> None:
        """Send the next part."""
        if message["type"] == "http.response.start":
            self._begun = True
            self._streams = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        await self._send(message)

    async def refuse(self, status: int, message: str) -> None:
        """End it with an error: as a response if none has begun, as an event of a stream, or by breaking off.

        Raises:
            ConnectionError: it was neither.
        """
        if not self._begun:
            response = failures.response_of(status, message)
            await self._send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
            await self._send({"type": "http.response.body", "body": response.body})
        elif self._streams:
            events = (json.dumps(failures.body_of(status, message)), END)
            body = "".join(f"data: {event}\n\n" for event in events).encode()
            await self._send({"type": "http.response.body", "body": body})
        else:
            raise ConnectionError(message)


async def _key(scope: Scope, call: Sent) -> str:
    """Return what all calls have in common that one replica should answer; empty: any may."""
    try:
        known = await caller(Request(scope))
    except HTTPException:  # the replica says so
        return ""
    key = key_of(call.scope["path"], Headers(raw=call.scope["headers"]), call.body)
    return "" if key is None else f"{known.tenant}/{key}"
