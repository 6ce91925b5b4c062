"""The comparison of a conversation that is sent again with the session that holds it. Knows messages as fingerprints; no store.

Agent frameworks pass the whole conversation with every call, or its last turns, or only the new turn; users edit earlier turns
and ask for another try. Comparing with the session tells these cases apart.
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

    print: bytes  # fingerprint of role, text, calls and the call it answers; not of id or name
    role: str
    id: str | None = None  # given by the framework


class Continuation(NamedTuple):
    """The changes that a call makes to a session."""

    keep: int  # the number of the session's messages that stay; later ones are replaced
    new: int  # the first message of the call that is to be added


def entry(message: Mapping[str, Any]) -> Entry:
    """Reduce a message (role, content, optionally tool_calls, tool_call_id, id) to what is compared."""
    calls = [called(call) for call in message.get("tool_calls") or ()]
    parts = [message["role"], str(message.get("content") or "").strip(), calls, message.get("tool_call_id")]
    own_id = message.get("id")
    digest = blake2b(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Entry(digest, str(message["role"]), None if own_id is None else str(own_id))


def reconcile(log: Sequence[Entry], messages: Sequence[Entry], mode: HistoryMode = "auto") -> Continuation:
    """Decide how the messages of a call continue a session; system messages are in neither.

    Args:
        log: the messages that the session holds.
        messages: those that the call passes.
        mode: `incremental`: every call passes new messages only. `full`: every call passes the whole conversation, so that any
            difference is an edit, and forgotten messages come back. `auto`: whichever it looks like. The same text once more,
            without ids that tell otherwise, counts as said once more; turns in the middle may be missing.

    Raises:
        ConfigError: the mode is unknown.
    """
    if mode not in get_args(HistoryMode):
        raise ConfigError(f"history mode {mode!r} is unknown. Choose one of {', '.join(get_args(HistoryMode))}.")
    if mode == "incremental" or not log:
        return Continuation(len(log), 0)
    common = _common(log, messages)
    if common == len(log) or mode == "full":
        return Continuation(common, common)
    if known := _continued(log, messages, common):
        return Continuation(len(log), known)
    common = _same_talk(log[:common], messages)
    sure = common >= 2 or (common == 1 and _same_ids(log[:1], messages))
    if sure and (common == len(messages) or log[common].role == messages[common].role):
        return Continuation(common, common)
    return Continuation(len(log), common if sure else 0)


def _common(log: Sequence[Entry], messages: Sequence[Entry]) -> int:
    pairs = enumerate(zip(log, messages, strict=False))
    return next((number for number, (stored, passed) in pairs if stored.print != passed.print), min(len(log), len(messages)))


def _continued(log: Sequence[Entry], messages: Sequence[Entry], common: int) -> int:
    """Return how many messages go up to the log's last message, if that is among them; earlier ones may have been trimmed.

    A match that stands alone, not behind the message before it, counts if it has the same id, or if it is an answer and the log
    holds everything before it too: many answers are alike. None counts among the messages that log and call have in common from
    their beginning, unless they are the log's last ones as well: there it is an earlier message, in its own place.
    """
    for number in range(len(messages) - 1, -1, -1):
        if number < common and not _ends_with(log, messages[: number + 1]):
            continue
        if log[-1].print == messages[number].print:
            behind = len(log) > 1 and number > 0 and log[-2].print == messages[number - 1].print
            if behind or _same_ids(log[-1:], messages[number:]):
                return number + 1
            if log[-1].role == "assistant" and {message.print for message in messages[:number]} <= {
                message.print for message in log
            }:
                return number + 1
    return 0


def _ends_with(log: Sequence[Entry], messages: Sequence[Entry]) -> bool:
    return [stored.print for stored in log[-len(messages) :]] == [passed.print for passed in messages]


def _same_talk(common: Sequence[Entry], messages: Sequence[Entry]) -> int:
    """Return how many common messages are really the same, not merely the same words: their ids do not differ."""
    for number, (stored, passed) in enumerate(zip(common, messages, strict=False)):
        if stored.id is not None and passed.id is not None and stored.id != passed.id:
            return number
    return len(common)


def _same_ids(log: Sequence[Entry], messages: Sequence[Entry]) -> bool:
    return all(stored.id is not None and stored.id == passed.id for stored, passed in zip(log, messages, strict=False))
