"""The routes of responses: create, retrieve, list what was put in, erase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from . import stored_responses
from .background_calls import BackgroundCall
from .calls import check_model
from .description import STREAMED
from .items import Order, items_of, listed, page_of
from .memory import Known, Memory, Writer, place, traced
from .response_bodies import ResponseRequest
from .response_calls import ResponseCall
from .stored_responses import Found, Owed

if TYPE_CHECKING:
    from .door import Door
    from .guard import Caller

router = APIRouter(prefix="/v1", tags=["responses"])
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[int, Query(ge=-1, description="Number of the event before the first; with stream.")]
looks = [Depends(place)]


@router.post("/responses", responses=STREAMED)
async def create(body: ResponseRequest, request: Request, known: Known, memory: Memory) -> Response:
    """Answer, going on from an earlier response or in a conversation if one is named."""
    check_model(memory, body.model)
    state = request.app.state
    door: Door = state.door
    if body.background:
        return await door.take(BackgroundCall(memory, state.settings, body, known), request, known)
    return await door.answer(ResponseCall(memory, state.settings, body, known), request, known)


@router.get("/responses/{name}", responses=STREAMED)
async def retrieve(
    name: str, request: Request, known: Known, memory: Memory, stream: bool = False, starting_after: After = -1
) -> Response:
    """Return a stored response, or one that is written in the background; or go on with its events, as they are written.

    What was recalled for it is not stored.
    """
    async with request.app.state.looking.place():  # and not until a stream has ended
        body = await run_in_threadpool(lambda: _body(stored_responses.find(memory.store, known, name), request, known))
    door: Door = request.app.state.door
    return await door.join(name, starting_after) if stream else JSONResponse(body)


@router.post("/responses/{name}/cancel", dependencies=looks)
def cancel(name: str, request: Request, known: Writer, memory: Memory) -> dict[str, Any]:
    """Give up a response that is written in the background; one that has ended stays as it is."""
    found = stored_responses.cancel(memory.store, known, name)
    body = _body(found, request, known)
    anyio.from_thread.run_sync(request.app.state.door.background.stop, name)
    return body


@router.get("/responses/{name}/input_items", dependencies=looks)
def input_items(
    name: str, known: Known, memory: Memory, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> dict[str, Any]:
    """List the items that a response's call has sent."""
    found = stored_responses.find(memory.store, known, name)
    if isinstance(found, Owed):
        if found.is_pending:
            raise HTTPException(409, "what this response was asked is stored with its answer. Try again when it is completed.")
        return listed([])
    sent = [item for message in found.own[:-1] for item in items_of(message, found.stem.number)]
    return page_of(iter(sent if order == "asc" else sent[::-1]), limit=limit, after=after)


@router.delete("/responses/{name}", dependencies=[*looks, traced("delete_memory")])
def delete(name: str, request: Request, known: Writer, memory: Memory) -> dict[str, Any]:
    """Erase a response for good, also from what later responses remember. One that is being written is given up."""
    also = stored_responses.delete(memory.store, known, name)
    background = request.app.state.door.background
    anyio.from_thread.run_sync(background.erase, name)
    kept = [shown for other in also if (shown := known.shown(other)) is not None]
    return {"id": name, "object": "response", "deleted": True, "hmt": {"also_in": kept}}


def _body(found: Found | Owed, request: Request, known: Caller) -> dict[str, Any]:
    """Return the body of a response: with all that its call said, while it is written here."""
    return stored_responses.body_of(found, known, request.app.state.door.background.about(found.id))
