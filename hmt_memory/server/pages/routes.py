"""The routes of the pages. They show; what changes something goes through the API, or through an `Assistant` as it does there.

Whoever looks is known by a cookie, which holds for calls that these pages themselves make, see `guard.caller`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ...errors import InputError, SessionNotFoundError
from ..guard import COOKIE, Caller, caller, from_here
from ..memory import assistant_of, described, place
from .drawing import bar, heat

if TYPE_CHECKING:
    from ...retrieval.citations import Message
    from ...sessions.explaining import Explanation
    from ...sessions.session import Session
    from ..tokens import Tokens

STATIC = Path(__file__).parent / "static"
_LATEST = 50  # messages of one page
_MOST = 500  # rows of one table
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",  # with none, browsers would not say where a form was sent from
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def _moment(text: str) -> str:
    """Write a time of ISO 8601 as people read it.

    >>> _moment("2026-03-09T08:05:01+00:00")
    '2026-03-09 08:05'
    """
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M")


_templates = Environment(
    loader=PackageLoader("hmt_memory.server.pages"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["moment"] = _moment


def page(request: Request, template: str, status: int = 200, /, **shown: Any) -> HTMLResponse:
    """Return a page, or a part of one.

    Args:
        request: the call.
        template: its file.
        status: of the response.
        **shown: what the template shows, all of it as text.
    """
    shown["signed_in"] = COOKIE in request.cookies
    return HTMLResponse(_templates.get_template(template).render(**shown), status, _HEADERS)


def failure(request: Request, status: int, message: str) -> Response | None:
    """Return the page of an error; None for calls that are not made by a person in a browser."""
    if request.url.path.startswith(("/v1", "/mcp")) or "text/html" not in request.headers.get("accept", ""):
        return None
    if status == 401:
        return RedirectResponse("/sign-in", 303)
    return page(request, "failure.html", status, status=status, message=message)


async def _reader(request: Request) -> Caller:
    """Return who looks; a part of a page that is fetched by nobody who is known leads to where to sign in."""
    try:
        return await caller(request)
    except HTTPException as error:
        if "hx-request" in request.headers:
            raise HTTPException(401, error.detail, {"HX-Redirect": "/sign-in"}) from error
        raise


Known = Annotated[Caller, Depends(_reader)]
Memory = Annotated[Any, Depends(assistant_of)]  # an `Assistant`; FastAPI would look into its type
Words = Annotated[str, Query(min_length=1, max_length=10_000)]
router = APIRouter(include_in_schema=False)
looking = APIRouter(dependencies=[Depends(place)])  # what takes a while


@looking.get("/")
def overview(request: Request, known: Known, memory: Memory) -> Response:
    """Show all sessions and corpora."""
    store = memory.store
    names = [name for name in store.sessions() if known.shown(name) is not None]
    sessions = _counts(names, store.session, known)
    sessions.sort(key=lambda one: one["updated_at"], reverse=True)
    corpora = [name for name in store.corpora() if known.shown(name) is not None]
    return page(
        request,
        "overview.html",
        sessions=sessions,
        more_sessions=len(names) > _MOST,
        corpora=_counts(corpora, store.corpus, known),
    )


def _counts(names: Sequence[str], opened: Callable[[str], Any], known: Caller) -> list[dict[str, Any]]:
    """Return the counts of sessions or corpora, without those that are gone by now."""
    found = []
    for name in names[:_MOST]:
        with suppress(SessionNotFoundError):
            found.append(described(opened(name).stats(), known))
    return found


@looking.get("/look/search")
def search(request: Request, known: Known, memory: Memory, query: Words) -> Response:
    """Show the messages of all sessions that have words."""
    own = [name for name in memory.store.sessions() if known.shown(name) is not None]
    found = memory.store.search(query, top_k=20, names=own)
    return page(request, "found.html", found=[{"source": known.shown(one.source), "text": one.text} for one in found])


@looking.get("/look/sessions/{name:path}")
def session(request: Request, name: str, known: Known, memory: Memory) -> Response:
    """Show a session: its latest messages, and what can be done with it."""
    stored = memory.store.session(known.own(name))
    stats = described(stored.stats(), known)
    return page(request, "session.html", stats=stats, **_messages(stored, name, known, None))


@looking.get("/look/messages/{name:path}")
def messages(
    request: Request, name: str, known: Known, memory: Memory, before: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    """Show messages of a session: the latest, or those before a number."""
    return page(request, "messages.html", **_messages(memory.store.session(known.own(name)), name, known, before))


def _messages(stored: Any, name: str, known: Caller, before: int | None) -> dict[str, Any]:
    stop = stored.stats()["messages"] if before is None else before
    start = max(0, stop - _LATEST)
    return {"messages": stored.messages(start, stop), "start": start, "name": name, "read_only": known.read_only}


@looking.get("/look/why/{name:path}")
def why(
    request: Request,
    name: str,
    known: Known,
    memory: Memory,
    question: Annotated[str | None, Query(min_length=1, max_length=10_000)] = None,
    answer: int | None = None,
) -> Response:
    """Show what an answer was conditioned on, or would be if something were asked now."""
    memory.store.session(known.own(name))  # checks that it exists
    explained = _explained(memory.session(known.own(name)), question, answer)
    shown = [vars(one) | {"source": known.shown(one.source)} for one in explained.passages]
    about = {**vars(explained), "tokens": explained.tokens, "passages": shown}
    return page(request, "why.html", why=about, bar=bar(explained.parts), **heat(explained))


def _explained(session: Session, question: str | None, answer: int | None) -> Explanation:
    """Explain a question that is not asked, or a stored answer by the question before it.

    Raises:
        InputError: neither is given.
        SessionNotFoundError: there is no such answer, or no question before it.
    """
    if answer is None:
        if question is None:
            raise InputError("name a question, or the id of an answer.")
        return session.explain({"role": "user", "content": question})
    before = _until(session, answer)
    questions = [number for number, message in enumerate(before) if message.role == "user"]
    if not questions:
        raise SessionNotFoundError(f"nothing was asked before message {answer}.")
    asked = before[questions[-1] :]
    return session.explain([message.to_dict() for message in asked], replacing=asked[0].id)


def _until(session: Session, answer: int) -> list[Message]:
    """Return the messages before an answer, as far back as the page before it; looked for from the end.

    Raises:
        SessionNotFoundError: there is no such message.
    """
    stop = session.stats()["messages"]
    while stop > 0:
        start = max(0, stop - _LATEST)
        part = session.messages(start, stop)
        for number, message in enumerate(part):
            if message.id == answer:
                return [*session.messages(max(0, start - _LATEST), start), *part[:number]]
        stop = start
    raise SessionNotFoundError(f"there is no message {answer}.")


@looking.get("/look/corpora/{name:path}")
def corpus(request: Request, name: str, known: Known, memory: Memory) -> Response:
    """Show a corpus: its documents, and a question to it."""
    stored = memory.store.corpus(known.own(name))
    return page(request, "corpus.html", name=name, documents=stored.documents(), read_only=known.read_only)


@looking.get("/look/passages/{name:path}")
def passages(request: Request, name: str, known: Known, memory: Memory, question: Words) -> Response:
    """Show the passages of a corpus that a question brings back."""
    found = memory.recall(question, corpora=[known.own(name)], top_k=10)
    shown = [{"source": known.shown(one.source), "weight": one.weight, "text": one.text} for one in found]
    return page(request, "passages.html", passages=shown)


# --- what a form does: the browser says where it was sent from ----------------------------------------------------------


async def _changing(request: Request, known: Known) -> Caller:
    """Return who changes something with a form of these pages."""
    if not from_here(request):
        raise HTTPException(403, "a form of another page may not change anything here.")
    if known.read_only:
        raise HTTPException(403, "this token may look only.")
    return known


Writer = Annotated[Caller, Depends(_changing)]


@looking.post("/look/fork/{name:path}")
async def fork(request: Request, name: str, known: Writer, memory: Memory) -> Response:
    """Fork a session, and show the fork."""
    to = str((await request.form()).get("to", ""))
    made = known.own(to)
    await run_in_threadpool(lambda: memory.store.session(known.own(name)).fork(made))
    return RedirectResponse(f"/look/sessions/{quote(to)}", 303)


@looking.post("/look/delete/{name:path}")
def delete(name: str, known: Writer, memory: Memory) -> Response:
    """Erase a session, and show those that are left."""
    memory.store.delete(known.own(name))
    return RedirectResponse("/", 303)


@router.get("/sign-in")
async def sign_in_page(request: Request) -> Response:
    """Ask for a token."""
    return page(request, "sign_in.html", wrong=False)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Keep a token in a cookie, which no script can read and no other site can make use of."""
    tokens: Tokens | None = request.app.state.tokens
    secret = str((await request.form()).get("token", "")).strip()
    if not from_here(request) or (tokens is not None and tokens.of(secret) is None):
        return page(request, "sign_in.html", 401, wrong=True)
    response = RedirectResponse("/", 303)
    response.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """Forget the token."""
    if not from_here(request):
        raise HTTPException(403, "a form of another page may not change anything here.")
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE)
    return response


router.include_router(looking)
