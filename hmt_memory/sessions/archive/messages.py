"""The lines of `messages.jsonl` and their rows. Every field is checked, and that each message follows the one before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...chat.message import SYSTEM_ROLES, validated
from ...chat.tools import called
from ...errors import InputError
from ...store.rows import MessageRow
from . import layout
from .layout import Unfit, check, record, whole
from .manifest import Manifest, time

_KEYS = ("id", "batch", "pinned", "body", "created_at", "tokens", "content")
_FREE_TOKENS, _TOKENS_PER_BYTE = 1 << 16, 2  # no tokenizer makes more tokens of a line than both allow


def written(message: MessageRow) -> bytes:
    """Write the line of a message. Raises Unfit if it is beyond the format's limits."""
    fields = message._asdict() | {"tokens": list(message.tokens), "content": list(message.content)}
    del fields["seq"]
    line = json.dumps(fields, ensure_ascii=False).encode()
    most = layout.MOST_MESSAGE_BYTES
    check(len(line) <= most, f"message {message.id} is over {most >> 20} MiB, the most that a message may be")
    layout.check_json(line, f"message {message.id}")
    _check_size(message, line)
    return line + b"\n"


def read_messages(lines: Iterable[bytes], manifest: Manifest) -> Iterator[tuple[MessageRow, int]]:
    """Yield the messages of the lines, each with about how many bytes it takes.

    Raises:
        Unfit: a message is malformed or does not follow the one before it, or they are not what the manifest says.
    """
    before = MessageRow(-1, 0, 0, False, {}, 0.0, (0, 0), (0, 0))
    for line in lines:
        message = _message(before.seq + 1, line)
        _check_order(before, message, manifest)
        _check_size(message, line)
        yield message, len(line) + 4 * (message.tokens[1] - message.tokens[0])
        before = message
    check(before.seq + 1 == manifest.messages, "messages are missing")
    check(before.tokens[1] == manifest.tokens, "its messages and its tokens do not end together")


def _message(seq: int, line: bytes) -> MessageRow:
    what = f"message {seq}"
    fields = record(layout.parsed(line, what), _KEYS, what)
    body = _body(fields["body"], what)
    pinned = body["role"] in SYSTEM_ROLES
    check(fields["pinned"] is pinned, f"{what} is {'not ' * pinned}pinned, which its role is {'not ' * (not pinned)}for")
    return MessageRow(
        seq,
        whole(fields["id"], 1, layout.LARGEST_ID, f"the id of {what}"),
        whole(fields["batch"], 1, layout.LARGEST_ID, f"the batch of {what}"),
        pinned,
        body,
        time(fields["created_at"], f"created_at of {what}"),
        _span(fields["tokens"], f"tokens of {what}"),
        _span(fields["content"], f"content of {what}"),
    )


def _body(value: Any, what: str) -> Mapping[str, Any]:
    try:
        (body,) = validated([value])
        for call in body.get("tool_calls") or ():
            called(call)
    except (
        InputError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:  # the last two: calls in an unknown form
        raise Unfit(f"{what} is none: {error}") from error
    return body


def _span(value: Any, what: str) -> tuple[int, int]:
    check(isinstance(value, list) and len(value) == 2, f"{what} is no pair")
    start = whole(value[0], 0, layout.MOST_BYTES, f"the start of {what}")
    return start, whole(value[1], start, layout.MOST_BYTES, f"the end of {what}")


def _check_order(before: MessageRow, message: MessageRow, manifest: Manifest) -> None:
    """Check that ids rise, so that none occurs twice, and that the messages of one call share its first id."""
    what, (start, stop) = f"message {message.seq}", message.tokens
    check(before.id < message.id < manifest.next_id, f"{what} has an id that is given already or to come")
    same_call = message.batch == before.batch
    check(same_call or before.id < message.batch <= message.id, f"{what} has the batch of another call")
    check(start == before.tokens[1], f"{what} is not where the one before it ends")
    check(start <= message.content[0] and message.content[1] <= stop <= manifest.tokens, f"{what} goes beyond its tokens")
    check(not (message.pinned and stop > start), f"{what} is pinned and has tokens")


def _check_size(message: MessageRow, line: bytes) -> None:
    most = _FREE_TOKENS + _TOKENS_PER_BYTE * len(line)
    check(message.tokens[1] - message.tokens[0] <= most, f"message {message.id} has more tokens than its text can have")
