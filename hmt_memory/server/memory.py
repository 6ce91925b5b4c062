"""Sessions and corpora over HTTP: look, add, recall, fork, forget, export, import. Everything is done by an `Assistant`.

A caller sees the names of its own name space, and no others.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import InputError, StoreDamagedError
from .description import FILE, TAKES_FILE
from .guard import Caller, caller
from .memory_bodies import (
    Added,
    AddedDocuments,
    Attached,
    Corpus,
    Documents,
    Forgotten,
    Fork,
    Found,
    Id,
    Listed,
    Messages,
    Named,
    New,
    Passages,
    Retention,
    Said,
    Session,
    Stored,
    Verified,
)
from .tracing import Span

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..retrieval.citations import Message
    from ..retrieval.ranking import RecalledSegments


async def place(request: Request) -> AsyncIterator[None]:
    """Wait for a place among the calls that work at once, so that there are threads left for answers."""
    async with request.app.state.looking.place():
        yield


def traced(operation: str) -> Any:
    """Return what gives each call of a route a span.

    Args:
        operation: upon a memory, as OpenTelemetry's conventions name it.
    """

    async def held(request: Request) -> AsyncIterator[None]:
        with Span(operation, request.headers) as span:
            yield
            span.close()

    return Depends(held)


router = APIRouter(prefix="/v1", dependencies=[Depends(caller), Depends(place)])
_MOST = 1000  # of one list


async def _writer(known: Annotated[Caller, Depends(caller)]) -> Caller:
    """Return who calls, if it may change something."""
    if known.read_only:
        raise HTTPException(403, "this token may look only.")
    return known


async def assistant_of(request: Request) -> Assistant:
    """Return the assistant that answers here."""
    assistant: Assistant = request.app.state.assistant
    return assistant


Known = Annotated[Caller, Depends(caller)]
Writer = Annotated[Caller, Depends(_writer)]
Memory = Annotated[Any, Depends(assistant_of)]  # an `Assistant`; FastAPI would look into its type
TopK = Annotated[int, Query(ge=1, le=100)]
Words = Annotated[str, Query(min_length=1, max_length=100_000)]


def _listed(names: list[str], known: Caller, limit: int, after: str | None) -> dict[str, Any]:
    own = [name for one in names if (name := known.shown(one)) is not None]
    rest = own if after is None else [name for name in own if name > after]
    return {"object": "list", "data": [{"name": name} for name in rest[:limit]], "has_more": len(rest) > limit}


def _message(message: Message) -> dict[str, Any]:
    return {**message.to_dict(), "id": message.id, "created_at": message.created_at.isoformat()}


def _passages(recalled: RecalledSegments, known: Caller) -> dict[str, Any]:
    passages = [
        {
            **passage.to_dict(),
            "source": known.shown(passage.source),
            "messages": [message.id for message in passage.messages],
            "document": passage.document,
            "created_at": passage.created_at.isoformat(),
        }
        for passage in recalled
    ]
    return {"object": "list", "data": passages, "coverage": recalled.coverage}


def described(stats: dict[str, Any], known: Caller) -> dict[str, Any]:
    """Return the counts of a session or corpus, with names as the caller knows them."""
    names: dict[str, Any] = {"name": known.shown(stats["name"])}
    if "corpora" in stats:
        names["corpora"] = [own for name in stats["corpora"] if (own := known.shown(name)) is not None]
    return {**stats, **names}


# --- sessions -----------------------------------------------------------------------------------------------------------


@router.get("/sessions", response_model=Listed)
def sessions(
    known: Known, memory: Memory, limit: Annotated[int, Query(ge=1, le=_MOST)] = 100, after: str | None = None
) -> dict[str, Any]:
    """List the names of sessions, sorted, from the one behind `after` on."""
    return _listed(memory.store.sessions(), known, limit, after)


@router.post("/sessions", status_code=201, dependencies=[traced("create_memory_store")], response_model=Session)
def make_session(body: New, known: Writer, memory: Memory) -> dict[str, Any]:
    """Make a session, unless it is there."""
    memory.session(known.own(body.name))
    return described(memory.store.session(known.own(body.name)).stats(), known)


@router.get("/sessions/{name:path}/messages", response_model=Messages)
def messages(
    name: str, known: Known, memory: Memory, start: Id = 0, stop: Annotated[Id | None, Query()] = None
) -> dict[str, Any]:
    """List the messages of a session, in order; [start, stop) as in a slice, of at most 1,000."""
    stored = memory.store.session(known.own(name)).messages(start, stop)
    memory.prepare(known.own(name), asked=False)
    return {"object": "list", "data": [_message(message) for message in stored[:_MOST]], "has_more": len(stored) > _MOST}


@router.post("/sessions/{name:path}/messages", status_code=201, dependencies=[traced("create_memory")], response_model=Added)
def add(name: str, body: Said, known: Writer, memory: Memory) -> dict[str, Any]:
    """Add messages to a session without an answer, and read them into memory."""
    ids = memory.session(known.own(name)).add([message.plain() for message in body.messages])
    return {"message_ids": ids}


@router.delete("/sessions/{name:path}/messages", dependencies=[traced("delete_memory")], response_model=Forgotten)
def forget(
    name: str, ids: Annotated[list[Id], Query(alias="id", min_length=1)], known: Writer, memory: Memory
) -> dict[str, Any]:
    """Erase messages for good: their rows, every embedding that saw them, and the bytes in all files."""
    memory.store.session(known.own(name))  # checks that it exists
    forgotten = memory.session(known.own(name)).forget(ids)
    also = [shown for other in forgotten.also_in if (shown := known.shown(other)) is not None]
    return {"forgotten": forgotten.messages, "also_in": also}


@router.get("/sessions/{name:path}/recall", dependencies=[traced("search_memory")], response_model=Passages)
def recall(name: str, query: Words, known: Known, memory: Memory, top_k: TopK = 5) -> dict[str, Any]:
    """List the passages of a session that a text remembers most."""
    return _passages(memory.recall(query, session=known.own(name), top_k=top_k), known)


@router.post("/sessions/{name:path}/prepare", status_code=202, response_model=Named)
def prepare(name: str, known: Known, memory: Memory) -> dict[str, Any]:
    """Make what the next answer in a session needs, behind this call: somebody begins to type, or is about to."""
    memory.store.session(known.own(name))  # checks that it exists
    memory.prepare(known.own(name))
    return {"name": name}


@router.post("/sessions/{name:path}/fork", status_code=201, response_model=Session)
def fork(name: str, body: Fork, known: Writer, memory: Memory) -> dict[str, Any]:
    """Make a session that shares this one's past and goes its own way from here."""
    made = memory.store.session(known.own(name)).fork(known.own(body.name), upto=body.upto)
    return described(made.stats(), known)


