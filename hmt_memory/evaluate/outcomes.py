"""What came of the questions about published conversations, and the report of it. Knows numbers; no model and no store.

The report holds no text of the conversations, whose licences are their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .answers import abstains
from .evidence import BUDGETS
from .published import MULTI_HOP, Question
from .report import Figure, Report, Table
from .scoring import f1, f1_of_parts
from .statistics import mean_interval

SESSION = "the session's recall"
WITHOUT_WORDS = "recall without words"
COUNTS = (5, 10, 20)  # distinct turns
_SHOWN = 1024  # the budget that is shown by category


class Reply(NamedTuple):
    """A session's answer to a question."""

    text: str
    in_view: bool  # whether a turn of evidence, or the published answer, stood in what the model was shown


class Context(NamedTuple):
    """A conversation as the context of a question, without a memory."""

    tokens: int  # of its turns
    room: int  # tokens for turns in the window of the model that answers
    inside: float  # share of the evidence in the latest turns that fit

    @property
    def fits(self) -> bool:
        """Whether all turns do."""
        return self.tokens <= self.room


@dataclass(frozen=True)
class Outcome:
    """What came of one question."""

    conversation: str
    question: Question
    inside: Mapping[str, Sequence[float]] = field(default_factory=dict)  # for each of BUDGETS, by the way of searching
    among: Mapping[str, Sequence[float]] = field(default_factory=dict)  # for each of COUNTS
    reply: Reply | None = None
    context: Context | None = None

    @property
    def score(self) -> float | None:
        """The F1 of the answer; of an unanswerable question, 1 if the answer says so; None: there is nothing to compare."""
        question = self.question
        if self.reply is None or (question.answer is None and not question.unanswerable):
            return None
        if question.answer is None:
            return float(abstains(self.reply.text))
        return (f1_of_parts if question.category == MULTI_HOP else f1)(self.reply.text, question.answer)

    def to_dict(self) -> dict[str, Any]:
        """Return question and answer, ready for JSON."""
        question, reply = self.question, self.reply
        said = {} if reply is None else {"said": reply.text, "score": self.score, "in view": reply.in_view}
        asked = {"question": question.text, "category": question.category, "answer": question.answer}
        return {"conversation": self.conversation, **asked, **said}


class _Scored(NamedTuple):
    category: str
    unanswerable: bool
    score: float
    in_view: bool


def report(outcomes: Sequence[Outcome], settings: Mapping[str, Any], notes: Sequence[str] = ()) -> Report:
    """Make the report of what came of questions.

    Args:
        outcomes: one for each question.
        settings: what it records.
        notes: what else there is to say.
    """
    counted = [outcome for outcome in outcomes if outcome.inside]
    compared = list(_scored(outcomes))
    tables, figures = [], []
    if counted:
        tables += [
            _table("Share of the evidence inside the first so many tokens", BUDGETS, [one.inside for one in counted]),
            _table("Share of the turns of evidence among the first so many turns", COUNTS, [one.among for one in counted]),
            _by_category(counted),
        ]
        tables += _contexts(counted)
        figures.append(_figure(counted))
        notes = [
            "A character of the evidence counts once. Of a turn, only what was said counts, not its date or speaker.",
            *notes,
        ]
    if compared:
        tables.append(_answers(compared))
        notes = [
            *notes,
            "F1 is that of LoCoMo's script, but words are not stemmed. A question that has no answer counts 1 where the answer "
            "says that it does not know, else 0.",
            "In view: a whole turn of evidence, or the words of the published answer, stood in what the model was shown. Short "
            "answers such as yes or 2 stand there by chance, too.",
        ]
    left_out = sum(outcome.reply is None for outcome in outcomes) if compared else 0
    recorded = {**settings, "questions with evidence": len(counted), "questions answered": len(compared)}
    if left_out:
        recorded["questions without a published answer, not asked"] = left_out
    recorded["intervals"] = "95 %, bootstrap over questions, seed 0"
    return Report("conversations", "Published conversations, told to sessions", recorded, tables, figures, notes)


