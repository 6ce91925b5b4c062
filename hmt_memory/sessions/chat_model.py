"""A model of any kind that is given messages and answers them: what a session needs of it, and its answer while it is written.

Knows messages and pieces of text; no framework, no tokenizer and no store.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..engine.generate import Usage
from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..chat.tools import ToolCall


class Ending(NamedTuple):
    """What a chat model says about its answer besides the text."""

    finish_reason: str = "stop"
    tool_calls: Sequence[ToolCall] = ()
    view_tokens: int | None = None  # tokens of what it was given, as it counts them; None: it does not say
    completion_tokens: int | None = None  # tokens of the answer


class ChatModel(Protocol):
    """A model that answers messages, whatever runs it. It keeps nothing of a call."""

    def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str | Ending]:
        """Answer messages piece by piece.

        Args:
            messages: dicts with "role" and "content": the system message if there is one, and the latest turns, where notes
                stand in front of the user's last words. Calls of functions are in "tool_calls" and "tool_call_id", in
                OpenAI's form.
            **options: what the caller has asked for, and nothing else: tools, tool_choice, schema, fields of `Decoding`. An
                option that it cannot follow is refused.

        Returns:
            Pieces of the text; last of all an `Ending`, if there is more to say.
        """
        ...


class Writing(Iterator[str]):
    """An answer that a chat model writes, as an iterator of its pieces; counterpart of the engine's `Generation`.

    Each piece is given out when the next one is there, so that the last one is known as such: an answer is stored before it.

    Args:
        pieces: of the chat model.
        prompt_tokens: tokens that the call adds to the session before the answer, in the reader's tokens, like the next two.
        view_tokens: tokens of what the model is given; what the model itself says counts more.
        count: counts the tokens of the answer, if the model does not.
    """

    def __init__(
        self, pieces: Iterator[str | Ending], *, prompt_tokens: int, view_tokens: int, count: Callable[[str], int]
    ) -> None:
        # It must not keep itself alive: as soon as it is left, the chat model has to stop.
        self._pieces, self._count = Writing._one_behind(weakref.proxy(self), pieces), count
        self.text = ""  # the whole text, once it is finished
        self.finish_reason: str | None = None  # set with the last piece
        self.tool_calls: list[ToolCall] = []
        self.usage = Usage(prompt_tokens, 0, view_tokens)
        self.view_ids: list[int] = []  # the model's own tokens are not known

    def __next__(self) -> str:
        return next(self._pieces)

    def _one_behind(self, pieces: Iterator[str | Ending]) -> Iterator[str]:
        held, ending = "", Ending()
        for piece in pieces:
            if isinstance(piece, Ending):
                ending = piece
            elif not isinstance(piece, str):
                raise InputError(f"an answer is pieces of text and an Ending, not {type(piece).__name__}. Yield these.")
            elif piece:
                self.text += piece
                if held:
                    yield held
                held = piece
        self._end(ending)
        yield held

    def _end(self, ending: Ending) -> None:
        self.finish_reason, self.tool_calls = ending.finish_reason, list(ending.tool_calls)
        made = self._count(self.text) if ending.completion_tokens is None else ending.completion_tokens
        shown = self.usage.view_tokens if ending.view_tokens is None else ending.view_tokens
        self.usage = Usage(self.usage.prompt_tokens, made, shown)
