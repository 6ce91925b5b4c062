"""The routes of responses: create, retrieve, list what was put in, erase."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from ..errors import InputError
from . import stored_responses
from .calls import check_model
from .description import STREAMED
from .items import Order, items_of, page_of
from .memory import Known, Memory, Writer, place, traced
from .response_bodies import ResponseRequest
from .response_calls import ResponseCall

router = APIRouter(prefix="/v1", tags=["responses"])
Limit = Annotated[int, Query(ge=1, le=100)]
looks = [Depends(place)]


@router.post("/responses", responses=STREAMED)
async def create(body: ResponseRequest, request: Request, known: Known, memory: Memory) -> Response:
    """Answer, going on from an earlier response or in a conversation if one is named."""
    check_model(memory, body.model)
    state = request.app.state
    answered: Response = await state.door.answer(ResponseCall(memory, state.settings, body, known), request, known)
    return answered


@router.get("/responses/{name}", dependencies=looks)
def retrieve(name: str, known: Known, memory: Memory, stream: bool = False) -> dict[str, Any]:
    """Return a stored response. What was recalled for it is not stored."""
    if stream:
        raise InputError("a response that is stored is not streamed again. Leave stream out.")
    return stored_responses.body_of(stored_responses.find(memory.store, known, name), known)


@router.get("/responses/{name}/input_items", dependencies=looks)
def input_items(
    name: str, known: Known, memory: Memory, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> dict[str, Any]:
    """List the items that a response's call has sent."""
    found = stored_responses.find(memory.store, known, name)
    sent = [item for message in found.own[:-1] for item in items_of(message, found.stem.number)]
    return page_of(iter(sent if order == "asc" else sent[::-1]), limit=limit, after=after)


@router.delete("/responses/{name}", dependencies=[*looks, traced("delete_memory")])
def delete(name: str, known: Writer, memory: Memory) -> dict[str, Any]:
    """Erase a response for good, also from what later responses remember."""
    also = stored_responses.delete(memory.store, stored_responses.find(memory.store, known, name))
    kept = [shown for other in also if (shown := known.shown(other)) is not None]
    return {"id": name, "object": "response", "deleted": True, "hmt": {"also_in": kept}}
