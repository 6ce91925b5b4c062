"""Answers with a form, by llguidance: JSON of a schema, or calls of functions. Knows tokens and grammars; no memory.

A `Constraint` is a logits processor: text that does not fit the grammar cannot be said. Calls have the form that `tools` reads.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..engine.decoding import StopStrings
from ..errors import InputError, MissingDependencyError
from .tools import CALL, CALL_END, ToolCall, parse_calls

if TYPE_CHECKING:
    from ..engine.backbone import Backbone

_TAIL = 16  # latest tokens that are searched for the beginning of a call
RESERVE = 40  # tokens before the limit, or a third of it, in which values are brought to an end
_JSON_OPTIONS = {"whitespace_flexible": False, "lenient": True, "json_allowed_escapes": 'nrtbf\\"'}
_CLOSING = ("}", "]", '"')
_tokenizers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Form:
    """The form that an answer must have."""

    grammar: str  # Lark, as llguidance reads it
    trigger: str | None = None  # the grammar begins with this text, and what comes before it is free; None: at once


def json_form(schema: Mapping[str, Any]) -> Form:
    """Make the form of JSON under a schema."""
    return Form(f"start: {_json(strict(schema))}")


def form_of(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | None = None, schema: Mapping[str, Any] | None = None
) -> Form | None:
    """Return the form of an answer to a request; None: free text.

    Args:
        tools: functions in OpenAI's form ({"type": "function", "function": {"name", "description", "parameters"}}).
        choice: None or "auto": the model may call a function; "none": it may not; "required": it must; a name: it must call
            that function.
        schema: of the JSON to answer, if no function is called.

    Raises:
        InputError: a tool has another form, or `choice` names no tool.
    """
    calls = _call_rules(tools or (), choice)
    if not calls:
        return None if schema is None else json_form(schema)
    names = " | ".join(f"call{number}" for number in range(len(calls)))
    rules = [f'call: "{CALL}" gap ({names}) gap "{CALL_END}"', r"gap: /[ \n]?/"]
    rules += [f"call{number}: {rule}" for number, rule in enumerate(calls)]
    if choice not in (None, "auto"):
        return Form("\n".join(["start: call", *rules]))
    if schema is not None:
        return Form("\n".join(["start: call | answer", f"answer: {_json(strict(schema))}", *rules]))
    return Form("\n".join(["start: call", *rules]), trigger=CALL)


def tool_choice_of(given: Any, tools: Sequence[Mapping[str, Any]] | None) -> str | None:
    """Convert a framework's tool choice to the form that `form_of` takes.

    Args:
        given: as there, or False: the model decides; "any" or True: it must call a function; {"type": "function", "function":
            {"name": ...}}: it must call that function.
        tools: the functions of the call.

    Raises:
        InputError: the choice has an unknown form, or names no tool.

    >>> tool_choice_of("any", [])
    'required'
    """
    if given in (None, False, "auto", "none"):
        return given or None
    if given in (True, "any", "required"):
        return "required"
    name = given.get("function", given).get("name") if isinstance(given, Mapping) else given
    known = [tool["function"]["name"] for tool in tools or () if "function" in tool]
    if name not in known:
        raise InputError(f"tool_choice={given!r} names no tool of this call. Tools: {', '.join(known) or 'none'}.")
    return str(name)


_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_JOINED = ("allOf", "anyOf", "oneOf", "$ref", "if")  # keywords that may add properties to an object


def strict(schema: Any, *, closed: bool = True) -> Any:
    """Close a JSON schema's objects to further properties, where they name some and nothing else adds any.

    >>> strict({"type": "object", "properties": {"n": {"type": "integer"}}})["additionalProperties"]
    False
    """
    if not isinstance(schema, Mapping):
        return schema
    joined = any(key in schema for key in _JOINED)
    result = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            result[key] = {name: strict(inner) for name, inner in value.items()}
        elif key in _LISTS and isinstance(value, (list, tuple)):
            # An alternative is a whole object and closed; a part of one object is not.
            result[key] = [strict(inner, closed=key == "anyOf" and "properties" not in schema) for inner in value]
        elif key in _SCHEMAS:
            result[key] = strict(value)
    if closed and not joined and isinstance(schema.get("properties"), Mapping) and "additionalProperties" not in schema:
        result["additionalProperties"] = False
    return result


class Speech:
    """The free text of an answer while it is written, without its calls; without tools, everything is text."""

    def __init__(self, *, tools: bool) -> None:
        self._tools = tools
        self._calls = StopStrings([CALL] if tools else [])
        self._written = self._given = ""
        self.text = ""  # the free text, once it is finished
        self.tool_calls: list[ToolCall] = []

    def push(self, piece: str) -> str:
        """Append a piece; return the free text that can be given out now."""
        self._written += piece
        free = self._calls.push(piece) if self._calls.found is None else ""
        self._given += free
        return free

    def finish(self) -> str:
        """Return the free text still held, when the answer is whole."""
        self.text, self.tool_calls = parse_calls(self._written) if self._tools else (self._written, [])
        return self.text[len(self._given) :]


class Constraint:
    """A logits processor for one answer: `__call__(ids [1, t], scores [1, v])`, as transformers calls it.

    Args:
        backbone: its tokenizer says what the tokens are.
        form: the form of the answer.
        limit: the largest number of tokens. Near it, strings, lists and objects are brought to an end, so that the answer can
            be parsed.

    Raises:
        MissingDependencyError: llguidance is not installed.
        InputError: the form's schema is not supported.
    """

    def __init__(self, backbone: Backbone, form: Form, *, limit: int) -> None:
        self._backbone, self._form, self._limit = backbone, form, limit
        tokenizer, self._marks = _tokenizer_of(backbone)
        self._matcher = _matcher(tokenizer, form.grammar)
        self._active = form.trigger is None
        self._ids: list[int] = []
        self._begun = False

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores [1, v] of tokens that do not fit the grammar after the ids [1, t] so far."""
        if self._begun:
            self._push(int(ids[0, -1]))
        self._begun = True
        if not self._active or self._matcher.is_error():
            return scores
        allowed = np.zeros(scores.shape[-1], bool)
        if not self._matcher.is_stopped():
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            bits = np.unpackbits(mask, bitorder="little")[: len(allowed)].astype(bool)
            allowed[: len(bits)] = bits
        whole = self._matcher.is_accepting() or not allowed.any()
        allowed[sorted(self._backbone.end_ids)] = whole
        if not whole:
            allowed = self._closing(allowed)
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))

    def _push(self, token: int) -> None:
        self._ids.append(token)
        if self._active:
            self._matcher.consume_token(token)
        elif self._form.trigger is not None:
            text = self._backbone.decode(self._ids[-_TAIL:])
            start = text.find(self._form.trigger)
            if start >= 0:
                self._active = bool(self._matcher.consume_tokens(self._backbone.encode(text[start:], literal=True)))

    def _closing(self, allowed: np.ndarray) -> np.ndarray:
        """Allow only tokens that end a value, near the limit and if there are any."""
        if self._limit - len(self._ids) > min(RESERVE, self._limit // 3):
            return allowed
        can = {mark: token for mark, token in self._marks.items() if allowed[token]}
        in_string = "x" in can
        order = ('"',) if in_string else _CLOSING
        chosen = next((can[mark] for mark in order if mark in can), None)
        if chosen is None:
            return allowed
        only = np.zeros_like(allowed)
        only[chosen] = True
        return only


def _json(schema: Any) -> str:
    return "%json " + json.dumps({**_as_object(schema), "x-guidance": _JSON_OPTIONS}, ensure_ascii=False)


def _as_object(schema: Any) -> Mapping[str, Any]:
    if not isinstance(schema, Mapping):
        raise InputError(f"a JSON schema is an object, not {type(schema).__name__}.")
    return schema


def _call_rules(tools: Sequence[Mapping[str, Any]], choice: str | None) -> list[str]:
    functions = [_function(tool) for tool in tools]
    if choice == "none":
        return []
    if choice not in (None, "auto", "required"):
        functions = [function for function in functions if function["name"] == choice]
        if not functions:
            known = ", ".join(repr(_function(tool)["name"]) for tool in tools) or "none"
            raise InputError(f"there is no tool {choice!r} to choose. Tools of this call: {known}.")
    if choice == "required" and not functions:
        raise InputError("a tool call is required, and there are no tools.")
    return [_json(_call_schema(function)) for function in functions]


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f'a tool is {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}, not {tool!r}.')
    return function


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = dict(strict(function.get("parameters") or {"type": "object", "properties": {}}))
    definitions = {name: parameters.pop(name) for name in ("$defs", "definitions") if name in parameters}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **definitions,  # references in the parameters are from the root
    }


def _tokenizer_of(backbone: Backbone) -> tuple[Any, dict[str, int]]:
    """Return llguidance's form of a tokenizer, made once, and the tokens that are one closing mark or the letter x."""
    if backbone.tokenizer is None:
        raise InputError("answers with a form need text, and this model was wrapped without a tokenizer. Wrap it with one.")
    known = _tokenizers.get(backbone.tokenizer)
    if known is None:
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise MissingDependencyError(
                "tool calls and structured output need llguidance. Run: pip install llguidance"
            ) from error
        ends = sorted(backbone.end_ids)
        made = from_tokenizer(backbone.tokenizer, n_vocab=max(backbone.vocab_size, len(backbone.tokenizer)), eos_token=ends)
        marks = {mark: ids[0] for mark in (*_CLOSING, "x") if len(ids := backbone.encode(mark, literal=True)) == 1}
        known = _tokenizers[backbone.tokenizer] = (made, marks)
    return known


def _matcher(tokenizer: Any, grammar: str) -> Any:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    if matcher.is_error():
        raise InputError(f"this schema is not supported: {matcher.get_error().splitlines()[0]}")
    return matcher
