"""The names and limits of an exported session, and the JSON that it may hold. Knows no row and no ZIP file.

The limits bound the size of an import, whatever a file says; an export keeps to them as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

FORMAT = "hmt-session"
MANIFEST, MESSAGES, TOKENS, MEMORY, KEYS = "manifest.json", "messages.jsonl", "tokens.u32", "memory.f16", "keys.bin"
UNKEYED = (MESSAGES, TOKENS, MEMORY)  # the files beside the manifest
KEYED = (*UNKEYED, KEYS)
CONTENT = {1: (UNKEYED,), 2: (KEYED,), 3: (UNKEYED, KEYED)}  # those of each version

KEYS_SIZE_BYTES = 4  # in front of the keys of a segment, little-endian
MOST_BYTES = 1 << 33  # largest file, unpacked: a year of talk is a thousandth of it
MOST_RATIO, SMALL_BYTES = 100, 1 << 20  # largest ratio of sizes, in files that unpack to more than the latter
MOST_MANIFEST_BYTES = 1 << 16
MOST_MESSAGE_BYTES = 1 << 24  # longest line of messages.jsonl
MOST_SEGMENT_BYTES = 1 << 24  # largest memory of a segment, and largest keys of one
MOST_VALUES, MOST_STRINGS, MOST_DEPTH = 1 << 16, 1 << 17, 100  # in one JSON text
LARGEST_ID = 1 << 53  # JSON readers of other languages lose precision beyond it

_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))


class Unfit(Exception):
    """A fault of an exported session, with its remedy."""

    def __init__(self, reason: str, remedy: str = "Export it again.") -> None:
        super().__init__(reason)
        self.remedy = remedy


def check(holds: bool, reason: str, remedy: str = "Export it again.") -> None:
    """Raise Unfit unless a condition holds.

    Args:
        holds: the condition.
        reason: what is wrong otherwise.
        remedy: what to do about it.
    """
    if not holds:
        raise Unfit(reason, remedy)


def parsed(text: bytes, what: str) -> Any:
    """Parse a JSON text in UTF-8, whose size is checked before anything is made from it."""
    check_json(text, what)
    try:
        return json.loads(text.decode())
    except ValueError as error:
        raise Unfit(f"{what} is no JSON: {error}") from error


def check_json(text: bytes, what: str) -> None:
    """Raise Unfit if a JSON text is nested deeply, or has so many values that they take far more room than the text."""
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    check(plain.count(b'"') <= 2 * MOST_STRINGS, f"{what} holds more than {MOST_STRINGS} strings, the most that one may hold")
    outside = b"".join(plain.split(b'"')[::2])
    brackets = outside.translate(None, delete=_NO_BRACKETS)
    values = outside.count(b",") + len(brackets)
    check(values <= MOST_VALUES, f"{what} holds more than {MOST_VALUES} values, the most that one may hold")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        check(depth <= MOST_DEPTH, f"{what} is nested more than {MOST_DEPTH} levels deep, the most that it may be")


def record(value: Any, keys: Iterable[str], what: str) -> dict[str, Any]:
    """Return a value that must be an object with these keys and no others.

    Args:
        value: the value.
        keys: of the object.
        what: what it is, for the message of an error.

    Raises:
        Unfit: it is anything else.
    """
    wanted = set(keys)
    check(isinstance(value, dict), f"{what} is no JSON object")
    content: dict[str, Any] = value
    if missing := wanted - set(content):
        raise Unfit(f"{what} lacks {', '.join(map(repr, sorted(missing)))}")
    if other := set(content) - wanted:
        raise Unfit(f"{what} has an unknown field {min(other)[:100]!r}", "A newer hmt-memory may have written it: upgrade.")
    return content


def whole(value: Any, low: int, high: int, what: str) -> int:
    """Return a value that must be a whole number within bounds.

    Args:
        value: the value.
        low: the smallest allowed.
        high: the largest allowed.
        what: what it is, for the message of an error.

    Raises:
        Unfit: it is anything else.
    """
    check(type(value) is int and low <= value <= high, f"{what} is no whole number from {low} to {high}")
    return int(value)
