"""Chat Completions: a call becomes a reply of the assistant, its pieces become chunks. Knows both forms; no route."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from ..errors import InputError, SessionNotFoundError
from .calls import Call, Event, Written, remembered, without_recalled
from .replays import DELETED

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from ..assistant import Assistant
    from ..engine.chances import Chance, TokenChance
    from ..sessions.answer import Answer
    from .bodies import ChatRequest
    from .guard import Caller
    from .replays import Version
    from .settings import Settings

SESSION_HEADERS = ("x-hmt-session", "x-session-id")
_OPEN_WEBUI = "x-openwebui-chat-id"  # its calls for titles and tags, which are not streamed, have the same
_TEXT = "\0"  # stands for the text of a piece
_NOT_TO_LAST = ("local:", "channel:")  # what the ids of chats begin with that it marks as temporary, and of channels


def session_of(headers: Headers, body: ChatRequest) -> str | None:
    """Return the name of the session that a call belongs to; None: it is remembered nowhere.

    Args:
        headers: of the call; they come before the body's metadata.
        body: of the call.

    Raises:
        InputError: the name is no text.
    """
    named: Any = next((_decoded(headers[name]) for name in SESSION_HEADERS if name in headers), None)
    if named is None:
        named = (body.metadata or {}).get("session_id")
    if named is None and body.stream:
        chat = headers.get(_OPEN_WEBUI)
        named = None if chat is None or chat.startswith(_NOT_TO_LAST) else chat
    if named is not None and not isinstance(named, str):
        raise InputError("session_id is the name of a session: a string.")
    return named


def _decoded(header: str) -> str:
    """Return a header's text as it was sent: in UTF-8, as far as it is."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


