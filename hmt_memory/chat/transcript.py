"""Messages as stretches of a token stream, each rendered alone, so that any of them can be forgotten.

Put together, the stretches are what the chat template writes for the whole conversation. Knows templates by their output: no
template is parsed, short conversations are rendered and compared. Messages become tokens here and nowhere else; a message's
text is read as plain text, so that no message can end its own turn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine.turns import Turns
from ..errors import InputError
from .message import ROLES, SYSTEM_ROLES, UNREAD, Messages, Quoted, check_role, system_texts, validated
from .tools import CALL, CALL_END, call_text

if TYPE_CHECKING:
    from ..engine.backbone import Backbone

_MARK = "hmt-content-mark"
_SYSTEM: dict[str, Any] = {"role": "system", "content": "hmt-system-mark"}
_USER: dict[str, Any] = {"role": "user", "content": "hmt-user-mark"}
_ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "hmt-answer-mark"}


_TOOL = {"type": "function", "function": {"name": "hmt-tool-mark", "description": "", "parameters": {"type": "object"}}}
_TOOLS = """You can call these functions:
{listed}
To call one, write nothing but
{call}
{{"name": "the function's name", "arguments": {{}}}}
{call_end}"""


class Stretch(NamedTuple):
    """One message in the stream."""

    ids: list[int]
    content: tuple[int, int]  # [start, stop) of the message's own text in `ids`


@dataclass(frozen=True)
class Batch:
    """The messages of one call, and their stretches."""

    messages: Sequence[Mapping[str, Any]]
    stretches: Sequence[Stretch]  # one for each; empty for system messages, which are pinned instead

    @property
    def ids(self) -> list[int]:
        """The token ids of the stretches, one after the other."""
        return [token for stretch in self.stretches for token in stretch.ids]

    @property
    def turns(self) -> Turns:
        """The places of the user's turns in `ids`."""
        places = list(itertools.accumulate((len(stretch.ids) for stretch in self.stretches), initial=0))
        asked = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        question = places[asked[-1]] + self.stretches[asked[-1]].content[0] if asked else None
        return Turns([places[number] for number in asked], question)

    @property
    def system(self) -> list[str]:
        """The texts of the system messages."""
        return system_texts(self.messages)

    def followed_by(self, message: Mapping[str, Any], stretch: Stretch) -> Batch:
        """Return the batch with one more message behind it."""
        return Batch([*self.messages, message], [*self.stretches, stretch])


class EncodedPrompt(NamedTuple):
    """Messages up to the beginning of their answer."""

    pinned: list[int]  # the system part
    ids: list[int]  # the turns, and what opens the answer
    turns: Turns  # where the user's turns begin in `ids`


class _Frame(NamedTuple):
    """The text that a template writes around a message."""

    opening: str
    closing: str
    trims: bool  # whether it strips the text


