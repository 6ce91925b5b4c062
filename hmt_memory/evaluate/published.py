"""Published conversations with questions: the files of LoCoMo, REALTALK, BEAM and QMSum, told apart by what they hold.

Knows their files; no model and no store. What the files lack is left out: evidence that names no turn, questions without a
question. Pictures are not told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

# LoCoMo's numbers, which REALTALK shares; its third is called commonsense there.
MULTI_HOP = "multi-hop"
_CATEGORIES = {1: MULTI_HOP, 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_UNANSWERABLE = ("adversarial", "abstention")
_BEAM_ANSWERS = ("answer", "ideal_answer", "ideal_summary")
_TURN_NAME = re.compile(r"D:?(\d+)[:;](\d+)")  # some files write D17;39, or several names in one text
_FORMS = "LoCoMo's .json, REALTALK's Chat_N.json, BEAM's chat_N.json with its questions_N.json, or QMSum's .jsonl"


@dataclass(frozen=True)
class Turn:
    """What one speaker said at a time."""

    speaker: str
    text: str
    role: str = "user"
    date: str | None = None  # as it was published
    named: bool = True  # whether the speaker's name is told; a user's and an assistant's are their roles

    @property
    def content(self) -> str:
        """The text as it is told: "[date] speaker: text"."""
        return self.opening + self.text

    @property
    def opening(self) -> str:
        """The part of the content that was not said."""
        date = f"[{self.date}] " if self.date else ""
        return f"{date}{self.speaker}: " if self.named else date

    @property
    def own(self) -> tuple[int, int]:
        """The place [start, stop) in the content of what was said."""
        return len(self.opening), len(self.content)


@dataclass(frozen=True)
class Question:
    """A question about a conversation."""

    text: str
    category: str
    evidence: tuple[int, ...] = ()  # numbers of the turns that hold the answer
    answer: str | None = None  # None: nothing was published that an answer could be compared with
    unanswerable: bool = False  # nothing was said of it

    @property
    def counted(self) -> tuple[int, ...]:
        """The evidence that should be recalled: none of what only resembles an answer."""
        return () if self.unanswerable else self.evidence


@dataclass(frozen=True)
class Published:
    """A conversation as it was published."""

    name: str
    form: str  # LoCoMo, REALTALK, BEAM or QMSum
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


def load(paths: Sequence[str | Path]) -> list[Published]:
    """Load all conversations of several files, each file once.

    Raises:
        InputError: a file is missing, has another form, or none has a question.
    """
    files = {_chat_of(Path(path).expanduser()): None for path in paths}
    found = [conversation for file in files for conversation in load_file(file)]
    if not any(conversation.questions for conversation in found):
        raise InputError(f"no question in {', '.join(file.name for file in files)}. Name files of {_FORMS}.")
    return found


def load_file(path: str | Path) -> list[Published]:
    """Load the conversations of one file.

    Raises:
        InputError: the file is missing or has another form.
    """
    file = Path(path).expanduser()
    try:
        return list(_of_rows(_values(file), file))
    except OSError as error:
        raise InputError(f"{error.filename or file} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{file} is not what was expected: {_reason(error)}. Name {_FORMS}.") from error


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _values(file: Path) -> Any:
    """Return the JSON value of a file, or the list of its lines' values."""
    text = file.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError:
        if file.suffix == ".json":
            raise
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def _of_rows(value: Any, file: Path) -> Iterator[Published]:
    rows = value if isinstance(value, list) else [value]
    if rows and all(isinstance(row, Mapping) and isinstance(row.get("turns"), list) and "queries" not in row for row in rows):
        yield _beam(rows, file)
        return
    for number, row in enumerate(rows):
        if "conversation" in row:
            yield _locomo(row, row["conversation"], "LoCoMo", str(row.get("sample_id", f"{file.stem} {number}")))
        elif "session_1" in row:
            yield _locomo(row, row, "REALTALK", file.stem)
        elif "queries" in row:
            yield _meeting(row, str(row.get("id", f"{file.stem} {number}")))
        else:
            raise ValueError("there is no conversation, session_1 or queries in it")


