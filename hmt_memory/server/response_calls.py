"""Responses: a call becomes a reply of the assistant in a session, its pieces become events. Knows both forms; no route.

An answer that belongs to no named session has one of its own, listed nowhere. What goes on from the last answer there is added
to it; what goes on from an earlier one, or from one in a named session, gets a fork.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.exceptions import HTTPException

from ..errors import HMTError, SessionNotFoundError
from ..sessions.answer import Keeping
from ..sessions.names import is_aside
from .calls import Call, Event, Written, remembered, without_recalled
from .failures import NotFoundError
from .items import Stem, items, message_of, output_text
from .references import with_items
from .replays import DELETED
from .response_bodies import REFERENCE, messages_of
from .response_events import Events
from .stored_responses import begun, find_answered

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..retrieval.ranking import RecalledSegment
    from ..sessions.answer import Answer
    from ..sessions.session import Session
    from .guard import Caller
    from .replays import Version
    from .response_bodies import ResponseRequest
    from .settings import Settings
    from .stored_responses import Found

CONVERSATION = "conv_"  # what the names of sessions begin with that were made as conversations


class ResponseCall(Call["ResponseRequest"]):
    """A call of Responses.

    Args:
        assistant: answers.
        settings: what is allowed.
        body: of the call.
        caller: who calls.

    Raises:
        InputError: an item cannot be read, or the conversation's name is impossible.
        HTTPException: the caller may store no answer.
    """

    prepares = True

    def __init__(self, assistant: Assistant, settings: Settings, body: ResponseRequest, caller: Caller) -> None:
        if caller.read_only and body.store:
            raise HTTPException(403, 'this token may look only: send "store": false.')
        super().__init__(assistant, settings, body, body.session)
        self._caller = caller
        self._own = None if self._name is None else caller.own(self._name)
        self._refers = any(item.type == REFERENCE for item in body.input)
        self._messages = [] if self._refers else messages_of(body.input)
        self._before: Found | None = None  # the response that this one goes on from
        self._adds_to: str | None = None  # the session that others may know
        self._made: str | None = None  # the session that is made for the answer
        self._session: Session | None = None  # the session that answers
        self._response: ResponseBody | None = None
        self._about: dict[str, Any] | None = None  # the body of a response that the client knows already
        self._owed: str | None = None  # its id
        self._events: Events | None = None  # that it is told in, if some are told before it begins

    def look(self) -> None:
        """Look for the response or conversation that this one goes on from."""
        store, named = self._assistant.store, self._name or ""
        if self.body.previous_response_id is not None:
            self._before = find_answered(store, self._caller, self.body.previous_response_id)
        elif named.startswith(CONVERSATION) and not store.has("session", self._own or ""):
            raise NotFoundError("conversation", named)

    def session(self, busy: Container[str]) -> str | None:
        """Return the session that the answer is added to, if others may know it."""
        before = self._before
        if self.body.store:
            last = before is not None and before.next is None and is_aside(before.session)
            self._adds_to = before.session if before and last and before.session not in busy else self._own
        return self._adds_to

    def begin(self) -> ResponseBody:
        """Begin the answer."""
        body, messages = self.body, self._said()
        options = body.options(self._settings.usual, self._settings.longest)
        name, replacing = self._place()
        if name is None:
            stem = Stem.new()
            said = [{"role": "system", "content": body.instructions}] if body.instructions else []
            answer: Answer = self._assistant.reply([*messages, *said], namespace=self._caller.namespace, **options)
        else:
            self._session = self._assistant.session(name)
            stem = self._stem()
            after = self._before.answer.id if self._before and name == self._adds_to else None
            answer = self._assistant.reply(
                stem.marked(messages),
                session=name,
                history="incremental",
                replacing=replacing,
                instructions=body.instructions,
                keeping=Keeping(stored=body.store, after=after, fields=self._fields, owed=self._owed),
                **options,
            )
        place = stem.message(len(messages))
        about = self._about or self._told(stem)
        named = None if name is None else self._name
        remembers, events = name is not None, self._events
        self._response = ResponseBody(answer, about, place, self._caller, named, remembers=remembers, events=events)
        return self._response

    def _stem(self) -> Stem:
        """Return what the ids of the call's items have in common."""
        return Stem.new(self._session if self.body.store else None)

    def _told(self, stem: Stem) -> dict[str, Any]:
        """Return the body of the response, as far as it is known before anything is written."""
        about = {"id": stem.response, "object": "response", "created_at": int(time.time()), "error": None, "reasoning": None}
        return {**about, "service_tier": "default", "model": self._assistant.name, **self.body.told()}

    def _said(self) -> list[dict[str, Any]]:
        """Return the messages of the call, those that it refers to among them."""
        if not self._refers:
            return self._messages
        return messages_of(with_items(self.body.input, self._assistant.store, self._caller, is_there=self._goes_on_from))

    def _goes_on_from(self, item: str) -> bool:
        """Return whether an item is among those that the call goes on from."""
        before, store = self._before, self._assistant.store
        name = self._own if before is None else before.session
        if name is None or not store.has("session", name):
            return False
        message = message_of(store.session(name), item)
        return message is not None and (before is None or message.id <= before.answer.id)

    def _place(self) -> tuple[str | None, int | None]:
        """Return the session that answers, made if need be, and the message before which; None: it is none, or the end."""
        store, before = self._assistant.store, self._before
        if self._adds_to is not None:
            return self._adds_to, None
        if not self.body.store:
            named = self._own if self._own and store.has("session", self._own) else None
            return (named, None) if before is None else (before.session, before.next)
        self._made = self._caller.aside(uuid.uuid4().hex)
        if before is not None:
            store.session(before.session).fork(self._made, upto=before.answer.id)
        return self._made, None

    def _fields(self, _: Answer) -> Mapping[str, Any]:
        """Return what is stored with the answer."""
        assert self._response is not None
        return self._response.stored()

    def again(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield all events of a response that is whole already."""
        message = next((item["id"] for item in whole["output"] if item["type"] == "message"), "")
        return Events(begun(whole), message).again(whole)

    def version(self) -> Version:
        """Return what changes whenever something is forgotten of the session that was answered from; None: there was none."""
        try:
            return None if self._session is None else self._session.epoch()
        except SessionNotFoundError:
            return DELETED

    def close(self) -> None:
        """Erase the session that was made for an answer, if none is in it; what cannot be erased now is at the next start."""
        if self._made is not None and (self._response is None or not self._response.message_ids):
            with suppress(HMTError):
                self._assistant.store.delete(self._made)


class ResponseBody(Written[str]):
    """An answer as Responses has it.

    Args:
        answer: being written.
        about: its body, as far as it is known before anything is written.
        message: id of the message that its text is in.
        caller: knows sessions and corpora by their names in its own name space.
        conversation: the session that it is added to, by the name that the caller knows; None: it has none.
        remembers: whether it was answered from a session.
        events: that it is told in; None: new ones.
    """

    answer: Answer

    def __init__(
        self,
        answer: Answer,
        about: Mapping[str, Any],
        message: str,
        caller: Caller,
        conversation: str | None,
        *,
        remembers: bool,
        events: Events | None = None,
    ) -> None:
        self.answer, self._message, self._caller, self._remembers = answer, message, caller, remembers
        self._conversation = conversation
        self._about = dict(about)
        if conversation is not None:
            self._about["conversation"] = {"id": conversation}
        self._completed_at: int | None = None
        self._events = events or Events(begun(self._about), message)

    @property
    def input_tokens(self) -> int:
        """The tokens of the call, or of the view of a session."""
        usage = self.answer.usage
        return usage.view_tokens if self._remembers else usage.prompt_tokens

    @property
    def message_ids(self) -> list[int]:
        """The ids of the stored messages of the call; none until they are stored."""
        return list(getattr(self.answer, "message_ids", ()))

    def stored(self) -> dict[str, Any]:
        """Return the fields of the answer's message: nothing that stands elsewhere, or that was recalled."""
        return {"id": self._message, "metadata": {"response": self._ended()}}

    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is finished."""
        output = self._output()
        if output[0]["type"] == "message":
            cited = [self._citation(passage) for passage in self.answer.recalled]
            output[0]["content"] = [output_text(self.answer.text, cited)]
        return {**self._ended(), "output": output, "hmt": remembered(self.answer, self._caller, self._conversation)}

    def kept(self) -> dict[str, Any]:
        """Return the body without what was recalled, and without citations, whose titles have words of it."""
        return without_recalled(self.whole()) | {"output": self._output()}

    def _output(self) -> list[dict[str, Any]]:
        """Return the items of the answer, which cite nothing."""
        answer = self.answer
        calls = {"tool_calls": [call.to_dict() for call in answer.tool_calls]}
        place = self._message.removeprefix("msg_")
        return items("assistant", answer.text, place, calls, incomplete=answer.finish_reason == "length")

    def _ended(self) -> dict[str, Any]:
        """Return the body without its items."""
        cut = self.answer.finish_reason == "length"
        self._completed_at = self._completed_at or int(time.time())
        return {
            **self._about,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else self._completed_at,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        usage, asked = self.answer.usage, self.input_tokens
        return {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": min(asked, usage.cached_tokens)},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + usage.completion_tokens,
        }

    def _citation(self, passage: RecalledSegment) -> dict[str, Any]:
        """Return a passage that was recalled as an annotation of the whole text. What it says is in `hmt`."""
        owner = passage.messages[0].id if passage.messages else passage.document
        source = self._caller.shown(passage.source)
        who = passage.messages[0].role if passage.messages else source or "document"
        return {
            "type": "url_citation",
            "url": f"hmt:{quote(source or '')}#{owner}",
            "title": f"{who}, {passage.created_at:%Y-%m-%d %H:%M}",
            "start_index": 0,
            "end_index": len(self.answer.text),
        }

    def opening(self) -> Iterator[Event]:
        """Yield that the response is there, and being written."""
        return self._events.opening()

    def piece(self, piece: str) -> Iterator[Event]:
        """Yield the events of a piece of text."""
        return self._events.piece(piece)

    def closing(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the end of each item, and of the response."""
        return self._events.closing(whole)

    def failure(self, error: Mapping[str, Any]) -> Event:
        """Return that the response failed."""
        about = error["error"]
        return self._events.failure(about["message"], about["code"] or about["type"])
