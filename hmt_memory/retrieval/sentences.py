r"""Sentences of a text, verbatim and whole. Knows punctuation, and a few abbreviations.

A sentence ends at a mark that is followed by space, at a line's end, or, in scripts that write no spaces, at their own marks.
What is longer than `LONGEST` words is cut between words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST = 60  # words of a sentence; and of a message that is noted whole
_LONGEST_WORD = 400  # characters; longer ones, such as encoded files, are cut
_ABBREVIATIONS = ("Mr", "Ms", "Mrs", "Dr", "St", "Prof", "No", "vs", "etc", "e.g", "i.e", "a.m", "p.m")
_NO_END = r"(?<!\b[A-Z]\.)" + "".join(rf"(?<!\b{re.escape(word)}\.)" for word in _ABBREVIATIONS)
_CLOSING = "\"')\\]\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
_UNSPACED = "\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH EXCLAMATION MARK}\N{FULLWIDTH QUESTION MARK}"
_END = re.compile(rf"{_NO_END}(?:(?<=[.!?…])|(?<=[.!?…][{_CLOSING}]))\s+|(?<=[{_UNSPACED}])|\s*\n\s*")


def sentences(text: str) -> list[str]:
    r"""Split a text into its sentences, without the space between them.

    >>> sentences('Dr. No said "Stop." Then he left at 3.30 p.m. with me.')
    ['Dr. No said "Stop."', 'Then he left at 3.30 p.m. with me.']
    >>> sentences("It rains. Does it? Yes!\n- the list")
    ['It rains.', 'Does it?', 'Yes!', '- the list']
    """
    return [part for piece in _END.split(text) if piece.strip() for part in _cut(piece.strip())]


def whole(text: str, *, from_start: bool, to_end: bool) -> str:
    """Remove the sentences that a cut-out part of a text begins and ends within.

    Args:
        text: the part.
        from_start: whether it begins where the whole text does.
        to_end: whether it ends where the whole text does.
    """
    ends = [match.end() for match in _END.finditer(text)]
    words = [match.end() for match in re.finditer(r"\s+", text)]
    start = 0 if from_start else next(iter(ends or words), 0)
    stop = (
        len(text)
        if to_end
        else next(reversed([end for end in ends if end > start] or [end for end in words if end > start]), len(text))
    )
    return text[start:stop].strip()


def around(text: str, start: int, stop: int) -> tuple[int, int]:
    """Return where the whole sentences begin and end that characters [start, stop) of a text are part of.

    Args:
        text: the text.
        start: the first character.
        stop: one past the last character.

    >>> text = "One. Two three. Four."
    >>> text[slice(*around(text, 7, 9))]
    'Two three. '
    """
    ends = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    first = max(end for end in ends if end <= start)
    last = min(end for end in ends if end >= stop)
    return first, last


def _cut(sentence: str) -> Iterator[str]:
    """Yield a sentence, cut between words if it is too long."""
    words = [match.span() for match in re.finditer(r"\S+", sentence)]
    if len(words) <= LONGEST and len(sentence) <= _LONGEST_WORD * 2:
        yield sentence
        return
    start = 0
    while start < len(words):
        stop = start + 1
        while stop < len(words) and stop - start < LONGEST and words[stop][1] - words[start][0] <= 2 * _LONGEST_WORD:
            stop += 1
        piece = sentence[words[start][0] : words[stop - 1][1]]
        yield from (piece[place : place + _LONGEST_WORD * 2] for place in range(0, len(piece), _LONGEST_WORD * 2))
        start = stop
