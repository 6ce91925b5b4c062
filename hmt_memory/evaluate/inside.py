"""Evidence inside what was recalled: which characters of which turns the first tokens, and the first passages, hold.

Knows passages by their text and by the turns it is cut from: whole messages, sentences of one, or segments over several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..engine.text import TextCodec
    from ..retrieval.ranking import RecalledSegment

Span = tuple[int, int]


class Piece(NamedTuple):
    """A part of a turn that stands in a passage."""

    turn: int
    start: int  # [start, stop) in the turn's content
    stop: int
    at: int  # where it begins in the passage's text


class Passage(NamedTuple):
    """A text, and the parts of turns in it."""

    text: str
    pieces: tuple[Piece, ...]


def whole_turn(turn: int, content: str) -> Passage:
    """Return a turn as a passage."""
    return Passage(content, (Piece(turn, 0, len(content), 0),))


def located(recalled: RecalledSegment, turns: Mapping[int, int]) -> Passage:
    """Find the parts of its messages in what was recalled.

    Args:
        recalled: a passage of a session.
        turns: numbers of turns by the ids of their messages.
    """
    text = recalled.text.strip()
    lines, places = "", []
    for message in recalled.messages:
        opening = f"{message.role}: "
        places.append((turns[message.id], len(lines) + len(opening), len(message.content)))
        lines += f"{opening}{message.content}\n"
    # A segment begins with its first message's role, also where it begins inside the message.
    opening = f"{recalled.messages[0].role}: " if recalled.messages else ""
    for skipped in (0, len(opening)) if text.startswith(opening) else (0,):
        found = lines.find(text[skipped:]) if text[skipped:] else -1
        if found >= 0:
            return Passage(text, tuple(_cut(places, found, found + len(text) - skipped, skipped)))
    return Passage(text, tuple(_by_lines(text, recalled, turns)))


def _cut(places: Sequence[tuple[int, int, int]], start: int, stop: int, skipped: int) -> Iterator[Piece]:
    """Yield the parts of contents, each (turn, first, length), that lie in [start, stop)."""
    for turn, first, length in places:
        low, high = max(start, first), min(stop, first + length)
        if low < high:
            yield Piece(turn, low - first, high - first, low - start + skipped)


def _by_lines(text: str, recalled: RecalledSegment, turns: Mapping[int, int]) -> Iterator[Piece]:
    """Yield what of a text that was put together otherwise stands in its messages, line by line."""
    start = 0
    for line in text.split("\n"):
        for message in recalled.messages:
            opening = f"{message.role}: "
            skipped = len(opening) if line.startswith(opening) else 0
            said = line[skipped:].strip()
            found = message.content.find(said) if said else -1
            if found >= 0:
                yield Piece(turns[message.id], found, found + len(said), start + line.index(said, skipped))
                break
        start += len(line) + 1


def shares_inside(
    passages: Sequence[Passage], evidence: Mapping[int, Span], budgets: Sequence[int], codec: TextCodec
) -> list[float]:
    """Return for each budget the share of the evidence's characters inside so many tokens of the passages.

    A character counts once, however often it is recalled. The last passage is cut where the budget ends.

    Args:
        passages: best first.
        evidence: the characters [start, stop) of each turn's content that were said.
        budgets: numbers of tokens.
        codec: counts them, each passage alone.
    """
    shares = []
    tokens: list[list[int]] = []
    for budget in budgets:
        inside = {turn: np.zeros(stop, bool) for turn, (_, stop) in evidence.items()}
        left = budget
        for number, passage in enumerate(passages):
            if left <= 0:
                break
            if number == len(tokens):
                tokens.append(codec.encode(passage.text, literal=True))
            shown = _beginning(passage.text, tokens[number], left, codec)
            left -= len(tokens[number])
            for piece in passage.pieces:
                if piece.turn in inside:
                    inside[piece.turn][piece.start : max(piece.start, min(piece.stop, piece.start + shown - piece.at))] = True
        held = sum(int(inside[turn][start:stop].sum()) for turn, (start, stop) in evidence.items())
        shares.append(held / max(1, sum(stop - start for start, stop in evidence.values())))
    return shares


def _beginning(text: str, ids: Sequence[int], count: int, codec: TextCodec) -> int:
    """Return how many characters the first `count` tokens of a text make."""
    return len(text) if len(ids) <= count else len(codec.decode(ids[:count]).rstrip("\ufffd"))


def shares_among(passages: Sequence[Passage], evidence: Sequence[int], counts: Sequence[int]) -> list[float]:
    """Return the share of the turns of evidence that are among the first so many distinct turns of the passages.

    Args:
        passages: what is recalled, best first.
        evidence: numbers of the turns that hold part of the answer.
        counts: how many turns are looked at.
    """
    turns = list(dict.fromkeys(piece.turn for passage in passages for piece in passage.pieces))
    return [len(set(evidence) & set(turns[:count])) / len(set(evidence)) for count in counts]