@router.put("/sessions/{name:path}/corpora", response_model=Session)
def attach(name: str, body: Attached, known: Writer, memory: Memory) -> dict[str, Any]:
    """Let a session recall from these corpora, and from no others."""
    memory.store.session(known.own(name))
    session = memory.session(known.own(name))
    wanted = {known.own(corpus) for corpus in body.corpora}
    session.attach(*sorted(wanted))
    own = {corpus for corpus in session.stats()["corpora"] if known.shown(corpus) is not None}
    session.detach(*sorted(own - wanted))
    return described(session.stats(), known)


@router.put("/sessions/{name:path}/retention", dependencies=[traced("delete_memory")], response_model=Session)
def limit(name: str, body: Retention, known: Writer, memory: Memory) -> dict[str, Any]:
    """Set what a session keeps: messages beyond a limit are erased for good, now and from now on."""
    memory.store.session(known.own(name))  # checks that it exists
    session = memory.session(known.own(name))
    session.set_retention(messages=body.messages, age=None if body.seconds is None else timedelta(seconds=body.seconds))
    return described(session.stats(), known)


@router.get("/sessions/{name:path}/export", responses=FILE, response_class=FileResponse)
def export(name: str, known: Known, memory: Memory, later: BackgroundTasks) -> FileResponse:
    """Write a session into one file."""
    session = memory.store.session(known.own(name))
    folder = tempfile.TemporaryDirectory(prefix="hmt-export-")
    later.add_task(folder.cleanup)
    session.export(Path(folder.name) / "session.hmt")
    return FileResponse(Path(folder.name) / "session.hmt", filename="session.hmt", background=later)


@router.post("/sessions/{name:path}/import", status_code=201, openapi_extra=TAKES_FILE, response_model=Session)
async def import_session(name: str, request: Request, known: Writer, memory: Memory) -> dict[str, Any]:
    """Add the session of an exported file, the body of the call, after checking all of it."""
    with tempfile.TemporaryDirectory(prefix="hmt-import-") as folder:
        path = Path(folder) / "session.hmt"
        async with await anyio.open_file(path, "wb") as file:
            async for part in request.stream():
                await file.write(part)

        def work() -> dict[str, Any]:
            try:
                made = memory.store.import_session(path, name=known.own(name), model=memory.reader)
            except StoreDamagedError as error:
                raise InputError("the file is not whole, or no exported session. Export it again.") from error
            return described(made.stats(), known)

        return await run_in_threadpool(work)


