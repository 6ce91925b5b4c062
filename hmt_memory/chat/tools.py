"""The calls of functions in a model's answer. Knows text; no tokens, no grammar.

A call is `transcript.CALL`, a JSON object with the function's name and arguments, `transcript.CALL_END`.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from .transcript import CALL, CALL_END


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: dict[str, Any]
    id: str

    def to_dict(self) -> dict[str, Any]:
        """As a message of OpenAI's form holds it."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def parse_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The free text of an answer, and the calls in it; what looks like a call and is none is text.

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
