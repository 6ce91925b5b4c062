"""Passages: the messages and sentences in the segments that a question brings back, ranked by how much they bear on it.

Segments are the unit of reading and of recall; what people are shown is whole. Knows shards and a question's words.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import lexical
from .citations import Citation
from .sentences import sentences
from .sources import Shard

_SEARCHED = 24  # segments whose passages are ranked, unless more passages are asked for
_SEGMENT_SHARE = 0.25  # weight of a passage's best segment beside its own words
_QUESTION = 0.5  # what a passage that asks counts for itself
_ANSWER = 0.9  # share of the score of a passage that asks, which the next one gets
_NEIGHBOUR = 0.25  # share of a sentence's score that the next one and the one before get
_AROUND = 2  # messages before a message, and after it, among which the question's words are looked for, too
_ASKS = ("?", "\N{FULLWIDTH QUESTION MARK}", "\N{ARABIC QUESTION MARK}")


class FoundPassage(NamedTuple):
    """A passage of a segment."""

    place: tuple[int, int]  # (shard, position) of the segment
    cited: Citation
    weight: float  # the segment's
    meaning: float = 0.0  # inner product of its key by meaning and the question's


class Choice(NamedTuple):
    """Segments by falling weight."""

    places: list[tuple[int, int]]  # (shard, position) of each
    weights: list[float]  # sum to 1
    coverage: float  # at least this share of the softmax over all segments fell on these
    worth: Mapping[str, float] = {}  # of the query's words; empty where they do not count
    nearest: Mapping[tuple[int, int], Mapping[int, float]] = {}  # scores of the best keys by meaning, by place and number


class Evidence(NamedTuple):
    """What speaks for a passage."""

    words: float = 0.0  # share of the question's words, by what they are worth, its own or lent
    meaning: float = 0.0  # inner product of its key by meaning, or of the question it answers, and the question's
    segment: float = 0.0  # square root of its segment's weight, as a share of the heaviest one's
    around: float = 0.0  # share of the question's words, in the message and those beside it; of a sentence, its own


class Fusion(NamedTuple):
    """The logit that a passage answers, as a sum over what speaks for it: a logistic regression."""

    words: float
    meaning: float
    segment: float
    around: float
    asks: float
    bias: float

    def likelihood(
        self,
        words: NDArray[np.float64],
        meaning: NDArray[np.float64],
        segment: NDArray[np.float64],
        around: NDArray[np.float64],
        asks: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return the probability of each passage.

        Args:
            words: [n] shares of the question's words.
            meaning: [n] inner products, none below 0.
            segment: [n] shares of the heaviest segment.
            around: [n] shares of the question's words that stand there or beside it.
            asks: [n] whether it is itself a question.
        """
        logits = self.words * words + self.meaning * meaning + self.segment * segment + self.around * around
        logits = logits + self.asks * asks + self.bias
        likely: NDArray[np.float64] = 1 / (1 + np.exp(-logits))
        return likely


# Fitted to made-up facts of training (benchmarks/fit_fusion.py), but `around`: those stand between talk of other things, so
# its weight was chosen on LoCoMo (docs/log.md).
FUSED = Fusion(words=1.1, meaning=9.4, segment=1.6, around=2.0, asks=-0.5, bias=-7.9)


class Scored(NamedTuple):
    """A passage and how much it bears on the question."""

    place: tuple[int, int, int]  # (shard, segment, number in it): rises in the order in which it was said
    cited: Citation
    score: float
    shares_words: bool  # with the question, or with one that it answers; also where words do not count
    evidence: Evidence = Evidence()
    likelihood: float | None = None  # that it answers, as fitted; None where there are no keys by meaning


def ranked(
    shards: Sequence[Shard],
    chosen: Choice,
    question: str,
    *,
    before: Callable[[int], int | None] = lambda shard: None,
    enough: int = 0,
    finely: bool = False,
) -> list[Scored]:
    """Rank the passages of the best segments by how much they bear on a question.

    Args:
        shards: the collections that were searched.
        chosen: their segments by falling weight.
        question: what is asked.
        before: gives for a shard the token from which on it is not looked at.
        enough: look at further segments until there are so many passages.
        finely: rank the sentences of documents one by one.
    """
    found: list[FoundPassage] = []
    searched = 0
    for place, weight in zip(chosen.places, chosen.weights, strict=True):
        parts = _parts_of(shards, place, before, finely)
        found += _found(shards, chosen, place, parts, weight)
        searched += bool(parts)
        if searched >= _SEARCHED and len(found) >= enough:
            break
    known = {one.place for one in found}
    for place in itertools.islice(chosen.nearest, _SEARCHED):
        if place not in known:
            found += _found(shards, chosen, place, _parts_of(shards, place, before, finely), 0.0)
    return scored(found, question, chosen.worth)


def _parts_of(
    shards: Sequence[Shard], place: tuple[int, int], before: Callable[[int], int | None], finely: bool
) -> list[Citation]:
    cited = shards[place[0]].passages(place[1], before=before(place[0]))
    return [part for passage in cited for part in (_parts(passage) if finely else [passage])]


