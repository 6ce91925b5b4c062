"""Search by words, without a model: the messages and paragraphs that share a query's words. Knows texts; no tokens.

`lexical.scores` says what a match is worth, with messages or paragraphs in the place of segments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from ..errors import InputError
from ..retrieval import lexical
from ..retrieval.citations import Message
from ..store.index.words import Postings
from .stored_corpus import Document

_BETWEEN_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class FoundText:
    """A message, or a paragraph of a document, that shares words with a query."""

    source: str  # name of the session, or "corpus/document"
    id: int  # the message's, or the document's
    text: str  # verbatim
    score: float  # how well its words match, among all texts searched
    created_at: datetime  # when it was said, or the document added; UTC
    role: str = ""  # the role of the speaker


def messages_as_found(name: str, messages: Sequence[Message]) -> list[FoundText]:
    """Convert the messages of a session, in order."""
    return [FoundText(name, message.id, message.content, 0.0, message.created_at, message.role) for message in messages]


def paragraphs_as_found(name: str, document: Document) -> list[FoundText]:
    """Convert the paragraphs of a corpus's document, in order."""
    paragraphs = (part.strip() for part in _BETWEEN_PARAGRAPHS.split(document.text))
    source = f"{name}/{document.name}"
    return [FoundText(source, document.id, text, 0.0, document.created_at) for text in paragraphs if text]


def best(query: str, groups: Sequence[Sequence[FoundText]], top_k: int) -> list[FoundText]:
    """Return the texts that share most with a query, the best first.

    Args:
        query: its words count, each once.
        groups: texts that follow one another, such as the messages of one session: neighbours lend each other some weight.
        top_k: how many, at most.

    Raises:
        InputError: there is no word in the query, or `top_k` is below 1.
    """
    wanted = lexical.distinct_terms(query)
    if not wanted or top_k < 1:
        raise InputError("there is no word to search for." if not wanted else f"top_k={top_k} must be at least 1.")
    postings = [_postings(group, wanted) for group in groups]
    scored = [
        (float(values[number]), group[number])
        for values, group, holding in zip(lexical.scores(postings), groups, postings, strict=True)
        for number in sorted({int(position) for positions, _ in holding.found for position in positions})
    ]
    scored.sort(key=lambda pair: -pair[0])
    return [FoundText(text.source, text.id, text.text, score, text.created_at, text.role) for score, text in scored[:top_k]]


def _postings(texts: Sequence[FoundText], wanted: Sequence[str]) -> Postings:
    counted = [Counter(lexical.terms(text.text)) for text in texts]
    lengths = np.array([sum(count.values()) for count in counted], np.int64)
    places = []
    for word in wanted:
        holding = [(number, count[word]) for number, count in enumerate(counted) if word in count]
        places.append(
            (np.array([number for number, _ in holding], np.int64), np.array([often for _, often in holding], np.int64))
        )
    return Postings(lengths, places, np.zeros(min(1, len(lengths)), np.int64))


def excerpt(text: str, query: str, characters: int) -> str:
    """Cut a part out of a text, on one line, from shortly before the first word that it shares with a query.

    Args:
        text: the text.
        query: its words are looked for.
        characters: the length of the part.
    """
    wanted = set(lexical.terms(query))
    line = " ".join(text.split())
    hits = (match.start() for match in re.finditer(r"\w+", line) if wanted & set(lexical.terms(match.group())))
    start = max(0, min(next(hits, 0) - characters // 4, len(line) - characters))
    if start:
        start = line.find(" ", start) + 1 or start
    part = line[start : start + characters]
    return "…" * bool(start) + part + "…" * (start + characters < len(line))
