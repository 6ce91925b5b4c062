"""Which calls belong to one replica: those about one session, corpus or response of one tenant. Knows calls; no Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers

from ..errors import InputError
from ..server import replays
from ..server.bodies import ChatRequest
from ..server.chat import SESSION_HEADERS, session_of
from ..server.guard import named_in
from ..server.items import Stem

_CHAT, _RESPONSES = "/v1/chat/completions", "/v1/responses"
# What the addresses of sessions, corpora and responses begin with, and what is named behind it.
_ADDRESSES = {
    "/v1/sessions/": "session",
    "/v1/conversations/": "session",
    "/mcp/": "session",
    "/sessions/": "session",
    "/v1/corpora/": "corpus",
    "/v1/responses/": "response",
}


def key_of(path: str, headers: Headers, body: bytes) -> str | None:
    """Return what calls have in common that one replica should answer; None: any may.

    Args:
        path: of the call.
        headers: of the call.
        body: of the call.
    """
    for beginning, kind in _ADDRESSES.items():
        if path.startswith(beginning):
            name = path.removeprefix(beginning)
            return _response(name.partition("/")[0]) if kind == "response" else f"{kind}:{named_in(name)}"
    named = _named(path, headers, body)
    if named is None and (key := headers.get(replays.HEADER)) is not None:
        return f"key:{key}"  # whoever has answered it knows the answer
    return named


def _named(path: str, headers: Headers, body: bytes) -> str | None:
    """Return what a call that wants an answer names in its headers or body."""
    if path not in (_CHAT, _RESPONSES):
        return None
    known = path == _CHAT and any(name in headers for name in SESSION_HEADERS)
    said = {} if known else _object(body)
    if path == _RESPONSES:
        return _conversation(said)
    asked = ChatRequest.model_construct(metadata=_object(said.get("metadata")), stream=said.get("stream") is True)
    try:
        session = session_of(headers, asked)
    except InputError:  # the replica says so
        return None
    return None if session is None else f"session:{session}"


def _conversation(said: Mapping[str, Any]) -> str | None:
    conversation, before = said.get("conversation"), said.get("previous_response_id")
    named = conversation.get("id") if isinstance(conversation, Mapping) else conversation
    if isinstance(named, str):
        return f"session:{named}"
    return _response(before) if isinstance(before, str) else None


def _response(name: str) -> str | None:
    stem = Stem.of(name)
    return None if stem is None else f"number:{stem.number}"


def _object(value: Any) -> Mapping[str, Any]:
    """Return a value, or the JSON in bytes, if it is an object; else an empty one."""
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}
