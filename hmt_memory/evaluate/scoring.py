"""Answers compared with published ones: the F1 of their words, as LoCoMo counts it; and loops in them. Knows texts only.

LoCoMo's script also stems words, by Porter; that is left out here, so that plurals and tenses count as other words.
"""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(?:a|an|the|and)\b")  # as LoCoMo's script has them
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s|\n")


def words_of(text: str) -> list[str]:
    """Return the words that are compared: lower case, without punctuation and articles.

    >>> words_of("The cat, and a dog's bed!")
    ['cat', 'dogs', 'bed']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: str, published: str) -> float:
    """Return the harmonic mean of the shares of words that two texts have in common.

    >>> f1("It was on 7 May", "7 May 2023")
    0.5
    """
    said, wanted = Counter(words_of(answer)), Counter(words_of(published))
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def f1_of_parts(answer: str, published: str) -> float:
    """Return the mean over the published answer's parts, between commas, of the best F1 of any part of the answer.

    >>> f1_of_parts("skiing, cooking", "Cooking, hiking")
    0.5
    """
    parts = published.split(",")
    return sum(max(f1(said, part) for said in answer.split(",")) for part in parts) / len(parts)


def sentences_of(text: str) -> list[str]:
    r"""Return the sentences of a text, or its lines where they have no end, in lower case.

    >>> sentences_of("It is red. Is it?\n- no")
    ['it is red.', 'is it?', '- no']
    """
    return [part.strip().lower() for part in _SENTENCE_ENDS.split(text) if part.strip()]


def repeats(text: str) -> bool:
    """Tell whether a text has a sentence, or a line, twice.

    >>> repeats("It is red. Is it? It is Red."), repeats("It is red. It was red.")
    (True, False)
    """
    sentences = sentences_of(text)
    return len(set(sentences)) < len(sentences)
