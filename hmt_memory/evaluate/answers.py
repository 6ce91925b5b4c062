"""Facts told in a conversation, asked for in another process: whether the answers say them, and say when nothing was told.

A conversation tells facts about the user, each once and in plain words, among much other talk; some are told anew later. Then
the process ends. Another one asks for each in other words, and for facts that were never told. Names, numbers, words and talk
are those of `train.facts` and `train.talk` for evaluation, which no training has seen.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..engine.decoding import Decoding
from ..errors import InputError
from ..model import HMTModel
from ..sessions.memory_store import MemoryStore
from ..train.facts import KINDS, ask, tell
from ..train.talk import small_talk
from .report import Report, Table
from .scoring import repeats
from .statistics import mean_interval

if TYPE_CHECKING:
    from ..sessions.session import Session

DECODING = Decoding(max_new_tokens=48)
_THANKS = ("Good to know.", "Thanks for telling me.", "I see.", "Noted.", "That is nice to hear.", "All right.")
_ABSTAINS = re.compile(
    r"\b(?:do(?:n't| not) (?:know|have|recall|remember|see)"
    r"|(?:did(?:n't| not)|have(?:n't| not)) (?:tell|told|mention|mentioned|say|said|been told)"
    r"|not (?:sure|told|mentioned|known)|no (?:information|record|mention)|can(?:'t|not) (?:recall|remember|tell)"
    r"|unknown|unaware)\b",
    re.IGNORECASE,
)


class Question(NamedTuple):
    """A question about the user, and what was told of it."""

    text: str
    value: str | None  # the words that a right answer has; None: nothing was told
    before: str | None = None  # what was told first and holds no more


@dataclass(frozen=True)
class Conversation:
    """The turns of one conversation, and the questions about it."""

    turns: Sequence[tuple[str, str]]  # what is said, what is answered
    questions: Sequence[Question]


class Answered(NamedTuple):
    """The outcome of one question."""

    question: Question
    answer: str
    in_view: bool  # whether the value stood in what the model was shown
    recalled: int  # how many passages were recalled
    ended: bool  # whether it came to an end before the limit of its length

    @property
    def says_it(self) -> bool:
        """Whether the answer has the value, and not one that holds no more."""
        before = self.question.before
        return holds(self.answer, self.question.value) and not (before is not None and holds(self.answer, before))

    @property
    def abstains(self) -> bool:
        """Whether the answer says that it does not know."""
        return not self.says_it and abstains(self.answer)


def holds(text: str, value: str | None) -> bool:
    """Tell whether a text has a value in it, as words of their own.

    >>> holds("It is called Rex.", "rex"), holds("Rexford", "Rex")
    (True, False)
    """
    return value is not None and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def abstains(text: str) -> bool:
    """Tell whether an answer says that it does not know.

    >>> abstains("I don't know."), abstains("You never said no.")
    (True, False)
    """
    return _ABSTAINS.search(text) is not None


@dataclass(frozen=True)
class Plan:
    """What is told and asked.

    Raises:
        InputError: there are not so many kinds of facts.
    """

    conversations: int = 10
    facts: int = 20  # told in each
    changed: int = 5  # of these, told anew later
    unknown: int = 4  # asked for in each, and not told
    talk: int = 5  # turns of other talk after each
    seed: int = 0
    replied: bool = False  # whether the model answers what it is told, as in a chat; else answers stand there beforehand

    def __post_init__(self) -> None:
        if self.facts + self.unknown > len(KINDS) or not 1 <= self.changed + 1 <= self.facts + 1:
            raise InputError(
                f"facts={self.facts} and unknown={self.unknown} take more than the {len(KINDS)} kinds of facts that there are, "
                f"or more are changed ({self.changed}) than told. Lower them."
            )
        if min(self.conversations, self.facts) < 1 or min(self.unknown, self.talk) < 0:
            raise InputError("at least one conversation with one fact is needed, and no count may be below 0.")

    def make(self) -> list[Conversation]:
        """Make the conversations."""
        return [self._conversation(random.Random(self.seed * 1000 + number)) for number in range(self.conversations)]

    def _conversation(self, chance: random.Random) -> Conversation:
        kinds = chance.sample(sorted(KINDS), self.facts + self.unknown)
        told = [tell(kind, chance, "evaluation") for kind in kinds[: self.facts]]
        anew = {fact.kind: tell(fact.kind, chance, "evaluation", other_than=fact.value) for fact in told[: self.changed]}
        chance.shuffle(told)
        facts = [*told, *anew.values()]
        talk = small_talk(chance, self.talk * len(facts), "evaluation")
        turns: list[tuple[str, str]] = []
        for number, fact in enumerate(facts):
            turns.append((fact.told, chance.choice(_THANKS)))
            turns += talk[number * self.talk : (number + 1) * self.talk]
        questions = [Question(ask(kind, chance, "evaluation"), None) for kind in kinds[self.facts :]]
        for fact in told:
            later = anew.get(fact.kind)
            value, before = (fact.value, None) if later is None else (later.value, fact.value)
            questions.append(Question(ask(fact.kind, chance, "evaluation"), value, before))
        chance.shuffle(questions)
        return Conversation(turns, questions)


@dataclass(frozen=True)
class Loading:
    """What a model is loaded by, in each of the two processes."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of `HMTModel.from_pretrained`
    answerer: Loading | None = None  # another model, which answers from notes of what this one reads

    def load(self) -> HMTModel:
        """Load the model that reads."""
        return HMTModel.from_pretrained(self.name, **self.options)


