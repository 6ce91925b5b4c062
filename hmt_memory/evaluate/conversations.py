"""Conversations as text, with questions whose evidence is known: what `hmt eval recall` reads. Knows their lines and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .published import Published, load_file

Span = tuple[int, int]


@dataclass(frozen=True)
class Conversation:
    """Turns as lines of text, and questions with the numbers of the turns that hold the answer."""

    name: str
    turns: tuple[str, ...]  # "speaker: text\\n"
    questions: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def text(self) -> str:
        """The lines of all turns as one text."""
        return "".join(self.turns)

    def spans(self, encode: Callable[[str], Sequence[int]]) -> list[Span]:
        """Return [start, stop) of each turn in the tokens of the text."""
        spans, start = [], 0
        for turn in self.turns:
            spans.append((start, start + len(encode(turn))))
            start = spans[-1][1]
        return spans


def load_conversations(path: str | Path) -> list[Conversation]:
    """Load the conversations of a file, of any form that `published` knows.

    Raises:
        InputError: the file is missing, has another form, or holds no question with evidence.
    """
    conversations = [_as_text(conversation) for conversation in load_file(path)]
    if not any(conversation.questions for conversation in conversations):
        raise InputError(f"no conversation in {path} has a question with evidence.")
    return conversations


def _as_text(conversation: Published) -> Conversation:
    turns = tuple(f"{turn.speaker}: {turn.text}\n" for turn in conversation.turns)
    questions = tuple((question.text, question.counted) for question in conversation.questions if question.counted)
    return Conversation(conversation.name, turns, questions)
