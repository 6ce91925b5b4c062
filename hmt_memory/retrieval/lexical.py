"""Scores of segments by a query's words: BM25 with two changes. Knows texts and counts; no store.

The published BM25 (Robertson & Zaragoza 2009), with the inverse document frequency squared, which replaces lists of stop
words in every language, and with a share of each segment's score given to its neighbours, because the answer to a question
often stands just before or after the words it shares with it. Both were measured: docs/log.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..store.index.words import Postings

_K1, _B = 1.2, 0.75  # the customary values
_NEIGHBOUR = 0.25  # share of a segment's score that is added to the one before and the one after
_PREFIX = 5  # characters of a word that count: a light stemmer for any alphabet (McNamee & Mayfield 2004)
_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def terms(text: str) -> list[str]:
    """Split a text into its words as they are compared, in order: lower case, accents unified, cut to five characters.

    Scripts that write no spaces between words give pairs of characters.

    >>> terms("Meetings, the MEETING of 1984!")
    ['meeti', 'the', 'meeti', 'of', '1984']
    >>> terms("東京都")
    ['東京', '京都']
    """
    words: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
        unspaced = _UNSPACED.search(word)
        if unspaced:
            words += [word[start : start + 2] for start in range(max(1, len(word) - 1))]
        else:
            words.append(word if word.isdigit() else word[:_PREFIX])
    return words


def distinct_terms(text: str) -> list[str]:
    """Return each word of a query once."""
    return list(dict.fromkeys(terms(text)))


def scores(shards: Sequence[Postings]) -> list[NDArray[np.float64]]:
    """Score every segment of several collections that are searched as one by a query's words: [n] for each.

    The rarity of a word and the usual length of a segment are counted over all of them.
    """
    total = sum(len(shard.lengths) for shard in shards)
    if not total:
        return [np.zeros(0) for _ in shards]
    usual = max(1.0, sum(float(shard.lengths.sum()) for shard in shards) / total)
    values = [np.zeros(len(shard.lengths)) for shard in shards]
    for word in range(len(shards[0].found)):
        holding = sum(len(shard.found[word][0]) for shard in shards)
        rarity = _rarity(holding, total)
        for value, shard in zip(values, shards, strict=True):
            positions, counts = shard.found[word]
            weight = _K1 * (1 - _B + _B * shard.lengths[positions] / usual)
            value[positions] += rarity * counts * (_K1 + 1) / (counts + weight)
    return [_spread(value, shard.starts) for value, shard in zip(values, shards, strict=True)]


def rarities(query: Sequence[str], shards: Sequence[Postings]) -> dict[str, float]:
    """Return how much each word of a query is worth, counted over all collections that are searched as one.

    Single letters, such as the s behind an apostrophe, are worth nothing.
    """
    total = sum(len(shard.lengths) for shard in shards)
    counts = [sum(len(shard.found[number][0]) for shard in shards) for number in range(len(query))]
    words = {word: _rarity(holding, total) for word, holding in zip(query, counts, strict=True)}
    return {word: 0.0 if len(word) == 1 and word.isascii() and word.isalpha() else worth for word, worth in words.items()}


def text_scores(texts: Sequence[str], worth: Mapping[str, float]) -> NDArray[np.float64]:
    """Score texts by the words of a query that stand in them: [n], each at most the sum of what the words are worth.

    Args:
        texts: messages or sentences.
        worth: of each word of the query, as `rarities` returns it.
    """
    return counted_scores([Counter(terms(text)) for text in texts], worth)


def counted_scores(counted: Sequence[Mapping[str, int]], worth: Mapping[str, float]) -> NDArray[np.float64]:
    """Score texts likewise, by how often each of their words stands in them."""
    lengths = [sum(count.values()) for count in counted]
    usual = max(1.0, float(np.mean(lengths))) if lengths else 1.0
    values = np.zeros(len(counted))
    for number, (count, length) in enumerate(zip(counted, lengths, strict=True)):
        weight = _K1 * (1 - _B + _B * length / usual)
        values[number] = sum(
            worth[word] * min(1.0, often * (_K1 + 1) / (often + weight)) for word, often in count.items() if word in worth
        )
    return values


def _rarity(holding: int, total: int) -> float:
    return float(np.log(1 + (total - holding + 0.5) / (holding + 0.5)) ** 2)


def _spread(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Add to each score its share of the neighbours' scores, within one session or document."""
    result = values.copy()
    linked = np.ones(max(0, len(values) - 1))
    linked[starts[starts > 0] - 1] = 0.0
    result[1:] += _NEIGHBOUR * values[:-1] * linked
    result[:-1] += _NEIGHBOUR * values[1:] * linked
    return result