@router.get("/sessions/{name:path}/verify", response_model=Verified)
def verify(name: str, known: Known, memory: Memory) -> dict[str, Any]:
    """Read every row of a session and follow every digest."""
    memory.store.session(known.own(name))
    found = memory.store.verify(known.own(name))
    return {"ok": found.ok, "problems": found.problems, "notes": found.notes}


@router.get("/sessions/{name:path}", response_model=Session)
def session(name: str, known: Known, memory: Memory) -> dict[str, Any]:
    """Describe a session: counts, times, and what it recalls from."""
    return described(memory.store.session(known.own(name)).stats(), known)


@router.delete("/sessions/{name:path}", status_code=204, dependencies=[traced("delete_memory_store")])
def delete(name: str, known: Writer, memory: Memory) -> None:
    """Erase a session for good. Its forks keep what they share of it."""
    memory.store.delete(known.own(name))


@router.get("/search", dependencies=[traced("search_memory")], response_model=Found)
def search(query: Words, known: Known, memory: Memory, top_k: TopK = 10) -> dict[str, Any]:
    """List the messages of all sessions that share most words with a query."""
    own = [name for name in memory.store.sessions() if known.shown(name) is not None]
    found = memory.store.search(query, top_k=top_k, names=own)
    data = [{**asdict(one), "source": known.shown(one.source), "created_at": one.created_at.isoformat()} for one in found]
    return {"object": "list", "data": data}


# --- corpora ------------------------------------------------------------------------------------------------------------


@router.get("/corpora", response_model=Listed)
def corpora(
    known: Known, memory: Memory, limit: Annotated[int, Query(ge=1, le=_MOST)] = 100, after: str | None = None
) -> dict[str, Any]:
    """List the names of corpora, sorted, from the one behind `after` on."""
    return _listed(memory.store.corpora(), known, limit, after)


@router.get("/corpora/{name:path}/documents", response_model=Stored)
def documents(name: str, known: Known, memory: Memory) -> dict[str, Any]:
    """List the documents of a corpus, without their text."""
    stored = memory.store.corpus(known.own(name)).documents()
    data = [
        {
            "id": document.id,
            "name": document.name,
            "metadata": document.metadata,
            "characters": len(document.text),
            "created_at": document.created_at.isoformat(),
        }
        for document in stored
    ]
    return {"object": "list", "data": data}


@router.post(
    "/corpora/{name:path}/documents",
    status_code=201,
    dependencies=[traced("create_memory")],
    response_model=AddedDocuments,
)
def add_documents(name: str, body: Documents, known: Writer, memory: Memory) -> dict[str, Any]:
    """Add documents to a corpus, which is made if there is none, and read them into memory."""
    given = [document.model_dump(exclude_none=True) for document in body.documents]
    return {"document_ids": memory.corpus(known.own(name)).add_documents(given, replace_named=True)}


@router.delete("/corpora/{name:path}/documents", status_code=204, dependencies=[traced("delete_memory")])
def remove(name: str, ids: Annotated[list[Id], Query(alias="id", min_length=1)], known: Writer, memory: Memory) -> None:
    """Erase documents for good."""
    memory.store.corpus(known.own(name)).remove(ids)


@router.get("/corpora/{name:path}/recall", dependencies=[traced("search_memory")], response_model=Passages)
def recall_corpus(name: str, query: Words, known: Known, memory: Memory, top_k: TopK = 5) -> dict[str, Any]:
    """List the passages of a corpus that a text remembers most."""
    return _passages(memory.recall(query, corpora=[known.own(name)], top_k=top_k), known)


@router.get("/corpora/{name:path}", response_model=Corpus)
def corpus(name: str, known: Known, memory: Memory) -> dict[str, Any]:
    """Describe a corpus: counts and times."""
    return described(memory.store.corpus(known.own(name)).stats(), known)


@router.delete("/corpora/{name:path}", status_code=204, dependencies=[traced("delete_memory_store")])
def delete_corpus(name: str, known: Writer, memory: Memory) -> None:
    """Erase a corpus for good; sessions that it was attached to go on without it."""
    memory.store.delete_corpus(known.own(name))
