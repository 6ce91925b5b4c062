"""The calls of functions in a model's answer. Knows text; no tokens, no grammar.

A call is `CALL`, a JSON object with the function's name and arguments, `CALL_END`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CALL, CALL_END = "<tool_call>", "</tool_call>"  # around a call, as the Hermes and Qwen families write it


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: dict[str, Any]
    id: str

    def to_dict(self) -> dict[str, Any]:
        """Return the call as a message of OpenAI's form holds it."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def parse_calls(text: str) -> tuple[str, list[ToolCall]]:
    """Split an answer into its free text and its calls; an imitation of a call is text.

    >>> parse_calls('Wait. <tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>')[1][0].arguments
    {'n': 1}
    """
    said, calls = [], []
    head, *parts = text.split(CALL)
    said.append(head)
    for part in parts:
        body, ended, after = part.partition(CALL_END)
        call = _call(body)
        if call is None:
            said.append(CALL + part)
        else:
            calls.append(call)
            said.append(after if ended else "")
    return "".join(said), calls


def _call(body: str) -> ToolCall | None:
    try:
        held = json.loads(body)
    except json.JSONDecodeError:
        return None
    if not isinstance(held, dict) or not isinstance(held.get("name"), str) or not isinstance(held.get("arguments"), dict):
        return None
    return ToolCall(held["name"], held["arguments"], f"call_{uuid.uuid4().hex[:24]}")


def call_text(call: Mapping[str, Any]) -> str:
    """Write a call in OpenAI's form as a model writes it."""
    name, arguments = called(call)
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL}\n{body}\n{CALL_END}"


def called(call: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return name and arguments of a call in OpenAI's or LangChain's form."""
    function = call.get("function", call)
    arguments = function.get("arguments", function.get("args", {}))
    if isinstance(arguments, str):
        with suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
    return function.get("name"), arguments
