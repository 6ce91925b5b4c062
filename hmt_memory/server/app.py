"""The application: routes, and what stands before and around them. Everything is done by an `Assistant`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from .._version import __version__
from ..errors import HMTError
from . import conversations, embeddings, failures, memory, responses, tracing
from .bodies import ChatRequest
from .calls import check_model
from .chat import ChatCall
from .completions import CompletionCall, CompletionRequest
from .description import STREAMED, TEXT, describe
from .door import Door
from .guard import Fence, Gate
from .mcp import Mounted
from .memory import Known
from .metrics import CONTENT_TYPE, Counted, Metrics
from .pages.routes import STATIC, failure
from .pages.routes import router as pages
from .readiness import Readiness
from .settings import Settings
from .stored_responses import tidy

if TYPE_CHECKING:
    from ..assistant import Assistant
    from .tokens import Tokens


def create_app(
    assistant: Assistant, settings: Settings | None = None, *, tokens: Tokens | None = None, load: bool = False
) -> FastAPI:
    """Make the application.

    Args:
        assistant: answers, and keeps the sessions.
        settings: what is allowed.
        tokens: one of which every caller has to show; None: nobody needs one.
        load: whether the model is loaded as the application starts, behind it, and not only with the first call that needs it.
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
    app.state.settings, app.state.metrics = settings, metrics
    app.state.door = door = Door(settings, metrics)
    app.state.readiness = readiness = Readiness(assistant)
    since = int(time.time())
    tools = Mounted(assistant, app.state.looking)
    app.mount("/mcp", tools)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        """Clear away what unfinished answers have left, serve, and send the last spans."""
        if load:
            readiness.begin()
        await run_in_threadpool(tidy, assistant, 2 * settings.seconds)
        async with tools.manager.run(), door.background.running():
            yield
        await tracing.flush()

    app.router.lifespan_context = running

    def described() -> dict[str, Any]:
        """Return the model as OpenAI lists it."""
        return {"id": assistant.name, "object": "model", "created": since, "owned_by": "hmt-memory"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the server runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Tell whether the model is loaded; if it is not, why."""
        missing = readiness.missing(reason=tokens is None)
        response.status_code = 200 if missing is None else 503
        return {"status": missing or "ready"}

    @app.get("/metrics", responses=TEXT, response_class=PlainTextResponse)
    async def measured(_: Known) -> Response:
        """Count calls, answers and their times, and what is kept in memory, for Prometheus."""
        text = await run_in_threadpool(lambda: metrics.text(assistant.store))
        return Response(text, media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models(_: Known) -> dict[str, Any]:
        """List the model that answers."""
        return {"object": "list", "data": [described()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, _: Known) -> dict[str, Any]:
        """Describe the model that answers."""
        check_model(assistant, name)
        return described()

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatRequest, request: Request, known: Known) -> Response:
        """Answer a conversation: in a session if one is named, from all that it remembers."""
        check_model(assistant, body.model)
        return await door.answer(ChatCall(assistant, settings, body, request.headers, known), request, known)

    @app.post("/v1/completions", responses=STREAMED)
    async def complete(body: CompletionRequest, request: Request, known: Known) -> Response:
        """Continue a text, or several. Nothing is stored."""
        check_model(assistant, body.model)
        return await door.answer(CompletionCall(assistant, settings, body, request.headers), request, known)

    app.include_router(responses.router)
    app.include_router(conversations.router)
    app.include_router(embeddings.router)
    app.include_router(memory.router)
    app.include_router(pages)
    describe(app)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app
