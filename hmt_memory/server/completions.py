"""Completions: texts that the model continues, as OpenAI's older protocol has it. Stateless: what lasts is a conversation."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, model_validator
from sse_starlette import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from ..assistant.continuing import continued
from ..engine.generate import Usage
from ..errors import InputError
from . import failures
from .bodies import Answered
from .chat import CLOSED, SESSION_HEADERS, pieces, whole
from .metrics import Metrics, Timed
from .tracing import Span

if TYPE_CHECKING:
    from ..assistant import Assistant
    from .guard import Gate

_USUAL = 16  # tokens of an answer where nothing is said, as OpenAI has it
_MOST_PROMPTS = 64


class CompletionRequest(Answered):
    """The body of a call of Completions."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "max_tokens": 16}]},
    )

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _text(self) -> CompletionRequest:
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not given or len(given) > _MOST_PROMPTS:
            raise ValueError(f"prompt has {len(given)} texts. Send 1 to {_MOST_PROMPTS}.")
        if not all(isinstance(text, str) for text in given):
            raise ValueError("prompt has token ids, of whichever tokenizer. Send text.")
        if not all(given):
            raise ValueError("a prompt is empty: there is nothing to continue. Send text.")
        if self.suffix:
            raise ValueError("suffix cannot be given: a text is continued at its end. Leave it out.")
        if self.best_of not in (None, 1):
            raise ValueError(f"best_of={self.best_of} cannot be given: leave it out. Only 1 is possible here.")
        return self

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else [text for text in self.prompt if isinstance(text, str)]


class Piece(NamedTuple):
    """A piece of one of several texts."""

    number: int  # of the text
    text: str
    finish_reason: str | None  # once it is whole


class Continuation(Iterator[Piece]):
    """The continuations of several texts, one after the other, as an iterator of pieces; `pieces` of the server runs it.

    Args:
        assistant: whose model continues them.
        texts: the prompts.
        echo: whether each is given out before its continuation.
        options: fields of `Decoding`.
    """

    def __init__(self, assistant: Assistant, texts: list[str], *, echo: bool, options: dict[str, Any]) -> None:
        self._prompts, self._echo = texts, echo
        self._begun = (continued(assistant, text, **options) for text in texts)
        self._writing = next(self._begun)  # what is wrong with the first shows at once
        self.whole = [Piece(0, "", None)]  # the texts so far
        self.finish_reason: str | None = None  # once all are finished
        self.usage = Usage(0, 0, 0)

    def __next__(self) -> Piece:
        if self.finish_reason is not None:
            raise StopIteration
        if self.whole[-1].finish_reason is not None:
            self._writing = next(self._begun)
            self.whole.append(Piece(len(self.whole), "", None))
        number, before, _ = self.whole[-1]
        if self._echo and not before:
            piece = Piece(number, self._prompts[number], None)
        else:
            text = next(self._writing, "")
            piece = Piece(number, text, self._writing.finish_reason)
        self.whole[-1] = piece._replace(text=before + piece.text)
        if piece.finish_reason is not None:
            self.usage = _sum(self.usage, self._writing.usage)
            self.finish_reason = piece.finish_reason if len(self.whole) == len(self._prompts) else None
        return piece


class Texts:
    """The way from calls of Completions to the assistant.

    Args:
        assistant: answers.
        gate: answers that may be written at once.
        metrics: where they are counted.
        longest: tokens of an answer at most, whatever is said.
        seconds: that one call may take.
    """

    def __init__(self, assistant: Assistant, gate: Gate, metrics: Metrics, *, longest: int, seconds: float) -> None:
        self._assistant, self._gate, self._metrics = assistant, gate, metrics
        self._longest, self._seconds = longest, seconds

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Answer a call, whole or in chunks."""
        if any(name in request.headers for name in SESSION_HEADERS) or "session_id" in (body.metadata or {}):
            raise InputError("a text that is completed belongs to no session. Use /v1/chat/completions, or name none.")
        until = anyio.current_time() + self._seconds
        async with AsyncExitStack() as held:
            span = Span("text_completion", self._assistant.name, request.headers, body)
            timed = Timed(self._metrics, held.enter_context(span))
            await held.enter_async_context(self._gate.place())
            held.enter_context(timed)
            if await request.is_disconnected():
                return Response(status_code=CLOSED)
            writing, first = await self._begun(body)
            timed.first()
            about = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
            about["model"] = self._assistant.name
            if body.stream:
                usage = body.stream_options is not None and bool(body.stream_options.include_usage)
                kept = held.pop_all()
                chunks = self._chunks(writing, first, about, usage, kept, until, timed)
                return EventSourceResponse(chunks, background=BackgroundTask(kept.aclose))
            if not await whole(writing, until, request):
                return Response(status_code=CLOSED)
            timed.ends(writing.usage, writing.finish_reason)
            choices = [_choice(text) for text in writing.whole]
            return JSONResponse({**about, "choices": choices, "usage": _usage(writing.usage)})

    async def _begun(self, body: CompletionRequest) -> tuple[Continuation, Piece]:
        """Begin to write. Returns the first piece, too: what is wrong with a call shows by then."""
        options = body.decoding(_USUAL, self._longest)

        def begin() -> tuple[Continuation, Piece]:
            writing = Continuation(self._assistant, body.texts, echo=body.echo, options=options)
            return writing, next(writing)

        return await run_in_threadpool(begin)

    async def _chunks(
        self,
        writing: Continuation,
        first: Piece,
        about: dict[str, Any],
        usage: bool,
        held: AsyncExitStack,
        until: float,
        timed: Timed,
    ) -> AsyncIterator[str]:
        """Yield the chunks of a call as they are written, and hold its place until then."""

        def chunk(piece: Piece) -> str:
            return json.dumps({**about, "choices": [_choice(piece)]})

        async with held:
            try:
                yield chunk(first)
                async with aclosing(pieces(writing, until)) as written:
                    async for piece in written:
                        yield chunk(piece)
                timed.ends(writing.usage, writing.finish_reason)
                if usage:
                    yield json.dumps({**about, "choices": [], "usage": _usage(writing.usage)})
            except Exception as error:
                yield json.dumps(failures.of_stream(error))
            yield "[DONE]"


def _choice(piece: Piece) -> dict[str, Any]:
    return {"index": piece.number, "text": piece.text, "finish_reason": piece.finish_reason, "logprobs": None}


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(one.prompt_tokens + other.prompt_tokens, one.completion_tokens + other.completion_tokens, 0)


def _usage(usage: Usage) -> dict[str, int]:
    asked, written = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
