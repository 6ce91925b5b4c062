"""Messages as stretches of a token stream, each rendered alone, so that any of them can be forgotten.

One after the other, the stretches are what the chat template writes for the whole conversation. Knows templates by their
output (`chat`); what a message says is read as plain text, so that no message can end its own turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from . import chat
from .errors import InputError

if TYPE_CHECKING:
    from .backbone import Backbone

_MARK = "hmt-content-mark"
_USER: dict[str, Any] = {"role": "user", "content": "hmt-user-mark"}
_ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "hmt-answer-mark"}


CALL, CALL_END = "<tool_call>", "</tool_call>"  # around a call, as the Hermes and Qwen families write it
_TOOL = {"type": "function", "function": {"name": "hmt-tool-mark", "description": "", "parameters": {"type": "object"}}}
_TOOLS = """You can call these functions:
{listed}
To call one, write nothing but
{call}
{{"name": "the function's name", "arguments": {{}}}}
{call_end}"""


Messages = Sequence[Mapping[str, Any]] | Mapping[str, Any]


class Stretch(NamedTuple):
    """One message in the stream."""

    ids: list[int]
    content: tuple[int, int]  # [start, stop) of what the message itself says, in `ids`


class _Frame(NamedTuple):
    """What a template writes around the text of a message."""

    opening: str
    closing: str
    trims: bool  # whether it strips the text


class Transcript:
    """How one backbone's template writes a conversation, message by message.

    Without a template it is a plain script: `User: ...`, `Assistant: ...`.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._frames: dict[str, _Frame] = {}
        self._tools_known: bool | None = None
        self._start = backbone.start_ids()
        self._lead: list[dict[str, str]] = []
        self.has_template = bool(getattr(backbone.tokenizer, "chat_template", None))
        if self.has_template:
            self._lead = chat.lead(backbone)
            self._asked, self._prompted = (self._render([_USER], prompt=prompt) for prompt in (False, True))
        self.stop = () if self.has_template else ("\nUser:",)  # what ends an answer that does not end itself

    def stretch(self, message: Mapping[str, Any], *, first: bool) -> Stretch:
        """The stretch of one turn; `first` in its stream, it goes without the start token that every view begins with.

        Raises:
            InputError: the template has no place for such a message.
        """
        message = self._writable(message)
        if isinstance(message.get("content"), str) and set(message) <= {"role", "content"}:
            frame = self._frame(message["role"])
            text = message["content"].strip() if frame.trims else message["content"]
            found = self._encode(frame, text)
        else:
            ids = self._backbone.encode(self._with_fields(message))
            found = Stretch(ids, (0, len(ids)))
        return self.without_start(found) if first else found

    def answer_opening(self) -> list[int]:
        """Token ids after which the model answers."""
        return self._backbone.encode(self._answer_opening())

    def answer(self, ids: Sequence[int]) -> Stretch:
        """The stretch of a generated answer: what opens it, its `ids` without an end token, what closes it."""
        ended = len(ids) > 0 and ids[-1] in self._backbone.end_ids
        body = list(ids[:-1] if ended else ids)
        opening = self.answer_opening()
        closing = self._backbone.encode(self._frame("assistant").closing)
        return Stretch([*opening, *body, *closing], (len(opening), len(opening) + len(body)))

    def without_start(self, stretch: Stretch) -> Stretch:
        """`stretch` as it stands at the beginning of a stream."""
        skip = len(self._start) if self._start and stretch.ids[: len(self._start)] == self._start else 0
        start, stop = stretch.content
        return Stretch(stretch.ids[skip:], (max(0, start - skip), max(0, stop - skip)))

    def pinned(self, system: str | None, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Token ids of the system part; without one, of what the template itself puts first.

        Args:
            tools: JSON schemas of functions, in OpenAI's form; described in the system text where the template has no place
                for them.
        """
        if tools:
            written = self._native_tools(system, tools)
            if written is not None:
                return self._backbone.encode(written)
            listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            system = f"{system}\n\n" * bool(system) + _TOOLS.format(listed=listed, call=CALL, call_end=CALL_END)
        if system:
            return self.aside(system)
        return self._backbone.encode(chat.default_system_text(self._backbone)) if self.has_template else []

    def aside(self, text: str) -> list[int]:
        """Token ids of a text that is no turn of the conversation: a system message, where the template knows them."""
        return self.aside_stretch(text).ids

    def aside_stretch(self, text: str) -> Stretch:
        """The same where it stands in a stream."""
        if not self.has_template:
            ids = self._backbone.encode(f"{text}\n\n", literal=True)
            return Stretch(ids, (0, len(ids)))
        role = "system" if chat.renders_system(self._backbone) else "user"
        opening, _, closing = self._render([{"role": role, "content": _MARK}], lead=False).partition(_MARK)
        return self.without_start(self._encode(_Frame(opening, closing, False), text))

    # --- what the template writes -----------------------------------------------------------------------------------

    def _frame(self, role: str) -> _Frame:
        if role not in self._frames:
            self._frames[role] = self._probe(role) if self.has_template else _Frame(f"{role.capitalize()}: ", "\n", False)
        return self._frames[role]

    def _probe(self, role: str) -> _Frame:
        for context in ([_USER], [_USER, _ASSISTANT], []) if role == "assistant" else ([_USER, _ASSISTANT], [], [_USER]):
            try:
                before = self._render(context)
                opening, mark, closing = self._after(before, [*context, {"role": role, "content": _MARK}]).partition(_MARK)
                spaced = self._after(before, [*context, {"role": role, "content": f" {_MARK} "}])
            except InputError:
                continue
            if mark:
                return _Frame(opening, closing, f"{opening} {_MARK} " not in spaced)
        raise InputError(
            f"the chat template of {self._backbone.name} has no place for the role {role!r}. Use user or assistant."
        )

    def _writable(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message without what no template writes, and, where the template knows no tools, with calls and results as text."""
        message = {key: value for key, value in message.items() if key != "id"}  # that is for those who keep it
        if not ("tool_calls" in message or "tool_call_id" in message) or self._knows_tools():
            return message
        calls = [_call_text(call) for call in message.get("tool_calls") or ()]
        text = "\n".join([*([message["content"]] if message.get("content") else []), *calls])
        if message["role"] != "tool":
            return {"role": message["role"], "content": text}
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}

    def _knows_tools(self) -> bool:
        if self._tools_known is None:
            self._tools_known = self._native_tools(None, [_TOOL]) is not None
        return self._tools_known

    def _with_fields(self, message: Mapping[str, Any]) -> str:
        """A message with more than text, such as tool calls, as the template writes it."""
        if not self.has_template:
            rest = {key: value for key, value in message.items() if key not in ("role", "content")}
            text = f"{message.get('content') or ''} {json.dumps(rest, ensure_ascii=False)}".strip()
            return f"{str(message['role']).capitalize()}: {text}\n"
        for context in ([_USER], [_USER, _ASSISTANT], []):
            try:
                return self._after(self._render(context), [*context, message])
            except InputError:
                continue
        raise InputError(f"the chat template of {self._backbone.name} has no place for the message {dict(message)!r}.")

    def _native_tools(self, system: str | None, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The system part with `tools`, if the template writes them there."""
        if not (self.has_template and self._lead):
            return None
        messages = [{"role": "system", "content": system or ""}]
        try:
            without = self._backbone.render(messages, add_generation_prompt=False)
            alone = self._backbone.render(messages, add_generation_prompt=False, tools=tools)
            followed = self._backbone.render([*messages, _USER], add_generation_prompt=False, tools=tools)
        except InputError:
            return None
        return alone if alone != without and followed.startswith(alone) else None

    def _answer_opening(self) -> str:
        if not self.has_template:
            return "Assistant:"
        if not self._prompted.startswith(self._asked):
            raise InputError(f"the chat template of {self._backbone.name} has no place where an answer begins.")
        return self._prompted[len(self._asked) :]

    def _render(self, messages: Sequence[Mapping[str, Any]], *, lead: bool = True, prompt: bool = False) -> str:
        given = [*self._lead, *messages] if lead else list(messages)
        return self._backbone.render(given, add_generation_prompt=prompt) if given else ""

    def _after(self, before: str, messages: Sequence[Mapping[str, Any]]) -> str:
        whole = self._render(messages)
        if not whole.startswith(before):
            raise InputError("the chat template writes earlier turns differently once another follows.")
        return whole[len(before) :]

    def _encode(self, frame: _Frame, text: str) -> Stretch:
        """Token ids of opening, text and closing as the template's text is tokenised, special tokens in `text` as text."""
        encode = self._backbone.encode
        opening, closing = encode(frame.opening), encode(frame.closing)
        if not self._backbone.holds_special(text):
            whole = encode(frame.opening + text + frame.closing)
            stop = len(whole) - len(closing)
            framed = whole[: len(opening)] == opening and whole[stop:] == closing and stop >= len(opening)
            return Stretch(whole, (len(opening), stop) if framed else (0, len(whole)))
        said = encode(text, literal=True)
        return Stretch([*opening, *said, *closing], (len(opening), len(opening) + len(said)))


def _call_text(call: Mapping[str, Any]) -> str:
    """A call of OpenAI's form as a model writes it."""
    name, arguments = called(call)
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL}\n{body}\n{CALL_END}"


