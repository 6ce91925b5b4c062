"""What of a resent conversation is new to a session. Knows messages as fingerprints; no store, no model.

Agent frameworks pass the whole conversation with every call, or its last turns, or only the new turn; users edit earlier turns
and ask for another try. Each is told from the others by comparing with what the session holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, get_args

from ..chat.tools import called
from ..errors import ConfigError

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
    calls = [called(call) for call in message.get("tool_calls") or ()]
    parts = [message["role"], str(message.get("content") or "").strip(), calls, message.get("tool_call_id")]
    id = message.get("id")
    print = blake2b(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Entry(print, str(message["role"]), None if id is None else str(id))


def reconcile(log: Sequence[Entry], messages: Sequence[Entry], mode: HistoryMode = "auto") -> Plan:
    """How `messages`, which a call passes, go on from `log`, which the session holds; system messages are in neither.

    Args:
        mode: `incremental`: every call passes new messages only. `full`: every call passes the whole conversation, so that any
            difference is an edit, and what was forgotten comes back. `auto`: whichever it looks like. The same text once more,
            without ids that say otherwise, is said once more; turns in the middle may be missing.

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
    if known := _continued(log, messages):
        return Plan(len(log), known)
    common = _same_talk(log[:common], messages)
    sure = common >= 2 or (common == 1 and _same_ids(log[:1], messages))
    if sure and (common == len(messages) or log[common].role == messages[common].role):
        return Plan(common, common)
    return Plan(len(log), common if sure else 0)


def _common(log: Sequence[Entry], messages: Sequence[Entry]) -> int:
    pairs = enumerate(zip(log, messages, strict=False))
    return next((at for at, (one, other) in pairs if one.print != other.print), min(len(log), len(messages)))


def _continued(log: Sequence[Entry], messages: Sequence[Entry]) -> int:
    """How many messages go up to the last one of the log, where that is among them; what comes before may have been trimmed.

    One that is found alone, not behind the one before it, counts if it has the same id, or is an answer and the log holds
    everything before it too: many answers are alike.
    """
    for at in range(len(messages) - 1, -1, -1):
        if log[-1].print == messages[at].print:
            behind = len(log) > 1 and at > 0 and log[-2].print == messages[at - 1].print
            if behind or _same_ids(log[-1:], messages[at:]):
                return at + 1
            if log[-1].role == "assistant" and {one.print for one in messages[:at]} <= {one.print for one in log}:
                return at + 1
    return 0


def _same_talk(common: Sequence[Entry], messages: Sequence[Entry]) -> int:
    """How much of what a call has in common with the log is not merely the same words: ids do not say otherwise."""
    for at, (one, other) in enumerate(zip(common, messages, strict=False)):
        if one.id is not None and other.id is not None and one.id != other.id:
            return at
    return len(common)


def _same_ids(log: Sequence[Entry], messages: Sequence[Entry]) -> bool:
    return all(one.id is not None and one.id == other.id for one, other in zip(log, messages, strict=False))
