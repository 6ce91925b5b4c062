"""The routes of conversations: sessions by the names that OpenAI's clients call them by, their messages as items."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from ..errors import HMTError
from .bodies import Open
from .description import shows
from .failures import NotFoundError
from .items import Order, Stem, items_of, listed, message_of, messages_of_call, page_of
from .memory import Known, Memory, Writer, place, traced
from .references import with_items
from .response_bodies import Item, Metadata, messages_of
from .response_calls import CONVERSATION
from .responses import Limit

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..retrieval.citations import Message
    from ..sessions.session import Session
    from ..sessions.stored_session import StoredSession
    from .guard import Caller

router = APIRouter(prefix="/v1", tags=["conversations"], dependencies=[Depends(place)])
_PAGE = 100  # messages that are read together


class NewConversation(Open):
    """A conversation to be made."""

    model_config = shows({"items": [{"role": "user", "content": "Ida grows roses."}], "metadata": {"topic": "garden"}})

    items: Annotated[list[Item] | None, Field(max_length=20)] = None
    metadata: Metadata | None = None


class Changed(Open):
    """A conversation's new metadata."""

    model_config = shows({"metadata": {"topic": "roses"}})

    metadata: Metadata


class NewItems(Open):
    """Items to be added."""

    model_config = shows({"items": [{"role": "user", "content": "Ida also grows lilies."}]})

    items: Annotated[list[Item], Field(min_length=1, max_length=20)]


@router.post("/conversations", dependencies=[traced("create_memory_store")])
def create(body: NewConversation, known: Writer, memory: Memory) -> dict[str, Any]:
    """Make a conversation: a session of a new name."""
    name = f"{CONVERSATION}{uuid.uuid4().hex}"
    messages = messages_of(with_items(body.items or [], memory.store, known, is_there=lambda _: False))
    session = memory.session(known.own(name))
    try:
        session.set_metadata(body.metadata or {})
        _added(session, messages)
    except Exception:
        with suppress(HMTError):
            memory.store.delete(session.name)
        raise
    return _described(session, name)


@router.post("/conversations/{name:path}/items", dependencies=[traced("create_memory")])
def add(name: str, body: NewItems, known: Writer, memory: Memory) -> dict[str, Any]:
    """Add items to a conversation without an answer, and read them into memory."""
    stored = _stored(name, known, memory)
    whole = with_items(body.items, memory.store, known, is_there=lambda item: message_of(stored, item) is not None)
    return listed(_added(memory.session(stored.name), messages_of(whole)))


@router.get("/conversations/{name:path}/items")
def items(
    name: str, known: Known, memory: Memory, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> dict[str, Any]:
    """List the items of a conversation, the latest first."""
    session = _stored(name, known, memory)
    known_item = None if after is None else message_of(session, after)
    memory.prepare(session.name, asked=False)
    return page_of(_items(session, order, known_item), limit=limit, after=after)


@router.get("/conversations/{name:path}/items/{item}")
def item(name: str, item: str, known: Known, memory: Memory) -> dict[str, Any]:
    """Return an item of a conversation."""
    session = _stored(name, known, memory)
    return next(one for one in items_of(_message(session, item), session.number) if one["id"] == item)


@router.delete("/conversations/{name:path}/items/{item}", dependencies=[traced("delete_memory")])
def forget(name: str, item: str, known: Writer, memory: Memory) -> dict[str, Any]:
    """Erase an item for good; an answer and the calls of functions in it are one message, and are forgotten together."""
    session = _stored(name, known, memory)
    session.forget([_message(session, item).id])
    return _described(session, name)


@router.get("/conversations/{name:path}")
def retrieve(name: str, known: Known, memory: Memory) -> dict[str, Any]:
    """Describe a conversation."""
    return _described(_stored(name, known, memory), name)


@router.post("/conversations/{name:path}")
def update(name: str, body: Changed, known: Writer, memory: Memory) -> dict[str, Any]:
    """Give a conversation other metadata."""
    session = _stored(name, known, memory)
    session.set_metadata(body.metadata)
    return _described(session, name)


@router.delete("/conversations/{name:path}", dependencies=[traced("delete_memory_store")])
def delete(name: str, known: Writer, memory: Memory) -> dict[str, Any]:
    """Erase a conversation for good, also from what responses have taken over of it."""
    memory.store.delete(_stored(name, known, memory).name)
    return {"id": name, "object": "conversation.deleted", "deleted": True}


def _stored(name: str, known: Caller, memory: Assistant) -> StoredSession:
    """Return the session of a conversation.

    Raises:
        NotFoundError: there is none.
    """
    if not memory.store.has("session", known.own(name)):
        raise NotFoundError("conversation", name)
    return memory.store.session(known.own(name))


def _message(session: StoredSession, item: str) -> Message:
    message = message_of(session, item)
    if message is None:
        raise NotFoundError("item", item)
    return message


def _added(session: Session, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add messages. Returns their items."""
    if not messages:
        return []
    stem = Stem.new(session)
    session.add(stem.marked(messages))
    return [item for message in messages_of_call(session, stem) for item in items_of(message, session.number)]


def _described(session: StoredSession, name: str) -> dict[str, Any]:
    created_at = int(datetime.fromisoformat(session.stats()["created_at"]).timestamp())
    return {"id": name, "object": "conversation", "created_at": created_at, "metadata": session.metadata()}


def _items(session: StoredSession, order: Order, first: Message | None) -> Iterator[dict[str, Any]]:
    """Yield the items of a session in order, a page of messages at a time.

    Args:
        session: the conversation.
        order: the latest last, or first.
        first: the message to begin with; None: the first of all.
    """
    size = session.stats()["messages"]
    if order == "asc":
        start = 0 if first is None else session.count_before(first.id)
        for place in range(start, size, _PAGE):
            for message in session.messages(place, min(size, place + _PAGE)):
                yield from items_of(message, session.number)
    else:
        stop = size if first is None else session.count_before(first.id) + 1
        for place in range(stop, 0, -_PAGE):
            for message in reversed(session.messages(max(0, place - _PAGE), place)):
                yield from reversed(items_of(message, session.number))