class ChatCall(Call["ChatRequest"]):
    """A call of Chat Completions.

    Args:
        assistant: answers.
        settings: what is allowed.
        body: of the call.
        headers: of the call, which may name a session.
        caller: who calls.

    Raises:
        InputError: the session's name is impossible.
        HTTPException: the caller may not add to a session.
    """

    def __init__(self, assistant: Assistant, settings: Settings, body: ChatRequest, headers: Headers, caller: Caller) -> None:
        super().__init__(assistant, settings, body, session_of(headers, body))
        self._caller = caller
        self._own = None if self._name is None else caller.own(self._name)
        if caller.read_only and self._own is not None:
            raise HTTPException(403, "this token may look only: it cannot add to a session.")

    def session(self, busy: Container[str]) -> str | None:
        """Return the session that the call names."""
        return self._own

    def begin(self) -> Completion:
        """Begin the answer."""
        said = [message.plain() for message in self.body.messages]
        options = self.body.options(self._settings.usual, self._settings.longest)
        answer = self._assistant.reply(said, session=self._own, namespace=self._caller.namespace, **options)
        return Completion(answer, self.model, self._name, self._caller, usage=self.body.with_usage)

    def again(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield all chunks of an answer that is whole already."""
        chunks, (choice,) = Chunks(whole, usage=self.body.with_usage), whole["choices"]
        yield chunks.opening()
        if text := choice["message"]["content"]:
            yield chunks.piece(text, choice["logprobs"])
        yield from chunks.closing(whole)

    def version(self) -> Version:
        """Return what changes whenever something of the session is forgotten; None: there is none."""
        try:
            return None if self._own is None else self._assistant.store.session(self._own).epoch()
        except SessionNotFoundError:
            return DELETED


class Completion(Written[str]):
    """An answer as Chat Completions has it.

    Args:
        answer: being written.
        model: its name.
        session: by which the caller knows it; None: none.
        caller: knows sessions and corpora by their names in its own name space.
        usage: whether the last chunk of a stream has its counts.
    """

    answer: Answer

    def __init__(self, answer: Answer, model: str, session: str | None, caller: Caller, *, usage: bool) -> None:
        self.answer, self._session, self._caller = answer, session, caller
        self._about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._chunks = Chunks(self._about, usage=usage)
        self._told, self._given = 0, 0  # tokens whose log-probabilities were given out, and characters beyond them

    @property
    def input_tokens(self) -> int:
        """The tokens of the call, or of the view of a session."""
        usage = self.answer.usage
        return usage.prompt_tokens if self._session is None else usage.view_tokens

    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is finished."""
        answer = self.answer
        calls = [call.to_dict() for call in answer.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if calls else "")}
        message |= {"tool_calls": calls} if calls else {}
        logprobs = _logprobs(answer.chances)
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": logprobs}
        return {
            **self._about,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(self),
            "hmt": remembered(answer, self._caller, self._session),
        }

    def kept(self) -> dict[str, Any]:
        """Return the body without what was recalled."""
        return without_recalled(self.whole())

    def opening(self) -> Iterator[Event]:
        """Yield the first chunk."""
        yield self._chunks.opening()

    def piece(self, piece: str) -> Iterator[Event]:
        """Yield the chunk of a piece of text, with the log-probabilities of the tokens that it completes."""
        self._given += len(piece)
        fresh = []
        for each in self.answer.chances[self._told :]:  # more tokens than have been given out may be there
            if len(each.chosen.text) > self._given:
                break
            self._given -= len(each.chosen.text)
            fresh.append(each)
        self._told += len(fresh)
        yield self._chunks.piece(piece, _logprobs(fresh))

    def closing(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the log-probabilities that no chunk had, and the last chunks."""
        if left := self.answer.chances[self._told :]:
            yield self._chunks.piece("", _logprobs(left))
        yield from self._chunks.closing(whole)


class Chunks:
    """An answer as it is streamed: the first chunk, those of its pieces, and the last ones, which its whole body tells.

    Args:
        about: id, time and model of the answer, as its body has them.
        usage: whether a last chunk has its counts.
    """

    def __init__(self, about: Mapping[str, Any], *, usage: bool) -> None:
        self._about = {name: about[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        self._usage = usage
        self._before, self._after = self._chunk({"content": _TEXT}).split(json.dumps(_TEXT))

    def opening(self) -> str:
        """Return the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str, logprobs: Mapping[str, Any] | None = None) -> str:
        """Return the chunk of a piece of text, with the log-probabilities of its tokens if there are any."""
        if logprobs is None:  # there is one for each token, and they differ in nothing else
            return f"{self._before}{json.dumps(text)}{self._after}"
        return self._chunk({"content": text}, logprobs=logprobs)

    def closing(self, whole: Mapping[str, Any]) -> Iterator[str]:
        """Yield the last chunks: calls of functions, how it ended, and if it is wanted the usage.

        Args:
            whole: the body of the answer.
        """
        (choice,) = whole["choices"]
        calls = [call | {"index": number} for number, call in enumerate(choice["message"].get("tool_calls", ()))]
        if calls:
            yield self._chunk({"tool_calls": calls})
        yield self._chunk({}, choice["finish_reason"], hmt=whole["hmt"])
        if self._usage:
            yield json.dumps({**self._about, "choices": [], "usage": whole["usage"]})

    def _chunk(
        self,
        delta: Mapping[str, Any],
        finish_reason: str | None = None,
        *,
        logprobs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return json.dumps({**self._about, "choices": [choice], **more})


def usage_of(written: Written[Any]) -> dict[str, Any]:
    """Return the counts of an answer or of texts, as OpenAI has them for both."""
    asked, usage = written.input_tokens, written.answer.usage
    return {
        "prompt_tokens": asked,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": asked + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": min(asked, usage.cached_tokens)},
    }


def _logprobs(chances: Sequence[TokenChance]) -> dict[str, Any] | None:
    """Return log-probabilities as Chat Completions has them; None: there are none."""

    def told(chance: Chance) -> dict[str, Any]:
        whole = "\N{REPLACEMENT CHARACTER}" not in chance.text
        return {"token": chance.text, "logprob": chance.logprob, "bytes": list(chance.text.encode()) if whole else None}

    content = [told(each.chosen) | {"top_logprobs": [told(other) for other in each.likeliest]} for each in chances]
    return {"content": content, "refusal": None} if content else None