def called(call: Mapping[str, Any]) -> tuple[Any, Any]:
    """Name and arguments of a call in OpenAI's or LangChain's form."""
    function = call.get("function", call)
    arguments = function.get("arguments", function.get("args", {}))
    if isinstance(arguments, str):
        with suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
    return function.get("name"), arguments


def validated(messages: Messages) -> list[Mapping[str, Any]]:
    """Messages as plain dicts.

    Raises:
        InputError: a message lacks its role or content, is not JSON, or is not Unicode text.
    """
    found: list[Mapping[str, Any]] = []
    for message in [messages] if isinstance(messages, Mapping) else messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(f"a message is a dict with a 'role' and a 'content' string, not {str(message)[:200]!r}.")
        plain = set(message) == {"role", "content"} or message["role"] in chat.SYSTEM_ROLES
        if not isinstance(message["content"], str) and (plain or message["content"] is not None):
            raise InputError(
                f"the content of a message is a string, not {type(message['content']).__name__}. Join its text parts."
            )
        try:
            json.dumps(dict(message), ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:  # UnicodeEncodeError is one of the latter
            raise InputError(f"a message cannot be stored: {error}. Use JSON types and valid Unicode.") from error
        found.append(dict(message))
    return found


def system_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the system messages among these say."""
    return [message["content"] for message in messages if message["role"] in chat.SYSTEM_ROLES]
