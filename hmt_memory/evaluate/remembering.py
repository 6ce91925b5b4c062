"""Published conversations, told to sessions: the evidence for their questions in what is recalled, and the answers.

Each conversation is read once. What a session recalls is compared with searches over the same turns and as many tokens. What
was said last fills no segment yet, so that a session recalls all but that.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..sessions.memory_store import MemoryStore
from .answers import holds
from .evidence import BUDGETS, ENCODER_PACKAGE, bm25_scores, cosines, falling
from .inside import Passage, located, shares_among, shares_inside, whole_turn
from .outcomes import COUNTS, SESSION, WITHOUT_WORDS, Context, Outcome, Reply, report
from .published import Published, Question

if TYPE_CHECKING:
    from ..engine.text import TextCodec
    from ..model import HMTModel
    from ..sessions.session import Session
    from .evidence import Encoder, Scores
    from .report import Report

WITHOUT_ENCODER = f"MiniLM is not compared with: the package {ENCODER_PACKAGE} is not installed."
CHOSEN_ON = {
    "LoCoMo": "Some weights of words, and that of the words beside a message, were chosen on conversations of LoCoMo.",
    "QMSum": "Some weights of words were chosen on LoCoMo and on meetings of QMSum's validation part.",
}
_PASSAGES = 500  # recalled for a question: where they are sentences of ten tokens, 200 would not fill the largest budget
_NEIGHBOUR = 0.25  # share of the scores of the turns before and after that a turn gets
Ranking = Callable[[str], Sequence[Passage]]  # a question to passages, best first


@dataclass(frozen=True)
class Plan:
    """What is asked of each conversation."""

    questions: int | None = None  # drawn from those of each conversation; None: all
    answers: bool = False
    baselines: bool = True
    without_words: bool = False  # whether recall is also asked by memories and meaning alone
    max_new_tokens: int = 48
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """Return what a report records of it."""
        drawn = self.questions or "all"
        return {"questions of each": drawn, "max_new_tokens": self.max_new_tokens if self.answers else None, "seed": self.seed}

    def asked(self, conversation: Published) -> list[Question]:
        """Draw the questions of a conversation, in their order."""
        questions = conversation.questions
        if self.questions is None or self.questions >= len(questions):
            return list(questions)
        drawn = random.Random(f"{self.seed}/{conversation.name}").sample(range(len(questions)), self.questions)
        return [questions[number] for number in sorted(drawn)]


def measure(
    model: HMTModel,
    conversations: Sequence[Published],
    plan: Plan | None = None,
    *,
    answerer: HMTModel | None = None,
    encoder: Encoder | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Report, list[Outcome]]:
    """Tell conversations to sessions, and ask each its questions. Returns the report and what came of each question.

    Args:
        model: the model of the sessions.
        conversations: what is told.
        plan: what is asked.
        answerer: another model, which answers from notes of what `model` has read; None: `model` does.
        encoder: a sentence encoder to compare with.
        settings: what else the report records.
        progress: called with a line about what begins.
    """
    plan = plan or Plan()
    outcomes: list[Outcome] = []
    for number, conversation in enumerate(conversations):
        whose = f"{conversation.name} ({number + 1} of {len(conversations)})"
        with tempfile.TemporaryDirectory(prefix="hmt-eval-") as folder, MemoryStore(folder) as store:
            progress(f"telling {whose}")
            session = store.session("conversation", model)
            turns = tell(session, conversation)
            searches = _searches(conversation, encoder) if plan.baselines else {}
            rankings: dict[str, Ranking] = {SESSION: _recall_of(session, turns)}
            if plan.without_words:
                wordless = replace(model.view, selection="recall")
                rankings[WITHOUT_WORDS] = _recall_of(store.session("conversation", model, view=wordless), turns)
            rankings |= searches
            context = _context_of(conversation, plan, answerer or model) if plan.baselines else None
            reply = partial(_reply, session, conversation, plan, model, answerer) if plan.answers else None
            asked = plan.asked(conversation)
            for at, question in enumerate(asked):
                progress(f"asking {whose}: question {at + 1} of {len(asked)}")
                outcomes.append(_outcome(model.backbone, conversation, question, rankings, reply, context))
    forms = list(dict.fromkeys(conversation.form for conversation in conversations))
    said = {"form": ", ".join(forms), "conversations": len(conversations), **plan.described(), "questions": len(outcomes)}
    notes = [WITHOUT_ENCODER] if plan.baselines and encoder is None else []
    notes += [CHOSEN_ON[form] for form in forms if form in CHOSEN_ON]
    return report(outcomes, {**(settings or {}), **said}, notes), outcomes


def tell(session: Session, conversation: Published) -> dict[int, int]:
    """Add the turns of a conversation to a session. Returns the number of each turn by its message's id."""
    ids = session.add([{"role": turn.role, "content": turn.content} for turn in conversation.turns])
    return {message: number for number, message in enumerate(ids)}


