"""LlamaIndex's messages as HMT's, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

from hmt_memory.assistant import called

if TYPE_CHECKING:
    from hmt_memory.assistant import Message

_ROLES = {"developer": "system", "chatbot": "assistant", "model": "assistant", "function": "tool"}
_SILENT = (CachePoint, ThinkingBlock)
_MEDIA = (ImageBlock, AudioBlock, VideoBlock, DocumentBlock)


def to_dicts(messages: Sequence[ChatMessage], *, text_only: bool = False) -> list[dict[str, Any]]:
    """Convert LlamaIndex messages: role, content, and if present tool_calls and tool_call_id.

    Args:
        messages: in order.
        text_only: leave out pictures, sound and files instead of refusing them.

    Raises:
        ValueError: a message's content is not text.
    """
    return [_to_dict(message, text_only) for message in messages]


def _to_dict(message: ChatMessage, text_only: bool) -> dict[str, Any]:
    role = MessageRole(message.role).value
    texts, calls = [], []
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            calls.append(_call(block.tool_name, block.tool_kwargs, block.tool_call_id))
        elif not isinstance(block, _SILENT) and (text := _text(block, text_only)) is not None:
            texts.append(text)
    fields: dict[str, Any] = {"role": _ROLES.get(role, role), "content": "\n".join(texts)}  # as ChatMessage.content has them
    calls = calls or [_call_of_openai(call) for call in message.additional_kwargs.get("tool_calls") or ()]
    if calls:
        fields["tool_calls"] = calls
    if (answers := message.additional_kwargs.get("tool_call_id")) is not None and fields["role"] == "tool":
        fields["tool_call_id"] = str(answers)
    return fields


def _text(block: Any, text_only: bool) -> str | None:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, _MEDIA):
        if text_only:
            return None
        raise ValueError(f"HMT models read text only, not a block of type {block.block_type!r}. Leave it out or describe it.")
    texts = (_text(nested, text_only) for nested in block.nested_blocks)  # a citation or a citable document
    return "\n".join(text for text in texts if text is not None)


def _call(name: str, arguments: dict[str, Any] | str, call_id: str | None) -> dict[str, Any]:
    """Return a call in OpenAI's form."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": written}}


def _call_of_openai(call: Any) -> dict[str, Any]:
    """Convert a call that another integration left in `additional_kwargs`: a dict, or an object of OpenAI's client."""
    held = call if isinstance(call, Mapping) else call.model_dump()
    function = held.get("function", held)
    return _call(str(function.get("name")), function.get("arguments") or {}, held.get("id"))


def from_stored(message: Message) -> ChatMessage:
    """Convert a stored message to a LlamaIndex message."""
    return from_dict({**message.fields, "role": message.role, "content": message.content})


def from_dict(message: Mapping[str, Any]) -> ChatMessage:
    """Convert a message of `hmt_memory` to a LlamaIndex message."""
    calls = [
        ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=given)
        for call_id, name, given in _calls_of(message.get("tool_calls") or ())
    ]
    text = message["content"] or ""
    blocks = [TextBlock(text=text)] if text or not calls else []
    known = {role.value for role in MessageRole}
    answers = {"tool_call_id": message["tool_call_id"]} if "tool_call_id" in message else {}
    role = MessageRole(message["role"] if message["role"] in known else "user")
    return ChatMessage(role=role, blocks=[*blocks, *calls], additional_kwargs=answers)


def _calls_of(calls: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str | None, str, Any]]:
    for call in calls:
        name, arguments = called(call)
        yield call.get("id") or None, str(name), arguments
