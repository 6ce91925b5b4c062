"""An answer being written from a view: its text piece by piece, the calls in it, and the passages recalled for it.

Knows a generation and its request; the session stores the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..chat.grammar import Constraint, Speech, form_of, tool_choice_of
from ..engine.decoding import Decoding

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..chat.tools import ToolCall
    from ..engine.chances import TokenChance
    from ..engine.generate import Generation, Usage
    from ..model import HMTModel
    from ..retrieval.ranking import RecalledSegments
    from ..retrieval.recollection import ViewRecollection
    from .chat_model import Writing


@dataclass(frozen=True)
class Wanted:
    """The answer that a caller wants, whoever writes it."""

    decoding: Decoding | None = None  # how tokens are chosen, and what ends it; None: as ever
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of `Decoding` that differ
    tools: Sequence[Mapping[str, Any]] | None = None  # functions in OpenAI's form, see `grammar.form_of`
    tool_choice: Any = None  # which of them may or must be called, see `grammar.tool_choice_of`
    schema: Mapping[str, Any] | None = None  # of a JSON answer

    def chosen(self) -> Decoding:
        """Return the whole decoding. Raises InputError where a value is out of range."""
        return (self.decoding or Decoding()).changed(**self.options)

    def given(self) -> dict[str, Any]:
        """Return what the caller has asked for, and nothing that nobody has."""
        usual, chosen = Decoding(), self.chosen()
        decoding = {one.name: getattr(chosen, one.name) for one in fields(chosen)}
        asked = {name: value for name, value in decoding.items() if name in self.options or value != getattr(usual, name)}
        asked |= {"tools": self.tools or None, "tool_choice": self.tool_choice, "schema": self.schema}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Keeping:
    """How a session keeps an answer."""

    stored: bool = True  # whether request and answer are stored
    after: int | None = None  # id of the last message so far: the answer is refused if others add to the session meanwhile
    fields: Callable[[Answer], Mapping[str, Any]] | None = None  # fields of the answer's message, besides its text and calls
    owed: str | None = None  # the name under which the answer is noted as owed: it is stored if that still holds


class Request:
    """The request for an answer: the functions it may call, its form, its end.

    Args:
        model: the model that answers.
        wanted: the answer.
    """

    def __init__(self, model: HMTModel, wanted: Wanted) -> None:
        decoding, tools = wanted.chosen(), wanted.tools
        choice = tool_choice_of(wanted.tool_choice, tools)
        self.may_call = bool(tools) and choice != "none"
        form = form_of(tools, choice, wanted.schema)
        if form is not None:
            constraint = Constraint(model.backbone, form, limit=decoding.max_new_tokens)
            decoding = replace(decoding, logits_processors=(constraint, *decoding.logits_processors))
        self.decoding = decoding


class Answer(Iterator[str]):
    """An answer being written: iterate for pieces of its text. Calls of functions are not in the text but in `tool_calls`.

    When it is finished, `text`, `tool_calls`, `finish_reason` and `usage` are set.
    """

    def __init__(self, generation: Generation | Writing, memory: ViewRecollection, *, may_call: bool = False) -> None:
        self._generation, self._memory = generation, memory
        self._speech = Speech(tools=may_call)
        self.text = ""  # the answer so far
        self.is_whole = False  # whether nothing is missing any more, and it is stored if it is to be

    def __next__(self) -> str:
        while (free := self._advance()) is not None:
            self.is_whole = self._ended
            if free:
                return free
        raise StopIteration

    def _advance(self) -> str | None:
        """Return the next free text, which may still be empty; None after the last."""
        if self._ended:
            return None
        piece = next(self._generation, None)
        if piece is None and not self._ended:
            return None  # the generation failed before
        free = self._speech.push(piece or "") + (self._speech.finish() if self._ended else "")
        self.text += free
        return free

    @property
    def _ended(self) -> bool:
        return self._generation.finish_reason is not None

    def finish(self) -> Self:
        """Run to the end without looking at the pieces."""
        for _ in self:
            pass
        return self

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The functions that the model wants called: those in its text, or those that a chat model names beside it."""
        return [*self._speech.tool_calls, *getattr(self._generation, "tool_calls", ())]

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length` or `tool_calls` once it is finished; of a chat model, what that says."""
        return "tool_calls" if self.tool_calls else self._generation.finish_reason

    @property
    def usage(self) -> Usage:
        """Tokens of the request, of the answer and of the view."""
        return self._generation.usage

    @property
    def chances(self) -> list[TokenChance]:
        """Log-probabilities of its tokens so far, where `Decoding.logprobs` asks for them. None of a chat model."""
        return getattr(self._generation, "chances", [])

    @property
    def view_ids(self) -> list[int]:
        """Token ids of what the answer was conditioned on, all but P; there with the first piece. None of a chat model."""
        return self._generation.view_ids

    @property
    def recalled(self) -> RecalledSegments:
        """The passages that the model was shown as notes, by falling weight; chosen with the first piece."""
        return self._memory.recalled
