"""Chat Completions: a call becomes a reply of the assistant, its pieces become chunks. Knows both forms; no route."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import InputError
from . import failures

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.requests import Request

    from ..engine.chances import Chance, TokenChance
    from ..sessions.answer import Answer
    from .bodies import ChatRequest
    from .guard import Caller

CLOSED = 499  # as others name a call whose client went away
SESSION_HEADERS = ("x-hmt-session", "x-session-id")
_OPEN_WEBUI = "x-openwebui-chat-id"  # its calls for titles and tags, which are not streamed, have the same
_LOOKS = 0.1  # seconds between looks whether a client is still there
_NOT_TO_LAST = ("local:", "channel:")  # what the ids of chats begin with that it marks as temporary, and of channels


def session_of(headers: Headers, body: ChatRequest) -> str | None:
    """Return the name of the session that a call belongs to; None: it is remembered nowhere.

    Args:
        headers: of the call; they come before the body's metadata.
        body: of the call.

    Raises:
        InputError: the name is no text.
    """
    named: Any = next((_decoded(headers[name]) for name in SESSION_HEADERS if name in headers), None)
    if named is None:
        named = (body.metadata or {}).get("session_id")
    if named is None and body.stream:
        chat = headers.get(_OPEN_WEBUI)
        named = None if chat is None or chat.startswith(_NOT_TO_LAST) else chat
    if named is not None and not isinstance(named, str):
        raise InputError("session_id is the name of a session: a string.")
    return named


def _decoded(header: str) -> str:
    """Return a header's text as it was sent: in UTF-8, as far as it is."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