class Transcript:
    """A conversation as one backbone's template writes it, message by message.

    Without a template it is a plain script: `User: ...`, `Assistant: ...`.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._frames: dict[str, _Frame] = {}
        self._tools_known: bool | None = None
        self._start = backbone.start_ids()
        self._lead: list[dict[str, str]] = []  # rendered before the turns, so that the template adds no default of its own
        self.has_template = bool(getattr(backbone.tokenizer, "chat_template", None))
        if self.has_template:
            self._lead = [_SYSTEM] if self._renders_system() else []
            self._asked, self._prompted = (self._render([_USER], prompt=prompt) for prompt in (False, True))
        self.stop = () if self.has_template else ("\nUser:",)  # text that ends an answer without an end token

    def stretch(self, message: Mapping[str, Any], *, first: bool) -> Stretch:
        """Return the stretch of one turn. The `first` of its stream lacks the start token, which every view begins with.

        Raises:
            InputError: the template has no place for such a message.
        """
        message = self._writable(message)
        if isinstance(message.get("content"), str) and set(message) <= {"role", "content"}:
            frame = self._frame(message["role"])
            text = message["content"].strip() if frame.trims else message["content"]
            stretch = self._encode(frame, text)
        elif self.has_template:
            ids = self._with_fields(message)
            stretch = Stretch(ids, (0, len(ids)))
        else:
            stretch = self._encode(self._frame(message["role"]), _as_text(message))
        return self.without_start(stretch) if first else stretch

    def batch(self, messages: Messages, *, first: bool) -> Batch:
        """Write the messages of one call.

        Args:
            messages: one or several.
            first: whether nothing stands before them in their stream.

        Raises:
            InputError: messages are malformed, or the template has no place for one.
        """
        batch = validated(messages)
        return Batch(batch, self.stretches(batch, first=first))

    def stretches(self, messages: Sequence[Mapping[str, Any]], *, first: bool) -> list[Stretch]:
        """Write messages one by one; system messages, which are pinned instead, have an empty stretch."""
        written: list[Stretch] = []
        for message in messages:
            pinned = message["role"] in SYSTEM_ROLES
            written.append(Stretch([], (0, 0)) if pinned else self.stretch(message, first=first))
            first &= not written[-1].ids
        return written

    def asked(self, messages: Messages, *, before: Sequence[int] | None = None) -> EncodedPrompt:
        """Write a conversation that is to be answered, or its continuation; system messages are pinned.

        Args:
            messages: one or several.
            before: the latest token ids of the stream so far, in which an answer is closed first. None: there is no stream.

        Raises:
            InputError: messages are malformed, there are none to answer, or the template has no place for one.
        """
        batch = self.batch(messages, first=before is None)
        if not batch.ids:
            raise InputError("there is nothing to answer: add a user message.")
        closing = [] if before is None else self._closing(before)
        ids = [*closing, *batch.ids, *self.answer_opening()]
        return EncodedPrompt(self.pinned("\n\n".join(batch.system) or None), ids, batch.turns.behind(len(closing)))

    def around(self, before: str, after: str, *, system: str | None = None) -> tuple[list[int], list[int]]:
        """Write a conversation of one user turn, cut in two where the rest of its text is to stand.

        Args:
            before: the beginning of the turn's text.
            after: its end.
            system: the system prompt.

        Returns:
            Token ids from the system part to `before`, and from `after` to the beginning of the answer.
        """
        frame = self._frame("user")
        opening = self._encode(_Frame(frame.opening, "", False), before).ids
        closing = self._encode(_Frame("", frame.closing, False), after).ids
        return [*self.pinned(system), *opening], [*closing, *self.answer_opening()]

    def answer_opening(self) -> list[int]:
        """Return the token ids after which the model answers."""
        return self._backbone.encode(self._answer_opening())

    def answer(self, ids: Sequence[int]) -> Stretch:
        """Return the stretch of a generated answer: its opening, its `ids` without an end token, its closing."""
        ended = len(ids) > 0 and ids[-1] in self._backbone.end_ids
        body = list(ids[:-1] if ended else ids)
        opening = self.answer_opening()
        closing = self._backbone.encode(self._frame("assistant").closing)
        return Stretch([*opening, *body, *closing], (len(opening), len(opening) + len(body)))

    def without_start(self, stretch: Stretch) -> Stretch:
        """Return a stretch as it stands at the beginning of a stream."""
        skip = len(self._start) if self._start and stretch.ids[: len(self._start)] == self._start else 0
        start, stop = stretch.content
        return Stretch(stretch.ids[skip:], (max(0, start - skip), max(0, stop - skip)))

    def pinned(self, system: str | None, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Return the token ids of the system part; without one, of what the template itself puts first.

        Args:
            system: the system text.
            tools: JSON schemas of functions, in OpenAI's form; described in the system text if the template has no place
                for them.
        """
        if tools:
            quoted = Quoted(self._backbone)
            written = self._native_tools(quoted.hide(system), quoted.hide(tools))
            if written is not None:
                return quoted.encode(written)
            listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            system = f"{system}\n\n" * bool(system) + _TOOLS.format(listed=listed, call=CALL, call_end=CALL_END)
        if system:
            return self.aside(system)
        return self._backbone.encode(self._beginning()) if self.has_template else []

    def aside(self, text: str) -> list[int]:
        """Return the token ids of a text that is not a turn: a system message, if the template knows them."""
        return self.aside_stretch(text).ids

    def aside_stretch(self, text: str) -> Stretch:
        """Return such a text as a stretch of a stream."""
        if not self.has_template:
            ids = self._backbone.encode(f"{text}\n\n", literal=True)
            return Stretch(ids, (0, len(ids)))
        role = "system" if self._lead else "user"  # Gemma's template has no system turn
        opening, _, closing = self._render([{"role": role, "content": _MARK}], lead=False).partition(_MARK)
        return self.without_start(self._encode(_Frame(opening, closing, False), text))

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text inside a turn; special tokens in it are plain text."""
        return self._backbone.encode(text, literal=True) if text else []

    def _renders_system(self) -> bool:
        """Tell whether the template writes a system message, and nothing else of its own before the turns that follow."""
        try:
            alone, followed = (self._render(messages, lead=False) for messages in ([_SYSTEM], [_SYSTEM, _USER]))
        except InputError:
            return False
        return _SYSTEM["content"] in alone and followed.startswith(alone)

    def _beginning(self) -> str:
        """Return what the template itself puts before the first turn of a conversation without a system message."""
        frame = self._frame("user")
        whole, turn = self._render([_USER], lead=False), f"{frame.opening}{_USER['content']}{frame.closing}"
        return whole.removesuffix(turn) if whole.endswith(turn) else ""

    def _closing(self, answer: Sequence[int]) -> list[int]:
        """Return the token ids that close `answer`, of which the latest are given; one that ended itself is not ended again."""
        ids = self._backbone.encode(self._frame("assistant").closing)
        ended = len(answer) > 0 and answer[-1] in self._backbone.end_ids and ids[:1] == [answer[-1]]
        return ids[1:] if ended else ids

    def _check_role(self, role: str) -> None:
        """Raise InputError for a role that is no short word, or a word that is one of the tokenizer's special tokens."""
        check_role(role)
        if role not in ROLES and self._backbone.holds_special(role):
            raise InputError(f"the role {role!r} reads like a special token of {self._backbone.name}. Use user or assistant.")

    def _frame(self, role: str) -> _Frame:
        self._check_role(role)
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
        """Return a message without fields that no template writes, and with calls and results as text if it knows no tools."""
        message = {key: value for key, value in message.items() if key not in UNREAD}
        if not ("tool_calls" in message or "tool_call_id" in message) or self._knows_tools():
            return message
        calls = [call_text(call) for call in message.get("tool_calls") or ()]
        text = "\n".join([*([message["content"]] if message.get("content") else []), *calls])
        if message["role"] != "tool":
            return {"role": message["role"], "content": text}
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}

    def _knows_tools(self) -> bool:
        if self._tools_known is None:
            self._tools_known = self._native_tools(None, [_TOOL]) is not None
        return self._tools_known

    def _with_fields(self, message: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a message with more than text, such as tool calls, as the template writes it."""
        self._check_role(message["role"])
        quoted = Quoted(self._backbone)
        hidden = quoted.hide(message)
        for context in ([_USER], [_USER, _ASSISTANT], []):
            try:
                return quoted.encode(self._after(self._render(context), [*context, hidden]))
            except InputError:
                continue
        raise InputError(f"the chat template of {self._backbone.name} has no place for the message {dict(message)!r}.")

    def _native_tools(self, system: str | None, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the system part with `tools`, if the template writes them there."""
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
        """Return the token ids of a framed text as the template tokenises it; special tokens in `text` are plain text."""
        encode = self._backbone.encode
        opening, closing = encode(frame.opening), encode(frame.closing)
        if not self._backbone.holds_special(text):
            whole = encode(frame.opening + text + frame.closing)
            stop = len(whole) - len(closing)
            framed = whole[: len(opening)] == opening and whole[stop:] == closing and stop >= len(opening)
            return Stretch(whole, (len(opening), stop) if framed else (0, len(whole)))
        said = encode(text, literal=True)
        return Stretch([*opening, *said, *closing], (len(opening), len(opening) + len(said)))


def _as_text(message: Mapping[str, Any]) -> str:
    """Write a message with more than text where there is no template."""
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return f"{message.get('content') or ''} {json.dumps(rest, ensure_ascii=False)}".strip()
