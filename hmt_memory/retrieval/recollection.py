"""What one answer remembers: P recalls from all shards, and notes of what bears on the question and is not visible stand before it.

Segments are preselected as ever; notes are the messages and sentences in the best of them, ranked by the question's words and
by their segments. Knows the ranking of segments and the model's view; no transcript and no database.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..engine.state import HMTState
from . import lexical
from .notes import written
from .ranking import Choice, RecalledSegment, RecalledSegments, Sources, choose, preselect, segment
from .sources import Citation, Shard

if TYPE_CHECKING:
    from ..model import HMTModel

_SEARCHED = 24  # segments whose passages are ranked
_SEGMENT_SHARE = 0.25  # weight of a passage's best segment beside its own words
_QUESTION = 0.5  # what a passage that asks counts for itself
_ANSWER = 0.9  # share of the score of a passage that asks, which the next one gets
_NEIGHBOUR = 0.25  # share of a sentence's score that the next one and the one before get
_LEAST_OF_BEST = 0.3  # passages below this share of the best one's score are left out
_LEAST = 0.12  # and so are those below this score: they do not bear on the question
_MOST_MISFITS = 3  # passages over the rest of the budget, before no more are tried
_ASKS = ("?", "\N{FULLWIDTH QUESTION MARK}", "\N{ARABIC QUESTION MARK}")


class Scored(NamedTuple):
    """A passage and how much it bears on the question."""

    place: tuple[int, int, int]  # (shard, segment, number in it): rises in the order in which it was said
    cited: Citation
    score: float


class ViewRecollection:
    """The memory of one answer.

    Args:
        model: the model that answers.
        encode: token ids of notes as they stand in the view, such as `Transcript.plain`.
        sources: gives all shards, as of one view of the rows.
        own: whether the first shard is the answering stream's own. The part of it that the view shows is then not noted, and
            segments that the state has beyond it are recalled too.
        question: its words count.
        noting: whether to bring notes at all.
    """

    def __init__(
        self,
        model: HMTModel,
        encode: Callable[[str], list[int]],
        sources: Sources[Any],
        *,
        own: bool,
        question: str,
        noting: bool = True,
    ) -> None:
        self._model, self._encode, self._sources = model, encode, sources
        self._own, self._noting, self._question = own, noting, question
        self._chosen: Tensor | None = None
        self.recalled = RecalledSegments()  # the passages that are noted, once they are chosen

    def memory(self, summary: Tensor, state: HMTState, visible: int) -> Tensor:
        """Return the memory [k, m, d] that P recalls from.

        Args:
            summary: [d], of the last visible tokens.
            state: the stream so far.
            visible: the number of its latest tokens that the view shows.
        """
        memory: Tensor = self._sources(lambda shards: self._recall(shards, summary, state, state.tokens - visible))
        return memory

    def notes(self) -> Tensor:
        """Return token ids [t] of the notes: the best passages that fit into `note_tokens`, in the order they were said."""
        return torch.zeros(0, dtype=torch.long) if self._chosen is None else self._chosen

    def _recall(self, shards: Sequence[Shard], summary: Tensor, state: HMTState, visible_from: int) -> Tensor:
        beyond = self._beyond(shards, state)
        candidates = preselect(self._model, shards, summary, self._model.config.recall_window, beyond)
        if self._chosen is None:
            ids: list[int] = []
            if self._noting and self._model.view.note_tokens:
                chosen = choose(self._model, shards, candidates, self._question, self._model.config.recall_window, beyond)
                self.recalled.coverage = chosen.coverage
                passages = self._passages(shards, chosen, visible_from)
                ids = self._fitting(scored(passages, self._question, chosen.worth), chosen.coverage)
            self._chosen = torch.tensor(ids, dtype=torch.long)
        return candidates.memory

    def _passages(
        self, shards: Sequence[Shard], chosen: Choice, visible_from: int
    ) -> list[tuple[tuple[int, int], Citation, float]]:
        """Return the passages of the best segments that the view does not show: place, passage, weight of the segment."""
        passages: list[tuple[tuple[int, int], Citation, float]] = []
        length = self._model.config.segment_length
        searched = 0
        for (shard, position), weight in zip(chosen.places, chosen.weights, strict=True):
            own = self._own and shard == 0
            if own and position * length >= visible_from:
                continue
            cited = shards[shard].passages(position, before=visible_from if own else None)
            passages += [((shard, position), passage, weight) for passage in cited]
            searched += 1
            if searched == _SEARCHED:
                break
        return passages

    def _fitting(self, ranked: Sequence[Scored], coverage: float) -> list[int]:
        """Take the best passages that fit; return the token ids of the notes."""
        kept: list[Scored] = []
        ids: list[int] = []
        misfits, total = 0, sum(passage.score for passage in ranked)
        for passage in ranked:
            longer = sorted([*kept, passage], key=lambda one: one.place)
            block = self._encode(written([each.cited.note() for each in longer]))
            if len(block) > (self._model.view.note_tokens or 0):
                misfits += 1
                if misfits == _MOST_MISFITS:
                    break
                continue
            kept, ids = [*kept, passage], block
            self.recalled.append(segment(passage.cited, passage.score / total, coverage))
        return ids

    def _beyond(self, shards: Sequence[Shard], state: HMTState) -> Tensor | None:
        """Return the memory [e, m, d] of segments that are in no row yet, if there are any."""
        beyond = state.segments - shards[0].total if self._own else 0
        if beyond <= 0:
            return None
        return self._model.recallable(self._model.by_segment(state)[state.held - beyond :])


def scored(
    passages: Sequence[tuple[tuple[int, int], Citation, float]], question: str, worth: Mapping[str, float]
) -> list[Scored]:
    """Rank passages by how much they bear on a question; those that do not are left out.

    Args:
        passages: each with its place and the weight of the segment it was found by; some several times.
        question: what is asked.
        worth: of the question's words.
    """
    best: dict[tuple[Any, ...], tuple[tuple[int, int, int], Citation, float]] = {}
    for number, ((shard, position), cited, weight) in enumerate(passages):
        ids = tuple(message.id for message in cited.messages) or (cited.document,)
        key = (shard, ids, cited.text)
        place, _, heaviest = best.get(key, ((shard, position, number), cited, 0.0))
        best[key] = (min(place, (shard, position, number)), cited, max(heaviest, weight))
    latest = {cited.text: (place, cited, weight) for place, cited, weight in sorted(best.values(), key=lambda one: one[0])}
    rows = [row for row in sorted(latest.values(), key=lambda one: one[0]) if row[1].text.strip() != question.strip()]
    if not rows:
        return []
    total = sum(worth.values())
    words = lexical.text_scores([cited.text for _, cited, _ in rows], worth) / total if total else np.zeros(len(rows))
    near = words * [_QUESTION if _asks(cited) else 1.0 for _, cited, _ in rows]
    for number, (one, other) in enumerate(zip(rows, rows[1:], strict=False)):
        before, after = _lent(one[1], other[1])
        near[number] += before * words[number + 1]
        near[number + 1] += after * words[number]
    heaviest = max(weight for _, _, weight in rows) or 1.0
    scores = near + _SEGMENT_SHARE * np.array([math.sqrt(weight / heaviest) for _, _, weight in rows]) * (
        near > 0 if total else 1.0
    )
    ranked = [Scored(place, cited, float(score)) for (place, cited, _), score in zip(rows, scores, strict=True)]
    ranked.sort(key=lambda one: -one.score)
    least = max(_LEAST, _LEAST_OF_BEST * ranked[0].score)
    return [passage for passage in ranked if passage.score >= least]


def _asks(cited: Citation) -> bool:
    return bool(cited.messages) and cited.text.rstrip().endswith(_ASKS)


def _lent(one: Citation, other: Citation) -> tuple[float, float]:
    """Return the share of the second passage's score that the first gets, and of the first's that the second gets."""
    if one.source != other.source or other.segment - one.segment > 1:
        return 0.0, 0.0
    if one.messages and one.messages != other.messages:
        return 0.0, _ANSWER if _asks(one) and one.token_span[1] == other.token_span[0] else 0.0
    return _NEIGHBOUR, _NEIGHBOUR


def as_recalled(ranked: Sequence[Scored], coverage: float) -> list[RecalledSegment]:
    """Convert ranked passages to what recall gives, with weights that sum to 1."""
    total = sum(passage.score for passage in ranked) or 1.0
    return [segment(passage.cited, passage.score / total, coverage) for passage in ranked]
