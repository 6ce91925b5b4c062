"""An index of words in memory: how much of a query's words each text holds. Knows texts; no store."""

from __future__ import annotations

import math
import sys
from collections import defaultdict

from hmt_memory.assistant import distinct_terms, terms

_PASSAGE = 200  # words of a long text that count as standing together


class Lexicon:
    """The words of numbered texts."""

    def __init__(self) -> None:
        self._passages: dict[int, list[frozenset[str]]] = {}
        self._holding: defaultdict[str, set[int]] = defaultdict(set)

    def __contains__(self, number: int) -> bool:
        return number in self._passages

    def add(self, number: int, text: str) -> None:
        """Add a text."""
        words = [sys.intern(word) for word in terms(text)]
        self._passages[number] = [frozenset(words[start : start + _PASSAGE]) for start in range(0, len(words), _PASSAGE)]
        for word in set(words):
            self._holding[word].add(number)

    def remove(self, number: int) -> None:
        """Drop a text, if it is there."""
        for word in frozenset().union(*self._passages.pop(number, ())):
            self._holding[word].discard(number)
            if not self._holding[word]:
                del self._holding[word]

    def shares(self, query: str) -> dict[int, float]:
        """Return, for each text that holds any word of a query, the share that it holds: 1 means all of them, in one passage.

        A word counts by how rare it is, as in `hmt_memory.retrieval.lexical`; a word that no text holds counts most, so that a
        query about something else gives low shares.
        """
        asked = {word: self._rarity(word) for word in distinct_terms(query)}
        holding = set().union(*(self._holding[word] for word in asked if word in self._holding))
        return {
            number: max(math.fsum(asked[word] for word in asked if word in passage) for passage in self._passages[number])
            / math.fsum(asked.values())
            for number in holding
        }

    def _rarity(self, word: str) -> float:
        total, holding = len(self._passages), len(self._holding.get(word, ()))
        return math.log(1 + (total - holding + 0.5) / (holding + 0.5)) ** 2
