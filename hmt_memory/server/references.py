"""Items that a call names by their ids instead of sending them again. Knows stored items; no route, no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import InputError, SessionNotFoundError
from .failures import NotFoundError
from .items import Stem, items_of, message_of
from .response_bodies import REFERENCE, Item

if TYPE_CHECKING:
    from ..sessions.memory_store import MemoryStore
    from .guard import Caller

_LONGEST = 8 << 20  # characters of all items that one call names


def with_items(items: Sequence[Item], store: MemoryStore, caller: Caller, *, is_there: Callable[[str], bool]) -> list[Item]:
    """Return items, each reference replaced by the item that it names.

    Args:
        items: of a call.
        store: holds those that are named.
        caller: whose they have to be.
        is_there: whether what the call goes on from has the item of an id already.

    Raises:
        NotFoundError: there is no such item.
        InputError: an item would be there twice, or they are too long together.
    """
    seen, room, whole = set[str](), _LONGEST, list[Item]()
    for item in items:
        if item.type == REFERENCE:
            name = str(item.id)
            if name in seen or is_there(name):
                raise InputError(f"the item {name[:100]!r} is there already: leave this reference to it out.")
            seen.add(name)
            item = _stored(name, store, caller)
            room -= len(item.model_dump_json())
            if room < 0:
                raise InputError(f"the items that are referred to have more than {_LONGEST:,} characters. Refer to fewer.")
        whole.append(item)
    return whole


def _stored(name: str, store: MemoryStore, caller: Caller) -> Item:
    stem = Stem.of(name)
    session = None if stem is None else store.named("session", stem.number)
    if session is not None and caller.sees(session):
        with suppress(SessionNotFoundError):  # it was deleted meanwhile
            opened = store.session(session)
            message = message_of(opened, name)
            if message is not None:
                return Item.model_validate(next(item for item in items_of(message, opened.number) if item["id"] == name))
    raise NotFoundError("item", name)