def _found(
    shards: Sequence[Shard], chosen: Choice, place: tuple[int, int], parts: Sequence[Citation], weight: float
) -> list[FoundPassage]:
    """Return the passages of a segment with their scores by meaning: of the best of the keys that stand for a part of them."""
    scores = chosen.nearest.get(place)
    if not scores or not parts:
        return [FoundPassage(place, cited, weight) for cited in parts]
    spans = shards[place[0]].stretches(place[1])
    found = []
    for cited, (start, stop) in zip(parts, _spans(parts), strict=True):
        shared = [
            scores[number]
            for number, (low, high) in enumerate(spans)
            if number in scores and 2 * (min(stop, high) - max(start, low)) >= min(stop - start, high - low)
        ]
        found.append(FoundPassage(place, cited, weight, max(shared, default=0.0)))
    return found


def _spans(parts: Sequence[Citation]) -> list[tuple[int, int]]:
    """Return about where each passage stands: sentences share the span of their window by their lengths."""
    spans = []
    for (start, stop), group in itertools.groupby(parts, key=lambda one: one.token_span):
        ends = list(itertools.accumulate(len(one.text) + 1 for one in group))
        edges = [start, *(start + round((stop - start) * end / ends[-1]) for end in ends)]
        spans += list(itertools.pairwise(edges))
    return spans


def scored(passages: Sequence[FoundPassage], question: str, worth: Mapping[str, float]) -> list[Scored]:
    """Score passages by how much they bear on a question, the best first.

    Args:
        passages: each with its place and the weight of the segment it was found by; some several times.
        question: what is asked.
        worth: of the question's words.
    """
    best: dict[tuple[Any, ...], _Row] = {}
    for number, ((shard, position), cited, weight, meaning) in enumerate(passages):
        ids = tuple(message.id for message in cited.messages) or (cited.document,)
        key = (shard, ids, cited.text)
        row = _Row((shard, position, number), cited, weight, meaning)
        known = best.get(key, row)
        first = min(known, row, key=lambda one: one.place)
        best[key] = _Row(first.place, first.cited, max(known.weight, weight), max(known.meaning, meaning))
    rows = [row for row in sorted(best.values(), key=lambda one: one.place) if row.cited.text.strip() != question.strip()]
    if not rows:
        return []
    total = sum(worth.values())
    counted = [Counter(lexical.terms(row.cited.text)) for row in rows] if total else []
    words = lexical.counted_scores(counted, worth) / total if total else np.zeros(len(rows))
    near = words * [_QUESTION if asks(row.cited) else 1.0 for row in rows]
    nearness = np.array([row.meaning for row in rows])
    for number, (one, other) in enumerate(itertools.pairwise(rows)):
        before, after = _lent(one.cited, other.cited)
        near[number] += before * words[number + 1]
        near[number + 1] += after * words[number]
        if asks(one.cited) and after:
            nearness[number + 1] = max(nearness[number + 1], after * nearness[number])
    heaviest = max(row.weight for row in rows) or 1.0
    segments = np.sqrt([row.weight / heaviest for row in rows])
    likely, around = None, np.zeros(len(rows))
    scores = near + _SEGMENT_SHARE * segments
    if any(row.meaning for row in rows):
        asking = np.array([asks(row.cited) for row in rows])
        around = _around(rows, counted, worth) / total if total else around
        scores = likely = FUSED.likelihood(near, np.maximum(nearness, 0), segments, around, asking)
    ranking = [
        Scored(
            row.place,
            row.cited,
            float(scores[number]),
            bool(near[number]) or not total,
            Evidence(float(near[number]), float(nearness[number]), float(segments[number]), float(around[number])),
            None if likely is None else float(likely[number]),
        )
        for number, row in enumerate(rows)
    ]
    return sorted(ranking, key=lambda one: -one.score)


class _Row(NamedTuple):
    place: tuple[int, int, int]
    cited: Citation
    weight: float
    meaning: float


def _around(rows: Sequence[_Row], counted: Sequence[Counter[str]], worth: Mapping[str, float]) -> NDArray[np.float64]:
    """Score messages, each together with those beside it, by a question's words; sentences of documents alone."""
    follows = [
        one.cited.source == other.cited.source
        and bool(one.cited.messages)
        and one.cited.token_span[1] == other.cited.token_span[0]
        for one, other in itertools.pairwise(rows)
    ]
    joined = []
    for number in range(len(rows)):
        first = last = number
        while first > max(0, number - _AROUND) and follows[first - 1]:
            first -= 1
        while last < min(len(rows) - 1, number + _AROUND) and follows[last]:
            last += 1
        joined.append(sum(counted[first : last + 1], Counter[str]()))
    return lexical.counted_scores(joined, worth)


def _parts(cited: Citation) -> list[Citation]:
    """Return the sentences of a document's passage; a message as it is."""
    return [cited] if cited.messages else [cited._replace(text=text) for text in sentences(cited.text)]


def asks(cited: Citation) -> bool:
    """Return whether a message asks something."""
    return bool(cited.messages) and cited.text.rstrip().endswith(_ASKS)


def _lent(one: Citation, other: Citation) -> tuple[float, float]:
    """Return the share of the second passage's score that the first gets, and of the first's that the second gets."""
    if one.source != other.source or other.segment - one.segment > 1:
        return 0.0, 0.0
    if one.messages and one.messages != other.messages:
        return 0.0, _ANSWER if asks(one) and one.token_span[1] == other.token_span[0] else 0.0
    return _NEIGHBOUR, _NEIGHBOUR
