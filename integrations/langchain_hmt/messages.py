"""LangChain messages as the dicts of `hmt_memory`, and its answers as LangChain messages. Knows both forms; no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.messages.utils import convert_to_messages

from .errors import HMTInvalidRequestError

if TYPE_CHECKING:
    from hmt_memory import ToolCall

_ROLES = {"human": "user", "HumanMessageChunk": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
_ROLES |= {"system": "system", "SystemMessageChunk": "system", "tool": "tool", "ToolMessageChunk": "tool"}
_TEXT = ("text", "text-plain", "input_text", "output_text")
_SILENT = (
    "tool_use",
    "tool_call",
    "tool_call_chunk",
    "function_call",
    "reasoning",
    "thinking",
    "redacted_thinking",
    "non_standard",
)


def to_dicts(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Convert messages of any form that LangChain accepts.

    Raises:
        HMTInvalidRequestError: a message holds images, audio or files.
    """
    return [to_dict(message) for message in convert_to_messages(messages)]


def to_dict(message: BaseMessage) -> dict[str, Any]:
    """Convert one message: role, content, and if present tool_calls, tool_call_id and id."""
    fields: dict[str, Any] = {"role": _role(message), "content": text_of(message.content)}
    if isinstance(message, AIMessage) and message.tool_calls:
        from hmt_memory import ToolCall

        fields["tool_calls"] = [ToolCall(call["name"], call["args"], call["id"] or "").to_dict() for call in message.tool_calls]
    if isinstance(message, ToolMessage):
        fields["tool_call_id"] = message.tool_call_id
    if message.id is not None:
        fields["id"] = message.id
    return fields


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of strings and blocks.

    Raises:
        HMTInvalidRequestError: a block is not text.
    """
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if isinstance(block, str):
            parts.append(block)
        elif kind in _TEXT:
            parts.append(str(block.get("text", "")))
        elif kind == "tool_result":
            parts.append(text_of(block.get("content") or ""))
        elif kind == "json":
            parts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif kind not in _SILENT:
            raise HMTInvalidRequestError(
                f"HMT models read text only, not a content block of type {kind!r}. Leave it out or describe it."
            )
    return "".join(parts)


def is_summary(message: BaseMessage) -> bool:
    """Return whether LangChain's summarization put the message in place of earlier turns."""
    return message.additional_kwargs.get("lc_source") == "summarization"


def from_stored(message: Any) -> dict[str, Any]:
    """Convert a stored message (`hmt_memory` Message) to the form that `convert_to_messages` takes."""
    given = {"role": message.role, "content": message.content}
    fields = message.fields
    if fields.get("tool_calls"):
        given["tool_calls"] = fields["tool_calls"]
    for name in ("tool_call_id", "id"):
        if name in fields:
            given[name] = fields[name]
    return given


def call_chunks(calls: Sequence[ToolCall]) -> list[Any]:
    """Convert calls to the form of a stream's last chunk."""
    return [
        tool_call_chunk(name=call.name, args=json.dumps(call.arguments, ensure_ascii=False), id=call.id, index=index)
        for index, call in enumerate(calls)
    ]


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return {"human": "user", "ai": "assistant"}.get(message.role, message.role)
    if isinstance(message, FunctionMessage):
        return "tool"
    return _ROLES.get(message.type, "user")
