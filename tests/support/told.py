"""A model that reads, a talk that it has read, and a chat model that says what it is told to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stored import user
from tiny import REMEMBERING, byte_tokenizer, light_model

READER = light_model(
    config=replace(REMEMBERING, recall_window=20, pinned_tokens=60, replay_tokens=150), tokenizer=byte_tokenizer()
)
TALK = [user("The secret word is zanzibar."), {"role": "assistant", "content": "Fine."}, user("Nothing else. " * 4)]


class Told:
    """A chat model that says what it is told to, and keeps what it was given."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces or ("Zan", "zibar", ".")
        self.given: Sequence[Mapping[str, Any]] = ()
        self.options: dict[str, Any] = {}

    def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[Any]:
        self.given, self.options = messages, options
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
