"""The application: routes, and what stands before and around them. Everything is done by an `Assistant`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from sse_starlette import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from .._version import __version__
from ..errors import HMTError, SessionBusyError, SessionNotFoundError
from . import failures, replays
from .bodies import ChatRequest
from .chat import CLOSED, Chunks, Completion, pieces, session_of, whole
from .completions import CompletionRequest, Texts
from .description import STREAMED, TEXT, describe
from .embeddings import router as embeddings
from .guard import LOCAL_HOSTS, Caller, Fence, Gate, caller
from .mcp import Mounted
from .memory import router
from .metrics import CONTENT_TYPE, Counted, Metrics, Timed
from .pages.routes import STATIC, failure
from .pages.routes import router as pages
from .tracing import Span

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..sessions.answer import Answer
    from .tokens import Tokens


@dataclass(frozen=True)
class Settings:
    """What a server allows."""

    hosts: tuple[str, ...] = LOCAL_HOSTS  # names by which it is called; "*": any
    most_bytes: int = 8 << 20  # of a body
    most_imported: int = 1 << 30  # of the body of an import
    answers: int = 4  # written at once
    looking: int = 8  # calls about sessions and corpora that work at once
    waiting: int = 64  # calls of either kind that wait for their turn
    usual: int = 1024  # tokens of an answer at most, where nothing is said
    longest: int = 8192  # the same, whatever is said
    seconds: float = 600.0  # that one answer may take


Known = Annotated[Caller, Depends(caller)]


def create_app(assistant: Assistant, settings: Settings | None = None, *, tokens: Tokens | None = None) -> FastAPI:
    """Make the application.

    Args:
        assistant: answers, and keeps the sessions.
        settings: what is allowed.
        tokens: one of which every caller has to show; None: nobody needs one.
    """
    settings = settings or Settings()
    # FastAPI's own telemetry would tell whoever collects what was said, in the messages of errors.
    silent: Any = {"tracing": False, "metrics": False, "logs": False}
    # And its pages about the API would load scripts from elsewhere.
    app = FastAPI(title="hmt-memory", version=__version__, telemetry=silent, docs_url=None, redoc_url=None)
    metrics = Metrics()
    app.add_middleware(Fence, hosts=settings.hosts, most_bytes=settings.most_bytes, most_imported=settings.most_imported)
    app.add_middleware(Counted, metrics=metrics)  # before the fence: what that refuses is counted, too
    app.add_exception_handler(Exception, failures.of_others)
    app.add_exception_handler(HMTError, failures.of_ours)
    app.add_exception_handler(RequestValidationError, failures.of_fields)
    app.add_exception_handler(HTTPException, failures.of_http)
    app.state.tokens, app.state.assistant, app.state.failure = tokens, assistant, failure
    app.state.looking = Gate(settings.looking, settings.waiting)
    door = Door(assistant, settings, metrics)
    texts = Texts(assistant, door.gate, metrics, longest=settings.longest, seconds=settings.seconds)
    tools = Mounted(assistant, app.state.looking)
    app.mount("/mcp", tools)
    app.router.lifespan_context = lambda _: tools.manager.run()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the server runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Tell whether the model is loaded."""
        response.status_code = 200 if assistant.is_loaded else 503
        return {"status": "ready" if assistant.is_loaded else "the model is loaded with the first answer"}

    @app.get("/metrics", responses=TEXT, response_class=PlainTextResponse)
    async def measured(_: Known) -> Response:
        """Count calls, answers and their times, for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models(_: Known) -> dict[str, Any]:
        """List the model that answers."""
        return {"object": "list", "data": [door.model()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, _: Known) -> dict[str, Any]:
        """Describe the model that answers."""
        door.check(name)
        return door.model()

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatRequest, request: Request, known: Known) -> Response:
        """Answer a conversation: in a session if one is named, from all that it remembers."""
        return await door.chat(body, request, known)

    @app.post("/v1/completions", responses=STREAMED)
    async def complete(body: CompletionRequest, request: Request, _: Known) -> Response:
        """Continue a text, or several. Nothing is stored."""
        door.check(body.model)
        return await texts.complete(body, request)

    app.include_router(router)
    app.include_router(embeddings)
    app.include_router(pages)
    describe(app)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


async def _again(whole: dict[str, Any], usage: bool) -> AsyncIterator[str]:
    """Yield the chunks of an answer that was given before."""
    for chunk in Chunks(whole).again(whole, usage=usage):
        yield json.dumps(chunk)
    yield "[DONE]"


class Door:
    """The way from calls to the assistant.

    Args:
        assistant: answers.
        settings: what is allowed.
        metrics: where answers are counted.
    """

    def __init__(self, assistant: Assistant, settings: Settings, metrics: Metrics) -> None:
        self._assistant, self._settings, self._metrics = assistant, settings, metrics
        self._replays = replays.Replays()
        self.gate, self._since = Gate(settings.answers, settings.waiting), int(time.time())
        self._answering: set[str] = set()  # the sessions in which an answer is being written

    def model(self) -> dict[str, Any]:
        """Return the model as OpenAI lists it."""
        return {"id": self._assistant.name, "object": "model", "created": self._since, "owned_by": "hmt-memory"}

    def check(self, name: str | None) -> None:
        """Refuse another model's name. None is the model that answers.

        Raises:
            HTTPException: it is another's.
        """
        if name not in (None, self._assistant.name):
            raise HTTPException(404, f"there is no model {name!r} here, but {self._assistant.name!r}.")

    async def chat(self, body: ChatRequest, request: Request, caller: Caller) -> Response:
        """Answer a call of Chat Completions, whole or in chunks."""
        self.check(body.model)
        name = session_of(request.headers, body)
        own = None if name is None else caller.own(name)
        if caller.read_only and own is not None:
            raise HTTPException(403, "this token may look only: it cannot add to a session.")
        key = request.headers.get(replays.HEADER)
        asked = "" if key is None else json.dumps([name, body.model_dump()], default=str)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        before = self._replays.find(caller.tenant, key, asked)
        if before is not None:
            if before.version != await run_in_threadpool(self._version, own) or before.answered is None:
                raise HTTPException(410, replays.GONE)
            if body.stream:
                return EventSourceResponse(_again(before.answered, usage))
            return JSONResponse(before.answered)
        until = anyio.current_time() + self._settings.seconds
        async with AsyncExitStack() as held:
            keeper = held.enter_context(self._replays.keeping(caller.tenant, key, asked))
            held.enter_context(self._alone(own))
            span = Span("chat", self._assistant.name, request.headers, body, view=name is not None)
            timed = Timed(self._metrics, held.enter_context(span))
            await held.enter_async_context(self.gate.place())
            held.enter_context(timed)
            if await request.is_disconnected():
                return Response(status_code=CLOSED)
            answer, first = await self._begun(body, own, caller)
            timed.first()
            completion = Completion(answer, self._assistant.name, name, caller)

            def finished() -> None:
                """Note that the answer is whole, and stored: from here on it is given again for its key."""
                if answer.finish_reason is not None and timed.ends(answer.usage, answer.finish_reason) and key is not None:
                    keeper.keep(completion.whole(), self._version(own))

            if body.stream:
                kept = held.pop_all()
                chunks = self._chunks(answer, first, completion, usage, kept, until, finished)
                return EventSourceResponse(chunks, background=BackgroundTask(kept.aclose))
            try:
                if not await whole(answer, until, request):
                    return Response(status_code=CLOSED)
            finally:
                finished()
            return JSONResponse(completion.whole())

    def _version(self, session: str | None) -> replays.Version:
        """Return what changes whenever something of a session is forgotten; None: there is none."""
        try:
            return None if session is None else self._assistant.store.session(session).epoch()
        except SessionNotFoundError:
            return None

    @contextmanager
    def _alone(self, session: str | None) -> Iterator[None]:
        """Hold a session while an answer is written in it.

        Raises:
            SessionBusyError: another call holds it.
        """
        if session is None:
            yield
            return
        if session in self._answering:
            raise SessionBusyError("another call is being answered in this session. Try again when it is finished.")
        self._answering.add(session)
        try:
            yield
        finally:
            self._answering.discard(session)

    async def _begun(self, body: ChatRequest, session: str | None, caller: Caller) -> tuple[Answer, str | None]:
        """Begin an answer. Returns it with its first piece: what is wrong with a call shows by then."""

        def begin() -> tuple[Answer, str | None]:
            said = [message.plain() for message in body.messages]
            options = body.options(self._settings.usual, self._settings.longest)
            answer = self._assistant.reply(said, session=session, namespace=caller.namespace, **options)
            return answer, next(answer, None)

        return await run_in_threadpool(begin)

    async def _chunks(
        self,
        answer: Answer,
        first: str | None,
        completion: Completion,
        usage: bool,
        held: AsyncExitStack,
        until: float,
        finished: Callable[[], object],
    ) -> AsyncIterator[str]:
        """Yield the chunks of an answer as they are written, and hold its place until then."""
        async with held:
            try:
                yield json.dumps(completion.chunks.opening())
                if first:
                    yield json.dumps(completion.piece(first))
                async with aclosing(pieces(answer, until)) as written:
                    async for piece in written:
                        finished()
                        yield json.dumps(completion.piece(piece))
                finished()
                for chunk in (*completion.rest(), *completion.chunks.closing(completion.whole(), usage=usage)):
                    yield json.dumps(chunk)
            except Exception as error:
                yield json.dumps(failures.of_stream(error))
            finally:
                finished()
            yield "[DONE]"