def measure(
    loading: Loading,
    plan: Plan | None = None,
    *,
    decoding: Decoding = DECODING,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Tell conversations to sessions, and ask about them in a new process.

    Args:
        loading: the model to measure.
        plan: what is told and asked.
        decoding: how the answers are written.
        settings: what else the report records.
        progress: called with a line about what begins.
    """
    plan = plan or Plan()
    conversations = plan.make()
    with tempfile.TemporaryDirectory(prefix="hmt-eval-") as folder:
        _tell(loading, folder, conversations, progress, decoding if plan.replied else None)
        progress("asking in a new process")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            outcomes = pool.apply(_ask_all, (loading, folder, conversations, decoding))
    said = {"max_new_tokens": decoding.max_new_tokens, "repetition_penalty": decoding.repetition_penalty}
    return _report(outcomes, {**(settings or {}), **vars(plan), **said})


def _tell(
    loading: Loading,
    folder: str,
    conversations: Sequence[Conversation],
    progress: Callable[[str], None],
    replied: Decoding | None,
) -> None:
    """Tell conversations to a session each.

    Args:
        loading: the model that reads.
        folder: of the store.
        conversations: what is told.
        progress: called with a line about what begins.
        replied: how what is told is answered; None: the conversations have answers.
    """
    model = loading.load()
    answerer = None if loading.answerer is None or replied is None else loading.answerer.load()
    with MemoryStore(folder) as store:
        for number, conversation in enumerate(conversations):
            progress(f"telling conversation {number + 1} of {len(conversations)}")
            session = store.session(str(number), model)
            if replied is not None:
                for said, _ in conversation.turns:
                    session.reply({"role": "user", "content": said}, decoding=replied, answerer=answerer).finish()
                continue
            messages = [
                {"role": role, "content": text}
                for turn in conversation.turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            session.add(messages)


def _ask_all(loading: Loading, folder: str, conversations: Sequence[Conversation], decoding: Decoding) -> list[Answered]:
    model = loading.load()
    answerer = None if loading.answerer is None else loading.answerer.load()
    with MemoryStore(Path(folder)) as store:
        return [
            answer(store.session(str(number), model), model, question, decoding=decoding, answerer=answerer)
            for number, conversation in enumerate(conversations)
            for question in conversation.questions
        ]


def answer(
    session: Session, model: HMTModel, question: Question, *, decoding: Decoding = DECODING, answerer: HMTModel | None = None
) -> Answered:
    """Ask a session one question, and let it forget that it was asked.

    Args:
        session: what is asked; it is afterwards as it was before.
        model: the session's.
        question: what to ask.
        decoding: how the answer is written.
        answerer: another model, which answers; None: the session's.
    """
    asked = {"role": "user", "content": question.text}
    reply = session.reply(asked, decoding=decoding, answerer=answerer).finish()
    shown = (answerer or model).backbone.decode(reply.view_ids)
    session.forget(reply.message_ids)
    in_view, ended = holds(shown, question.value), reply.finish_reason != "length"
    return Answered(question, reply.text, in_view, len(reply.recalled), ended)


def _report(outcomes: Sequence[Answered], settings: Mapping[str, Any]) -> Report:
    told = [outcome for outcome in outcomes if outcome.question.value is not None]
    groups = {
        "told: right": [outcome.says_it for outcome in told],
        "told: in view": [outcome.in_view for outcome in told],
        "told and in view: right": [outcome.says_it for outcome in told if outcome.in_view],
        "told twice: the later value": [outcome.says_it for outcome in told if outcome.question.before is not None],
        "told: says that it does not know": [outcome.abstains for outcome in told],
        "not told: says so": [outcome.abstains for outcome in outcomes if outcome.question.value is None],
        "answers that repeat a sentence": [repeats(outcome.answer) for outcome in outcomes],
        "answers that end at the limit": [not outcome.ended for outcome in outcomes],
    }
    rows = []
    for name, hits in groups.items():
        if hits:
            share = mean_interval(np.array(hits, float))
            rows.append([name, sum(hits), len(hits), share.value, share.low, share.high])
    answers = [
        [outcome.question.text, outcome.question.value or "(not told)", outcome.answer.replace("\n", " ")[:120]]
        for outcome in outcomes
    ]
    return Report(
        "answers",
        "Facts told, and asked for in another process",
        {**settings, "intervals": "95 %, bootstrap over questions, seed 0"},
        [
            Table("Shares", ["", "so many", "of", "share", "low", "high"], rows),
            Table("Answers", ["asked", "told", "said"], answers),
        ],
    )
