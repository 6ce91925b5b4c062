"""Conversations with questions whose evidence is known: QMSum's meetings and LoCoMo's chats. Knows their files and tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

Span = tuple[int, int]
_ADVERSARIAL = 5  # LoCoMo's category for questions without an answer


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
    """Load QMSum-like `.jsonl` (turns, queries with turn_spans) or LoCoMo's `.json`.

    Raises:
        InputError: the file is missing, has another form, or holds no question with evidence.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if file.suffix == ".jsonl" else json.loads(text)
        conversations = [_locomo(row) if "conversation" in row else _meeting(row) for row in rows]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{file} is neither QMSum's .jsonl nor LoCoMo's .json: {error!r}.") from error
    if not any(conversation.questions for conversation in conversations):
        raise InputError(f"no conversation in {file} has a question with evidence.")
    return conversations


def _meeting(row: Mapping[str, Any]) -> Conversation:
    turns = tuple(f"{turn['speaker']}: {turn['text']}\n" for turn in row["turns"])
    questions = tuple(
        (query["query"], tuple(sorted({number for low, high in query["turn_spans"] for number in range(low, high + 1)})))
        for query in row["queries"]
        if query["turn_spans"]
    )
    return Conversation(str(row.get("id", "meeting")), turns, questions)


def _locomo(row: Mapping[str, Any]) -> Conversation:
    turns: list[str] = []
    numbers: dict[str, int] = {}
    for turn in _locomo_turns(row["conversation"]):
        numbers[turn["dia_id"]] = len(turns)
        turns.append(f"{turn['speaker']}: {turn['text']}\n")
    questions = []
    for asked in row["qa"]:
        evidence = sorted({numbers[name] for name in asked.get("evidence", []) if name in numbers})
        if evidence and asked.get("category") != _ADVERSARIAL:
            questions.append((asked["question"], tuple(evidence)))
    return Conversation(str(row.get("sample_id", "chat")), tuple(turns), tuple(questions))


def _locomo_turns(conversation: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    number = 1
    while f"session_{number}" in conversation:
        yield from conversation[f"session_{number}"]
        number += 1
