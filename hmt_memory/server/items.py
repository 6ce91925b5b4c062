"""Items of conversations and responses, their ids, and the messages that they are stored as.

An id names the session's number, where to look in it, and a word that nothing else has: so it is found again without any list,
whatever was said, renamed or forgotten since.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..chat.tools import called
from ..errors import InputError

if TYPE_CHECKING:
    from ..retrieval.citations import Message
    from ..sessions.stored_session import StoredSession

_ID = re.compile(r"(?:resp|msg|fc|fco)_([0-9a-f]{8})([0-9a-f]{8})([0-9a-f]{16})([0-9a-f]{4})?(?:[0-9a-f]{4})?")
_NO_WORD = "0" * 16
_MOST = 0xFFFF  # messages of one call
_PAGE = 64  # messages that are looked at together
Order = Literal["asc", "desc"]


@dataclass(frozen=True)
class Stem:
    """What the ids of one call's items have in common."""

    number: int = 0  # of the session; 0: nothing is stored
    first: int = 0  # no message of the call has a lower id
    word: str = _NO_WORD  # none: the message was not added as an item, and its own id is `first`

    @classmethod
    def new(cls, session: StoredSession | None = None) -> Stem:
        """Return the stem of a new call; None: nothing of it is stored."""
        number, first = (0, 0) if session is None else (session.number, session.upcoming())
        return cls(number, first, secrets.token_hex(8))

    @classmethod
    def of(cls, name: str) -> Stem | None:
        """Return the stem of a response's or an item's id; None: it is no such id."""
        match = _ID.fullmatch(name)
        return None if match is None else cls(int(match[1], 16), int(match[2], 16), match[3])

    def __str__(self) -> str:
        return f"{self.number:08x}{self.first:08x}{self.word}"

    @property
    def response(self) -> str:
        """The id of the call's response."""
        return f"resp_{self}"

    def message(self, place: int) -> str:
        """Return the id of a message of the call."""
        return f"msg_{self}{place:04x}"

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages of a call with their ids."""
        if len(messages) > _MOST:
            raise InputError(f"a call has at most {_MOST:,} items. Send less at once.")
        return [{**message, "id": self.message(place)} for place, message in enumerate(messages)]

    def owns(self, message: Message) -> bool:
        """Return whether a message was added by the call."""
        return str(message.fields.get("id", "")).startswith(f"msg_{self}")


def messages_of_call(session: StoredSession, stem: Stem) -> list[Message]:
    """Return the messages that a call has added to a session, as far as they are there; they stand together."""
    own: list[Message] = []
    first = stem.first
    while page := session.from_id(first, _PAGE):
        own += [message for message in page if stem.owns(message)]
        if own and not stem.owns(page[-1]):
            break
        first = page[-1].id + 1
    return own


def message_of(session: StoredSession, name: str) -> Message | None:
    """Return the message that an item is, or is a part of; None: it is not in the session."""
    stem = Stem.of(name)
    if stem is None:
        return None
    known = session.from_id(stem.first, 1) if stem.word == _NO_WORD else messages_of_call(session, stem)
    ids = ([item["id"] for item in items_of(message, session.number)] for message in known)
    return next((message for message, own in zip(known, ids, strict=True) if name in own), None)


def items_of(message: Message, session: int) -> list[dict[str, Any]]:
    """Return the items that a message is: its text, and the calls in it.

    Args:
        message: stored.
        session: the number of its session.
    """
    own = str(message.fields.get("id", ""))
    place = own.removeprefix("msg_") if Stem.of(own) else f"{Stem(session, message.id)}0000"
    cut = record_of(message).get("status") == "incomplete"
    return items(message.role, message.content, place, message.fields, incomplete=cut)


def record_of(message: Message) -> Mapping[str, Any]:
    """Return what is stored of a response besides its items, in the message of its answer; empty: there is none."""
    metadata = message.fields.get("metadata")
    record = metadata.get("response") if isinstance(metadata, Mapping) else None
    return record if isinstance(record, Mapping) else {}


def items(role: str, text: str, place: str, fields: Mapping[str, Any], *, incomplete: bool = False) -> list[dict[str, Any]]:
    """Return the items that a message is.

    Args:
        role: of the message.
        text: of the message.
        place: its id, without what tells its kind.
        fields: its calls, or the call that it answers.
        incomplete: whether it was cut off.
    """
    status = "incomplete" if incomplete else "completed"
    if "tool_call_id" in fields:
        answered = {"type": "function_call_output", "id": f"fco_{place}", "call_id": fields["tool_call_id"]}
        return [answered | {"output": text, "status": status}]
    calls = fields.get("tool_calls") or ()
    whole: list[dict[str, Any]] = []
    if text or not calls:
        part = output_text(text) if role == "assistant" else {"type": "input_text", "text": text}
        whole.append({"type": "message", "id": f"msg_{place}", "status": status, "role": role, "content": [part]})
    for number, call in enumerate(calls):
        name, arguments = called(call)
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        made = {"type": "function_call", "id": f"fc_{place}{number:04x}", "call_id": call.get("id")}
        whole.append(made | {"name": name, "arguments": written, "status": "completed"})
    return whole


def output_text(text: str, annotations: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a text as the part of an answer."""
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}


def listed(data: Sequence[Mapping[str, Any]], *, more: bool = False) -> dict[str, Any]:
    """Return a list of items."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": list(data), **ends, "has_more": more}


def page_of(all_items: Iterator[Mapping[str, Any]], *, limit: int, after: str | None) -> dict[str, Any]:
    """Return some of many items.

    Args:
        all_items: in order.
        limit: how many, at most.
        after: id of the item before the first; None: they begin with the first of all.
    """
    if after is not None and not any(item["id"] == after for item in all_items):
        raise InputError("`after` names no item of this list. Leave it out, or give the last_id of a page.")
    page: list[Mapping[str, Any]] = []
    for item in all_items:
        if len(page) == limit:
            return listed(page, more=True)
        page.append(item)
    return listed(page)