class Completion:
    """An answer as Chat Completions has it.

    Args:
        answer: being written.
        model: its name.
        session: by which the caller knows it; None: none.
        caller: knows sessions and corpora by their names in its own name space.
    """

    def __init__(self, answer: Answer, model: str, session: str | None, caller: Caller) -> None:
        self._answer, self._session, self._caller = answer, session, caller
        self._about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.chunks = Chunks(self._about)
        self._told, self._given = 0, 0  # tokens whose log-probabilities were given out, and characters beyond them

    def piece(self, text: str) -> dict[str, Any]:
        """Return the chunk of a piece of text, with the log-probabilities of the tokens that it completes."""
        self._given += len(text)
        fresh = []
        for each in self._answer.chances[self._told :]:  # more tokens than have been given out may be there
            self._given -= len(each.chosen.text)
            if self._given < 0:
                self._given += len(each.chosen.text)
                break
            fresh.append(each)
        self._told += len(fresh)
        return self.chunks.piece(text, logprobs_of(fresh))

    def rest(self) -> Iterator[dict[str, Any]]:
        """Yield a chunk of the log-probabilities that no chunk had, if there are any; once the answer is finished."""
        if left := self._answer.chances[self._told :]:
            yield self.chunks.piece("", logprobs_of(left))

    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is finished."""
        calls = self._calls()
        message: dict[str, Any] = {"role": "assistant", "content": self._answer.text or (None if calls else "")}
        message |= {"tool_calls": calls} if calls else {}
        logprobs = logprobs_of(self._answer.chances)
        choice = {"index": 0, "message": message, "finish_reason": self._answer.finish_reason, "logprobs": logprobs}
        return {
            **self._about,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
            "hmt": self._remembered(),
        }

    def _calls(self) -> list[dict[str, Any]]:
        return [call.to_dict() for call in self._answer.tool_calls]

    def _usage(self) -> dict[str, int]:
        usage = self._answer.usage
        asked = usage.prompt_tokens if self._session is None else usage.view_tokens
        return {
            "prompt_tokens": asked,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": asked + usage.completion_tokens,
        }

    def _remembered(self) -> dict[str, Any]:
        """Return what was recalled for the answer, and where it was stored."""
        shown = self._caller.shown
        recalled = [passage.to_dict() | {"source": shown(passage.source)} for passage in self._answer.recalled]
        about: dict[str, Any] = {"recalled": recalled, "view_tokens": self._answer.usage.view_tokens}
        if self._session is not None:
            about |= {"session": self._session, "message_ids": list(getattr(self._answer, "message_ids", ()))}
        return about


class Chunks:
    """An answer as it is streamed: the first chunk, those of its pieces, and the last ones, which its whole body tells.

    Args:
        about: id, time and model of the answer, as its body has them.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = {name: about[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

    def opening(self) -> dict[str, Any]:
        """Return the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str, logprobs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the chunk of a piece of text, with the log-probabilities of its tokens if there are any."""
        return self._chunk({"content": text}, logprobs=logprobs)

    def closing(self, whole: Mapping[str, Any], *, usage: bool) -> Iterator[dict[str, Any]]:
        """Yield the last chunks: calls of functions, how it ended, and if it is wanted the usage.

        Args:
            whole: the body of the answer.
            usage: whether a last chunk has its counts.
        """
        (choice,) = whole["choices"]
        calls = [call | {"index": number} for number, call in enumerate(choice["message"].get("tool_calls", ()))]
        if calls:
            yield self._chunk({"tool_calls": calls})
        yield self._chunk({}, choice["finish_reason"]) | {"hmt": whole["hmt"]}
        if usage:
            yield {**self._about, "choices": [], "usage": whole["usage"]}

    def again(self, whole: Mapping[str, Any], *, usage: bool) -> Iterator[dict[str, Any]]:
        """Yield all chunks of an answer that is whole already.

        Args:
            whole: its body.
            usage: whether a last chunk has its counts.
        """
        yield self.opening()
        if text := whole["choices"][0]["message"]["content"]:
            yield self.piece(text, whole["choices"][0]["logprobs"])
        yield from self.closing(whole, usage=usage)

    def _chunk(
        self, delta: Mapping[str, Any], finish_reason: str | None = None, logprobs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return {**self._about, "choices": [choice]}


def logprobs_of(chances: Sequence[TokenChance]) -> dict[str, Any] | None:
    """Return log-probabilities as Chat Completions has them; None: there are none."""

    def told(chance: Chance) -> dict[str, Any]:
        whole = "\N{REPLACEMENT CHARACTER}" not in chance.text
        return {"token": chance.text, "logprob": chance.logprob, "bytes": list(chance.text.encode()) if whole else None}

    content = [told(each.chosen) | {"top_logprobs": [told(other) for other in each.likeliest]} for each in chances]
    return {"content": content, "refusal": None} if content else None


Piece = TypeVar("Piece", covariant=True)


class Written(Protocol[Piece]):
    """What is written piece by piece: an answer, or several texts."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, there with the last piece; None before."""
        ...

    def __next__(self) -> Piece: ...


async def whole(answer: Written[Any], until: float, request: Request) -> bool:
    """Write an answer to its end. Returns whether its client is still there; if not, it may have no end.

    Args:
        answer: being written.
        until: by the clock of the event loop.
        request: the call.

    Raises:
        HTTPException: it is later than that.
    """
    looked = time.monotonic()
    try:
        async with aclosing(pieces(answer, until)) as written:
            async for _ in written:
                if time.monotonic() - looked < _LOOKS or answer.finish_reason is not None:
                    continue
                if await request.is_disconnected():
                    return False
                looked = time.monotonic()
    except TimeoutError as error:
        raise HTTPException(504, failures.TOO_LONG) from error
    return True


async def pieces(answer: Written[Piece], until: float) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of an answer, which is written in another thread. Whoever stops early stops the writing, too.

    Args:
        answer: being written.
        until: by the clock of the event loop.

    Raises:
        TimeoutError: it is later than that, and the answer is not finished.
    """
    loop, gone = asyncio.get_running_loop(), threading.Event()
    last = time.monotonic() + until - anyio.current_time()
    written: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

    def write() -> None:
        piece: Any = answer
        while piece is not None and not gone.is_set():
            try:
                if answer.finish_reason is None and time.monotonic() > last:
                    raise TimeoutError
                piece = next(answer, None)
            except BaseException as error:
                loop.call_soon_threadsafe(written.put_nowait, error)
                return
            loop.call_soon_threadsafe(written.put_nowait, piece)

    writing = asyncio.ensure_future(run_in_threadpool(write))
    try:
        while (piece := await written.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        gone.set()
        with anyio.CancelScope(shield=True):  # the token that is being computed
            await writing