def _scored(outcomes: Sequence[Outcome]) -> Iterator[_Scored]:
    for outcome in outcomes:
        if outcome.reply is not None and outcome.score is not None:
            question = outcome.question
            yield _Scored(question.category, question.unanswerable, outcome.score, outcome.reply.in_view)


def _table(title: str, limits: Sequence[int], measured: Sequence[Mapping[str, Sequence[float]]]) -> Table:
    rows = []
    for way in measured[0]:
        values = np.array([shares[way] for shares in measured])
        intervals = [mean_interval(values[:, column]) for column in range(len(limits))]
        rows.append([way, *(f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})" for mean in intervals)])
    return Table(title, ["", *map(str, limits)], rows)


def _by_category(counted: Sequence[Outcome]) -> Table:
    """Show what is inside one budget, a row for each category and a column for each way of searching."""
    ways, column = list(counted[0].inside), BUDGETS.index(_SHOWN)
    rows: list[list[Any]] = []
    for category in dict.fromkeys(sorted(outcome.question.category for outcome in counted)):
        own = [outcome.inside for outcome in counted if outcome.question.category == category]
        rows.append([category, len(own), *(f"{np.mean([shares[way][column] for shares in own]):.3f}" for way in ways)])
    return Table(f"Share of the evidence inside {_SHOWN:,} tokens, by category", ["category", "questions", *ways], rows)


def _contexts(counted: Sequence[Outcome]) -> Iterator[Table]:
    """Yield a table of how many conversations the window holds, and of the evidence in the turns that it holds."""
    known = [(outcome.conversation, outcome.context) for outcome in counted if outcome.context is not None]
    if not known:
        return
    rows: list[list[Any]] = []
    for fits, name in ((True, "fit whole"), (False, "do not: the latest turns that fit")):
        group = [(conversation, context) for conversation, context in known if context.fits == fits]
        mean = mean_interval(np.array([context.inside for _, context in group])) if group else None
        share = None if mean is None else f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"
        tokens = _range(context.tokens for _, context in group)
        rows.append([name, len({conversation for conversation, _ in group}), tokens, len(group), share])
    title = f"Conversations as context, where the window has room for {_range(context.room for _, context in known)} tokens"
    yield Table(title, ["", "conversations", "tokens of each", "questions", "share of the evidence"], rows)


def _range(values: Iterable[int]) -> str | None:
    """Write the least and the greatest of whole numbers; None: there are none."""
    ends = sorted(set(values))
    return " to ".join(f"{value:,}" for value in dict.fromkeys((ends[0], ends[-1]))) if ends else None


def _figure(counted: Sequence[Outcome]) -> Figure:
    curves = {
        way: [(budget, float(np.mean([one.inside[way][column] for one in counted]))) for column, budget in enumerate(BUDGETS)]
        for way in counted[0].inside
    }
    return Figure("Evidence inside what is recalled", "tokens", "share of the evidence", curves, logarithmic=True)


def _answers(compared: Sequence[_Scored]) -> Table:
    """Show how near the answers come to the published ones, and what of it was in view."""
    answerable = [one for one in compared if not one.unanswerable]
    groups = {"all that have an answer": answerable} if answerable else {}
    for category in sorted({one.category for one in compared}):
        groups[category] = [one for one in compared if one.category == category]
    rows: list[list[Any]] = []
    for name, group in groups.items():
        mean = mean_interval(np.array([one.score for one in group]))
        measure = "says that it does not know" if group[0].unanswerable else "F1"
        rows.append([name, len(group), measure, f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})", *_in_view(group)])
    return Table("Answers", ["category", "questions", "measured", "mean", "in view", "F1 in view"], rows)


def _in_view(group: Sequence[_Scored]) -> list[str | None]:
    """Return how many were answered with the evidence in view, and how well."""
    if group[0].unanswerable:
        return [None, None]
    seen = [one.score for one in group if one.in_view]
    if not seen:
        return ["0", None]
    mean = mean_interval(np.array(seen))
    return [str(len(seen)), f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"]
