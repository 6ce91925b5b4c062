"""A session as tools of the Model Context Protocol, over HTTP and on standard streams. Everything is done by an `Assistant`.

Small on purpose: what is in a tool's description costs its caller tokens in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import ToolAnnotations
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from .._version import __version__
from ..errors import HMTError
from . import failures
from .guard import Caller, caller
from .memory import described

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from ..assistant import Assistant
    from .guard import Gate

_ABOUT = (
    "What was said in conversations, word for word. Recall before you answer what was told earlier; remember what is told now "
    "and may be asked for later."
)
_LOOKS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
_ERASES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
_MOST = 100  # of one list
_KEY = "hmt_memory.subject"  # in the scope of a call


@dataclass(frozen=True)
class Subject:
    """The session that a call is about, and whoever calls."""

    caller: Caller
    name: str  # as the caller knows it

    @property
    def stored(self) -> str:
        """The session's name in the store."""
        return self.caller.own(self.name)


def tools(assistant: Assistant, subject_of: Callable[[Any], Subject], *, read_only: bool = False) -> MCPServer:
    """Make a server of the tools.

    Args:
        assistant: keeps the sessions.
        subject_of: says what a call is about, by its context.
        read_only: whether to leave out the tools that change something.
    """
    server = MCPServer("hmt-memory", version=__version__, instructions=_ABOUT, log_level="WARNING")

    @contextmanager
    def about(context: Context[Any, Any], *, writing: bool = False) -> Iterator[Subject]:
        """Say what a call is about, and turn errors of this package into such as its caller may read."""
        try:
            subject = subject_of(context)
            if writing and subject.caller.read_only:
                raise ToolError("this token may look only.")
            yield subject
        except HMTError as error:
            raise ToolError(failures.message_of(error)) from error

    @server.tool(annotations=_LOOKS)
    def recall(
        query: Annotated[str, Field(description="A question, or what to look for.", min_length=1, max_length=100_000)],
        context: Context[Any, Any],
        top_k: Annotated[int, Field(description="How many passages at most.", ge=1, le=_MOST)] = 5,
    ) -> list[dict[str, Any]]:
        """Find what was said that bears on a question: passages word for word, the best first."""
        with about(context) as subject:
            if not assistant.store.has("session", subject.stored):
                return []
            recalled = assistant.recall(query, session=subject.stored, top_k=top_k)
            return [
                {
                    "text": passage.text,
                    "said_by": [message.role for message in passage.messages],
                    "message_ids": [message.id for message in passage.messages],
                    "source": subject.caller.shown(passage.source),
                    "said_at": passage.created_at.isoformat(),
                    "weight": round(passage.weight, 4),
                }
                for passage in recalled
            ]

    @server.tool(annotations=_LOOKS)
    def list_messages(
        context: Context[Any, Any],
        start: Annotated[int, Field(description="Of the first message; negative: from the end.")] = -20,
        stop: Annotated[int | None, Field(description="Behind the last message; none: the end.")] = None,
    ) -> list[dict[str, Any]]:
        """List messages of the session in order, as a slice does; by default the latest 20, at most 100."""
        with about(context) as subject:
            if not assistant.store.has("session", subject.stored):
                return []
            session = assistant.store.session(subject.stored)
            first, last, _ = slice(start, stop).indices(session.stats()["messages"])
            stored = session.messages(first, min(last, first + _MOST))
            return [
                {"id": message.id, "role": message.role, "text": message.content, "said_at": message.created_at.isoformat()}
                for message in stored
            ]

    @server.tool(annotations=_LOOKS)
    def list_sessions(context: Context[Any, Any]) -> list[str]:
        """List the names of all sessions, at most 1,000."""
        with about(context) as subject:
            shown = (subject.caller.shown(name) for name in assistant.store.sessions())
            return [name for name in shown if name is not None][:1000]

    @server.tool(annotations=_LOOKS)
    def status(context: Context[Any, Any]) -> dict[str, Any]:
        """Describe the session: how many messages and tokens it has, and since when."""
        with about(context) as subject:
            if not assistant.store.has("session", subject.stored):
                return {"name": subject.name, "messages": 0, "tokens": 0}
            return described(assistant.store.session(subject.stored).stats(), subject.caller)

    if read_only:
        return server

    @server.tool(annotations=_ADDS)
    def remember(
        text: Annotated[str, Field(description="In full sentences that can be understood alone.", min_length=1)],
        context: Context[Any, Any],
    ) -> dict[str, Any]:
        """Add something to the session as said by the user. It is on disk then; a new session is made."""
        with about(context, writing=True) as subject:
            (message,) = assistant.session(subject.stored).add({"role": "user", "content": text})
            return {"message_id": message}

    @server.tool(annotations=_ERASES)
    def forget(
        message_ids: Annotated[list[int], Field(description="As recall and list_messages give them.", min_length=1)],
        context: Context[Any, Any],
    ) -> dict[str, Any]:
        """Erase messages of the session for good, and every trace of them in its memory."""
        with about(context, writing=True) as subject:
            assistant.store.session(subject.stored)  # checks that it exists
            forgotten = assistant.session(subject.stored).forget(message_ids)
            also = [shown for other in forgotten.also_in if (shown := subject.caller.shown(other)) is not None]
            return {"forgotten": forgotten.messages, "also_in": also}

    return server


class Mounted:
    """The tools over HTTP, at `/NAME` of where it is mounted: each call by itself, with the token that it shows.

    Args:
        assistant: keeps the sessions.
        gate: calls that may work at once.
    """

    def __init__(self, assistant: Assistant, gate: Gate) -> None:
        server = tools(assistant, lambda context: context.request_context.request.scope[_KEY])
        self._gate = gate
        # Hosts and origins are seen to before this, see `guard.Fence`.
        self.manager = StreamableHTTPSessionManager(server._lowlevel_server, json_response=True, stateless=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call. Nothing is ever said without being asked, so there is no stream to listen to."""
        if scope["type"] != "http" or scope["method"] != "POST":
            refusal = failures.response_of(405, "calls of the Model Context Protocol are posted.")
            refusal.headers["Allow"] = "POST"
            await refusal(scope, receive, send)
            return
        try:
            known = await caller(Request(scope, receive))
            name = scope["path"].removeprefix(scope.get("root_path", "")).strip("/")
            known.own(name)  # checks it
            async with self._gate.place():
                await self.manager.handle_request({**scope, _KEY: Subject(known, name)}, receive, send)
        except HMTError as error:
            status, code = failures.status_of(error)
            await failures.response_of(status, failures.message_of(error), code=code)(scope, receive, send)
        except HTTPException as error:
            await failures.response_of(error.status_code, str(error.detail))(scope, receive, send)
