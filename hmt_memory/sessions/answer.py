"""An answer being written from a view: its text piece by piece, the calls in it, and the passages recalled for it.

Knows a generation and its request; the session stores the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..chat.grammar import Constraint, Speech, form_of, tool_choice_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..chat.tools import ToolCall
    from ..engine.decoding import Decoding
    from ..engine.generate import Generation, Usage
    from ..model import HMTModel
    from ..retrieval.ranking import RecalledSegments
    from ..retrieval.recollection import ViewRecollection


class Request:
    """The request for an answer: the functions it may call, its form, its end.

    Args:
        model: the model that answers.
        decoding: how tokens are chosen, and what ends the answer.
        tools: functions in OpenAI's form, see `grammar.form_of`.
        tool_choice: which of them may or must be called, see `grammar.tool_choice_of`.
        schema: of a JSON answer.
    """

    def __init__(
        self,
        model: HMTModel,
        decoding: Decoding,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        choice = tool_choice_of(tool_choice, tools)
        self.may_call = bool(tools) and choice != "none"
        form = form_of(tools, choice, schema)
        if form is not None:
            constraint = Constraint(model.backbone, form, limit=decoding.max_new_tokens)
            decoding = replace(decoding, logits_processors=(constraint, *decoding.logits_processors))
        self.decoding = decoding


class Answer(Iterator[str]):
    """An answer being written: iterate for pieces of its text. Calls of functions are not in the text but in `tool_calls`.

    When it is finished, `text`, `tool_calls`, `finish_reason` and `usage` are set.
    """

    def __init__(self, generation: Generation, memory: ViewRecollection, *, may_call: bool = False) -> None:
        self._generation, self._memory = generation, memory
        self._speech = Speech(tools=may_call)
        self.text = ""  # the answer so far

    def __next__(self) -> str:
        while (free := self._advance()) is not None:
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
        """The functions that the model wants called."""
        return self._speech.tool_calls

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length` or `tool_calls` once it is finished."""
        return "tool_calls" if self.tool_calls else self._generation.finish_reason

    @property
    def usage(self) -> Usage:
        """Tokens of the request, of the answer and of the view."""
        return self._generation.usage

    @property
    def view_ids(self) -> list[int]:
        """Token ids of what the answer was conditioned on, all but P; there with the first piece."""
        return self._generation.view_ids

    @property
    def recalled(self) -> RecalledSegments:
        """The passages that the model was shown as notes, by falling weight; chosen with the first piece."""
        return self._memory.recalled
