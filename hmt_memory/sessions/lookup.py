"""Search by words, without a model: which messages and paragraphs share the words of a query. Knows texts; no tokens.

What a match is worth is `words.scores`, with messages or paragraphs in the place of segments.
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
from ..retrieval.sources import Message
from ..store.index.words import Postings
from .stored_corpus import Document

_BETWEEN_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class FoundText:
    """A message, or a paragraph of a document, that shares words with a query."""

    source: str  # name of the session, or "corpus/document"
    id: int  # of the message, or of the document
    text: str  # verbatim
    score: float  # what its words are worth, beside all that was searched
    created_at: datetime  # when it was said, or the document added; UTC
    role: str = ""  # who said it


def messages_as_found(name: str, messages: Sequence[Message]) -> list[FoundText]:
    """The messages of a session, in order."""
    return [FoundText(name, one.id, one.content, 0.0, one.created_at, one.role) for one in messages]


def paragraphs_as_found(name: str, document: Document) -> list[FoundText]:
    """The paragraphs of a corpus's document, in order."""
    paragraphs = (part.strip() for part in _BETWEEN_PARAGRAPHS.split(document.text))
    source = f"{name}/{document.name}"
    return [FoundText(source, document.id, text, 0.0, document.created_at) for text in paragraphs if text]


def best(query: str, groups: Sequence[Sequence[FoundText]], top_k: int) -> list[FoundText]:
    """The texts that share most with a query, the best first.

    Args:
        query: its words count, each once.
        groups: texts that follow one another, such as the messages of one session: neighbours lend each other some weight.
        top_k: how many.

    Raises:
        InputError: there is no word in the query, or `top_k` is below 1.
    """
    wanted = lexical.distinct_terms(query)
    if not wanted or top_k < 1:
        raise InputError("there is no word to search for." if not wanted else f"top_k={top_k} must be at least 1.")
    postings = [_postings(group, wanted) for group in groups]
    scored = [
        (float(values[at]), group[at])
        for values, group, holding in zip(lexical.scores(postings), groups, postings, strict=True)
        for at in sorted({int(position) for positions, _ in holding.found for position in positions})
    ]
    scored.sort(key=lambda one: -one[0])
    return [FoundText(one.source, one.id, one.text, score, one.created_at, one.role) for score, one in scored[:top_k]]


def _postings(texts: Sequence[FoundText], wanted: Sequence[str]) -> Postings:
    counted = [Counter(lexical.terms(one.text)) for one in texts]
    lengths = np.array([sum(count.values()) for count in counted], np.int64)
    found = []
    for word in wanted:
        holding = [(at, count[word]) for at, count in enumerate(counted) if word in count]
        found.append((np.array([at for at, _ in holding], np.int64), np.array([often for _, often in holding], np.int64)))
    return Postings(lengths, found, np.zeros(min(1, len(lengths)), np.int64))


def excerpt(text: str, query: str, characters: int) -> str:
    """So many characters of a text, on one line, from shortly before the first word that it shares with a query."""
    wanted = set(lexical.terms(query))
    line = " ".join(text.split())
    hits = (match.start() for match in re.finditer(r"\w+", line) if wanted & set(lexical.terms(match.group())))
    start = max(0, min(next(hits, 0) - characters // 4, len(line) - characters))
    if start:
        start = line.find(" ", start) + 1 or start
    part = line[start : start + characters]
    return "…" * bool(start) + part + "…" * (start + characters < len(line))
