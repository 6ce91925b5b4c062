"""Passages: the messages and sentences in the segments that a question brings back, ranked by how much they bear on it.

Segments are the unit of reading and of recall; what people are shown is whole. Knows shards and a question's words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import lexical
from .sentences import sentences
from .sources import Citation, Shard

_SEARCHED = 24  # segments whose passages are ranked, unless more passages are asked for
_SEGMENT_SHARE = 0.25  # weight of a passage's best segment beside its own words
_QUESTION = 0.5  # what a passage that asks counts for itself
_ANSWER = 0.9  # share of the score of a passage that asks, which the next one gets
_NEIGHBOUR = 0.25  # share of a sentence's score that the next one and the one before get
_ASKS = ("?", "\N{FULLWIDTH QUESTION MARK}", "\N{ARABIC QUESTION MARK}")

Found = tuple[tuple[int, int], Citation, float]  # place of its segment, the passage, the segment's weight


class Choice(NamedTuple):
    """Segments by falling weight."""

    places: list[tuple[int, int]]  # (shard, position) of each
    weights: list[float]  # sum to 1
    coverage: float  # at least this share of the softmax over all segments fell on these
    worth: Mapping[str, float] = {}  # of the query's words; empty where they do not count


class Scored(NamedTuple):
    """A passage and how much it bears on the question."""

    place: tuple[int, int, int]  # (shard, segment, number in it): rises in the order in which it was said
    cited: Citation
    score: float
    shares_words: bool  # with the question, or with one that it answers; also where words do not count


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
    found: list[Found] = []
    searched = 0
    for (shard, position), weight in zip(chosen.places, chosen.weights, strict=True):
        cited = shards[shard].passages(position, before=before(shard))
        found += [((shard, position), part, weight) for passage in cited for part in (_parts(passage) if finely else [passage])]
        searched += bool(cited)
        if searched >= _SEARCHED and len(found) >= enough:
            break
    return scored(found, question, chosen.worth)


def scored(passages: Sequence[Found], question: str, worth: Mapping[str, float]) -> list[Scored]:
    """Score passages by how much they bear on a question, the best first.

    Args:
        passages: each with its place and the weight of the segment it was found by; some several times.
        question: what is asked.
        worth: of the question's words.
    """
    best: dict[tuple[Any, ...], tuple[tuple[int, int, int], Citation, float]] = {}
    for number, ((shard, position), cited, weight) in enumerate(passages):
        ids = tuple(message.id for message in cited.messages) or (cited.document,)
        key = (shard, ids, cited.text)
        known = best.get(key, ((shard, position, number), cited, 0.0))
        first = min(known[:2], ((shard, position, number), cited), key=lambda one: one[0])
        best[key] = (*first, max(known[2], weight))
    rows = [row for row in sorted(best.values(), key=lambda one: one[0]) if row[1].text.strip() != question.strip()]
    if not rows:
        return []
    total = sum(worth.values())
    words = lexical.text_scores([cited.text for _, cited, _ in rows], worth) / total if total else np.zeros(len(rows))
    near = words * [_QUESTION if _asks(cited) else 1.0 for _, cited, _ in rows]
    for number, (one, other) in enumerate(itertools.pairwise(rows)):
        before, after = _lent(one[1], other[1])
        near[number] += before * words[number + 1]
        near[number + 1] += after * words[number]
    heaviest = max(weight for _, _, weight in rows) or 1.0
    scores = near + _SEGMENT_SHARE * np.array([math.sqrt(weight / heaviest) for _, _, weight in rows])
    ranking = [
        Scored(place, cited, float(score), bool(shares) or not total)
        for (place, cited, _), score, shares in zip(rows, scores, near, strict=True)
    ]
    return sorted(ranking, key=lambda one: -one.score)


def _parts(cited: Citation) -> list[Citation]:
    """Return the sentences of a document's passage; a message as it is."""
    return [cited] if cited.messages else [cited._replace(text=text) for text in sentences(cited.text)]


def _asks(cited: Citation) -> bool:
    return bool(cited.messages) and cited.text.rstrip().endswith(_ASKS)


def _lent(one: Citation, other: Citation) -> tuple[float, float]:
    """Return the share of the second passage's score that the first gets, and of the first's that the second gets."""
    if one.source != other.source or other.segment - one.segment > 1:
        return 0.0, 0.0
    if one.messages and one.messages != other.messages:
        return 0.0, _ANSWER if _asks(one) and one.token_span[1] == other.token_span[0] else 0.0
    return _NEIGHBOUR, _NEIGHBOUR