def _recall_of(session: Session, turns: Mapping[int, int]) -> Ranking:
    return lambda question: [located(recalled, turns) for recalled in session.recall(question, _PASSAGES)]


def _searches(conversation: Published, encoder: Encoder | None) -> dict[str, Ranking]:
    """Return the ways to search whole turns that the session is compared with."""
    contents = [turn.content for turn in conversation.turns]
    every = [whole_turn(number, content) for number, content in enumerate(contents)]
    words = bm25_scores(contents)

    def by(scores: Scores) -> Ranking:
        return lambda question: [every[number] for number in falling(scores(question))]

    made = {"BM25 of turns": by(words)}
    if encoder is not None:
        meaning = cosines(encoder, contents)
        made["MiniLM of turns"] = by(meaning)
        made["BM25 and MiniLM, with neighbours"] = by(
            lambda question: with_neighbours(standard(words(question)) + standard(meaning(question)))
        )
    made["most recent turns"] = lambda question: every[::-1]
    return made


def standard(scores: np.ndarray) -> np.ndarray:
    """Return scores in standard deviations from their mean."""
    spread: np.ndarray = (scores - scores.mean()) / (scores.std() + 1e-9)
    return spread


def with_neighbours(scores: np.ndarray) -> np.ndarray:
    """Add to each score a share of the one before and the one after.

    >>> with_neighbours(np.array([0.0, 4.0, 0.0, 8.0])).tolist()
    [1.0, 4.0, 3.0, 8.0]
    """
    beside = np.zeros_like(scores)
    beside[1:] += scores[:-1]
    beside[:-1] += scores[1:]
    return scores + _NEIGHBOUR * beside


def _outcome(
    codec: TextCodec,
    conversation: Published,
    question: Question,
    rankings: Mapping[str, Ranking],
    reply: Callable[[Question], Reply] | None,
    context: Callable[[Question], Context] | None,
) -> Outcome:
    inside, among = {}, {}
    evidence = {number: conversation.turns[number].own for number in question.counted}
    if evidence:
        for way, ranking in rankings.items():
            passages = ranking(question.text)
            inside[way] = shares_inside(passages, evidence, BUDGETS, codec)
            among[way] = shares_among(passages, list(evidence), COUNTS)
    comparable = question.answer is not None or question.unanswerable
    answered = reply(question) if reply is not None and comparable else None
    whole = context(question) if context is not None and evidence else None
    return Outcome(conversation.name, question, inside, among, answered, whole)


def _context_of(conversation: Published, plan: Plan, answerer: HMTModel) -> Callable[[Question], Context]:
    """Compare a conversation with the window of the model that answers; the marks of a chat template are not counted."""
    codec, positions = answerer.backbone, answerer.backbone.positions
    latest = [whole_turn(number, turn.content) for number, turn in enumerate(conversation.turns)][::-1]
    tokens = sum(len(codec.encode(turn.text, literal=True)) for turn in latest)
    asked = max((len(codec.encode(question.text, literal=True)) for question in conversation.questions), default=0)
    room = tokens if positions is None else max(0, positions - asked - plan.max_new_tokens)

    def context(question: Question) -> Context:
        evidence = {number: conversation.turns[number].own for number in question.counted}
        return Context(tokens, room, *shares_inside(latest, evidence, [room], codec))

    return context


def _reply(
    session: Session, conversation: Published, plan: Plan, model: HMTModel, answerer: HMTModel | None, question: Question
) -> Reply:
    """Ask a session, and let it forget that it was asked."""
    asked = {"role": "user", "content": question.text}
    reply = session.reply(asked, max_new_tokens=plan.max_new_tokens, answerer=answerer).finish()
    session.forget(reply.message_ids)
    shown = _plain((answerer or model).backbone.decode(reply.view_ids))
    in_view = any(_plain(conversation.turns[number].content) in shown for number in question.counted)
    if not in_view and question.answer is not None:
        in_view = holds(shown, _plain(question.answer))
    return Reply(reply.text, in_view)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
