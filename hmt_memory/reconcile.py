"""What of a resent conversation is new to a session. Knows messages as fingerprints; no store, no model.

Agent frameworks pass the whole conversation with every call, or its last turns, or only the new turn; users edit earlier turns
and ask for another try. Each is told from the others by comparing with what the session holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, get_args

from .errors import ConfigError

HistoryMode = Literal["auto", "incremental", "full"]


class Entry(NamedTuple):
    """A message as far as it is compared."""

    print: bytes  # of its role, text, calls and the call it answers; not of its id or name
    role: str
    id: str | None = None  # that the framework gave it


class Plan(NamedTuple):
    """What a call does to a session."""

    keep: int  # how many of the session's messages stay; those after them are replaced
    new: int  # the first message of the call that is to be added


def entry(message: Mapping[str, Any]) -> Entry:
    """That of a message dict (role, content, optionally tool_calls, tool_call_id, id)."""
    calls = [_call(call) for call in message.get("tool_calls") or ()]
    parts = [message["role"], str(message.get("content") or "").strip(), calls, message.get("tool_call_id")]
    id = message.get("id")
    print = blake2b(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Entry(print, str(message["role"]), None if id is None else str(id))


def reconcile(log: Sequence[Entry], messages: Sequence[Entry], mode: HistoryMode = "auto") -> Plan:
    """How `messages`, which a call passes, go on from `log`, which the session holds; system messages are in neither.

    Args:
        mode: `incremental`: every call passes new messages only. `full`: every call passes the whole conversation, so that any
            difference is an edit. `auto`: whichever it looks like. The same text once more, without ids that say otherwise, is
            said once more.

    Raises:
        ConfigError: an unknown mode.
    """
    if mode not in get_args(HistoryMode):
        raise ConfigError(f"history mode {mode!r} is unknown. Choose one of {', '.join(get_args(HistoryMode))}.")
    if mode == "incremental" or not log:
        return Plan(len(log), 0)
    common = _common(log, messages)
    if common == len(log) or mode == "full":
        return Plan(common, common)
    if overlap := _overlap(log, messages):
        return Plan(len(log), overlap)
    if common >= 2 or (common and _same_ids(log[:common], messages)):
        return Plan(common, common)
    return Plan(len(log), 0)


def _common(log: Sequence[Entry], messages: Sequence[Entry]) -> int:
    pairs = enumerate(zip(log, messages, strict=False))
    return next((at for at, (one, other) in pairs if one.print != other.print), min(len(log), len(messages)))


def _overlap(log: Sequence[Entry], messages: Sequence[Entry]) -> int:
    """How many of the first messages are the last of the log; one alone counts if it is an answer or has the same id."""
    for size in range(min(len(log), len(messages)), 0, -1):
        if log[len(log) - size].print != messages[0].print:
            continue
        last = log[len(log) - size :]
        if all(one.print == other.print for one, other in zip(last, messages, strict=False)):
            sure = size > 1 or last[0].role == "assistant" or _same_ids(last, messages)
            return size if sure else 0
    return 0


def _same_ids(log: Sequence[Entry], messages: Sequence[Entry]) -> bool:
    return all(one.id is not None and one.id == other.id for one, other in zip(log, messages, strict=False))


def _call(call: Mapping[str, Any]) -> list[Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", function.get("args", {}))
    with suppress(json.JSONDecodeError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return [function.get("name"), arguments]
