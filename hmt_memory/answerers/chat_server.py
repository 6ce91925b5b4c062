"""A chat model behind a server of OpenAI's API: it answers from notes, and its own tokens are not known. Knows no memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..chat.grammar import tool_choice_of
from ..chat.tools import ToolCall
from ..errors import AnswererError, InputError
from ..sessions.chat_model import Ending
from .connection import Connection

_UNKNOWN = ("logits_processors", "logprobs", "abstain_from")  # what no server of this API can be asked for, or nobody hears
_EXTRA = {"top_k": "top_k", "min_new_tokens": "min_tokens", "repetition_penalty": "repetition_penalty"}  # in vLLM's words
_NEUTRAL = {"top_k": 0, "min_new_tokens": 0, "repetition_penalty": 1.0}


class ChatServer:
    """A chat model behind a server of OpenAI's API, such as vLLM, llama.cpp, Ollama or OpenAI itself.

    `session.reply(messages, answerer=ChatServer("http://localhost:8000/v1"))` lets it answer from notes of what the session
    remembers; so do `Assistant(model="http://localhost:8000/v1")` and the commands' `--model`.

    Args:
        address: `http://host:port/v1`, with `#name` behind it where several models are served; or `openai:name` for
            $OPENAI_BASE_URL, by default OpenAI.
        model: the name of the model, if the address has none.
        api_key: None: $HMT_API_KEY, or $OPENAI_API_KEY for `openai:`.
        timeout: the seconds after which a server that says nothing is given up.
        http_client: an `httpx.Client` to call it by; None: a new one.

    Raises:
        MissingDependencyError: the client is not installed.
    """

    def __init__(
        self,
        address: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        http_client: Any = None,
    ) -> None:
        self._connection = Connection(address, model, api_key=api_key, timeout=timeout, http_client=http_client)

    @property
    def name(self) -> str:
        """The model's name, or the address where none was given."""
        return self._connection.name

    def reach(self) -> None:
        """Ask the server which model it serves, unless that was given.

        Raises:
            AnswererError: it cannot be reached.
            InputError: it serves several.
        """
        self._connection.model  # noqa: B018

    def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str | Ending]:
        """Answer messages piece by piece, as `ChatModel` says.

        Args:
            messages: as there.
            **options: as there. `top_k`, `min_new_tokens` and `repetition_penalty` are sent in vLLM's words.

        Raises:
            InputError: the server cannot be asked for an option, or refuses the call.
            ModelNotFoundError: it has no such model.
            AnswererError: it cannot be reached, lets nobody in, or breaks off.
        """
        asked = _asked(options)
        with self._connection.errors():
            create: Any = self._connection.client.chat.completions.create  # its types are those of OpenAI's own models
            with create(
                model=self._connection.model,
                messages=[dict(message) for message in messages],
                stream=True,
                stream_options={"include_usage": True},
                **self._limited(asked),
            ) as stream:
                yield from self._pieces(stream)

    def _limited(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Name the limit as the server knows it: OpenAI has a new name, which others do not all know."""
        if "max_tokens" in asked and "api.openai.com" in self._connection.url:
            asked["max_completion_tokens"] = asked.pop("max_tokens")
        return asked

    def _pieces(self, stream: Iterator[Any]) -> Iterator[str | Ending]:
        reason, usage, calls = None, None, _Calls()
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
                calls.push(choice.delta.tool_calls or ())
                if text := choice.delta.content or choice.delta.refusal:
                    yield text
        if reason is None:
            raise AnswererError(f"{self._connection.url} breaks off before its answer ends. Ask again.")
        counts = (None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
        yield Ending(reason, calls.whole(), *counts)


class _Calls:
    """The calls of functions in an answer, which come in parts."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[str, str]] = {}

    def push(self, deltas: Sequence[Any]) -> None:
        for delta in deltas:
            call = self._parts.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            call["id"] = delta.id or call["id"]
            if delta.function is not None:
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""

    def whole(self) -> list[ToolCall]:
        return [_call(part) for _, part in sorted(self._parts.items())]


def _call(part: Mapping[str, str]) -> ToolCall:
    try:
        arguments = json.loads(part["arguments"] or "{}")
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise AnswererError(f"the answer calls {part['name']} with arguments that are no JSON object. Ask again.")
    return ToolCall(part["name"], arguments, part["id"])


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked for in OpenAI's words, and nothing that changes nothing."""
    for name in _UNKNOWN:
        if options.get(name) not in (None, (), 0.0):
            raise InputError(f"a server cannot be asked for {name}. Leave it out, or answer with a model that runs here.")
    asked = {name: options[name] for name in ("temperature", "top_p", "seed") if options.get(name) is not None}
    if "max_new_tokens" in options:
        asked["max_tokens"] = options["max_new_tokens"]
    if stops := list(options.get("stop") or ()):
        asked["stop"] = stops
    if tools := options.get("tools"):
        choice = tool_choice_of(options.get("tool_choice"), tools)
        named = choice not in (None, "none", "required")
        asked["tools"] = [dict(tool) for tool in tools]
        asked |= {"tool_choice": {"type": "function", "function": {"name": choice}} if named else choice} if choice else {}
    if schema := options.get("schema"):
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    extra = {_EXTRA[name]: options[name] for name in _EXTRA if options.get(name, _NEUTRAL[name]) != _NEUTRAL[name]}
    return asked | ({"extra_body": extra} if extra else {})