def _locomo(row: Mapping[str, Any], told: Mapping[str, Any], form: str, name: str) -> Published:
    turns: list[Turn] = []
    numbers: dict[tuple[int, int], int] = {}
    for date, turn in _locomo_turns(told):
        numbers[_turn_names(turn["dia_id"])[0]] = len(turns)
        text = turn["text"] if "text" in turn else turn["clean_text"]
        turns.append(Turn(turn["speaker"], text.strip(), date=date))
    questions = []
    for asked in row["qa"]:
        names = [name for text in asked.get("evidence") or () for name in _turn_names(text)]
        evidence = tuple(sorted({numbers[name] for name in names if name in numbers}))
        category = _CATEGORIES.get(asked.get("category"), str(asked.get("category")))
        unanswerable = category in _UNANSWERABLE
        answer = None if unanswerable or asked.get("answer") is None else str(asked["answer"])
        if answer is not None and category == "open-domain":
            answer = answer.split(";")[0].strip()  # behind it stands why, which LoCoMo does not compare
        questions.append(Question(asked["question"], category, evidence, answer, unanswerable))
    return Published(name, form, tuple(turns), tuple(questions))


def _locomo_turns(told: Mapping[str, Any]) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """Yield each turn with the date of its session."""
    number = 1
    while f"session_{number}" in told:
        for turn in told[f"session_{number}"]:
            yield told.get(f"session_{number}_date_time"), turn
        number += 1


def _turn_names(text: str) -> list[tuple[int, int]]:
    """Return the turns that a text such as "D8:6; D9:17" names.

    >>> _turn_names("D8:6; D9:17")
    [(8, 6), (9, 17)]
    """
    return [(int(session), int(number)) for session, number in _TURN_NAME.findall(text)]


def _meeting(row: Mapping[str, Any], name: str) -> Published:
    turns = tuple(Turn(turn["speaker"], turn["text"].strip()) for turn in row["turns"])
    questions = []
    for query in row["queries"]:
        numbers = {number for low, high in query["turn_spans"] for number in range(low, high + 1) if number < len(turns)}
        answer = query.get("answer") or None
        questions.append(Question(query["query"], "query", tuple(sorted(numbers)), answer))
    return Published(name, "QMSum", turns, tuple(questions))


def _beam(batches: Sequence[Mapping[str, Any]], file: Path) -> Published:
    turns: list[Turn] = []
    numbers: dict[Any, int] = {}
    for message in (message for batch in batches for group in batch["turns"] for message in group):
        numbers[message["id"]] = len(turns)
        turns.append(Turn(message["role"], message["content"].strip(), message["role"], named=False))
    beside = file.with_name(file.name.replace("chat", "questions"))
    if beside == file:
        raise ValueError("it holds a chat of BEAM, whose questions are looked for in questions_N.json beside a chat_N.json")
    questions = []
    for ability, asked in json.loads(beside.read_text(encoding="utf-8")).items():
        for each in asked:
            evidence = tuple(sorted({numbers[name] for name in _flat(each.get("source_chat_ids")) if name in numbers}))
            unanswerable = ability in _UNANSWERABLE
            answer = next((str(each[field]) for field in _BEAM_ANSWERS if each.get(field)), None)
            questions.append(Question(each["question"], ability, evidence, None if unanswerable else answer, unanswerable))
    return Published(file.stem, "BEAM", tuple(turns), tuple(questions))


def _flat(value: Any) -> Iterator[Any]:
    """Yield the ids in nested lists, or in lists by name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    elif value is not None:
        yield value


def _chat_of(file: Path) -> Path:
    """Return the chat that a file of BEAM's questions belongs to; any other file itself."""
    chat = file.with_name(file.name.replace("questions", "chat"))
    if chat == file or not chat.is_file():
        return file
    try:
        value = _values(file)
    except (OSError, ValueError):
        return file
    by_ability = isinstance(value, Mapping) and all(isinstance(asked, list) for asked in value.values())
    return chat if by_ability else file
