"""The messages that are allowed: their fields and role, and values for a template without special tokens in them.

Knows no template; `transcript` does.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..engine.backbone import Backbone

SYSTEM_ROLES = ("system", "developer")
UNREAD = ("id", "metadata")  # fields of a message that are stored with it and that no model is shown
ROLES = ("user", "assistant", *SYSTEM_ROLES, "tool", "function", "ipython")
Messages = Sequence[Mapping[str, Any]] | Mapping[str, Any]
_ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")


def check_role(role: str) -> None:
    """Raise InputError unless `role` is a short word: a template writes it where a turn opens, so markup in it would count."""
    if not _ROLE.fullmatch(role):
        known = ", ".join(ROLES[:-1])
        raise InputError(
            f"a role is one of {known} and {ROLES[-1]}, or another short word of letters, digits, - and _ that the chat "
            f"template knows, not {role[:200]!r}."
        )


def validated(messages: Messages) -> list[Mapping[str, Any]]:
    """Return messages as plain dicts.

    Raises:
        InputError: a message lacks its role or content, its role is not a short word, or it is not JSON or not Unicode text.
    """
    plain_messages: list[Mapping[str, Any]] = []
    for message in [messages] if isinstance(messages, Mapping) else messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(f"a message is a dict with a 'role' and a 'content' string, not {str(message)[:200]!r}.")
        check_role(message["role"])
        plain = set(message) == {"role", "content"} or message["role"] in SYSTEM_ROLES
        if not isinstance(message["content"], str) and (plain or message["content"] is not None):
            raise InputError(
                f"the content of a message is a string, not {type(message['content']).__name__}. Join its text parts."
            )
        try:
            json.dumps(dict(message), ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:  # UnicodeEncodeError is one of the latter
            raise InputError(f"a message cannot be stored: {error}. Use JSON types and valid Unicode.") from error
        plain_messages.append(dict(message))
    return plain_messages


def system_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of the system messages."""
    return [message["content"] for message in messages if message["role"] in SYSTEM_ROLES]


class Quoted:
    """Values for a template in which texts with special tokens are hidden behind marks, and the ids of the template's output.

    A mark has a backslash, which a template doubles each time it writes a text as JSON; that tells how to write the text.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._secret = str(secrets.randbits(64))  # digits, which no template writes otherwise, and no text can know
        self._texts: list[str] = []

    def hide(self, value: Any) -> Any:
        """Return the value with a mark in place of each text in it that holds special tokens."""
        if isinstance(value, str):
            return self._marked(value) if self._backbone.holds_special(value) else value
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(held) for key, held in value.items()}
        return [self.hide(held) for held in value] if isinstance(value, (list, tuple)) else value

    def encode(self, written: str) -> list[int]:
        """Return the token ids of what the template wrote, where hidden texts are plain text."""
        opening, *rest = re.split(rf"{self._secret}-(\d+)(\\+)\.", written)
        ids = self._backbone.encode(opening) if opening or not rest else []
        for number, slashes, after in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            text = self._texts[int(number)]
            for _ in range(len(slashes).bit_length() - 1):
                text = json.dumps(text, ensure_ascii=False)[1:-1]
            ids += self._backbone.encode(text, literal=True) + (self._backbone.encode(after) if after else [])
        return ids

    def _marked(self, text: str) -> str:
        """Return a mark with the white space around it that `text` has: some templates strip it."""
        said = text.strip() or text
        self._texts.append(said)
        return text.replace(said, f"{self._secret}-{len(self._texts) - 1}\\.", 1)
