"""Excerpts of a stream of tokens as text: whole sentences in and around a span. Knows tokens only through functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

from .sentences import around, sentences, whole

Decode = Callable[[Sequence[int]], str]
_BROKEN = "\ufffd"  # half a character, cut by a segment's edge, decodes to this
_BESIDE = 96  # tokens before and after a segment, within which its sentences begin and end


def sentences_in(
    ids: Callable[[int, int], Sequence[int]], span: tuple[int, int], limits: tuple[int, int], decode: Decode
) -> tuple[list[str], tuple[int, int]]:
    """Return the whole sentences of a text that stand in and around a segment's span, and the tokens that hold them.

    Args:
        ids: gives the tokens [start, stop) of the text.
        span: tokens [start, stop) of the segment.
        limits: tokens [start, stop) of the text.
        decode: token ids to text.
    """
    low, high = max(limits[0], span[0] - _BESIDE), min(limits[1], span[1] + _BESIDE)
    if low >= high:
        return [], span
    text = trimmed(decode(ids(low, high)), (low, high), limits)
    return sentences(whole(text, from_start=low == limits[0], to_end=high == limits[1])), (low, high)


def whole_sentences(
    ids: Callable[[int, int], Sequence[int]], span: tuple[int, int], limits: tuple[int, int], decode: Decode
) -> tuple[str, tuple[int, int]]:
    """Return the sentences, each whole, that a segment's span has a part of, and the tokens that hold them.

    Where no sentence begins or ends near, the text is cut between words.

    Args:
        ids: gives the tokens [start, stop) of the text.
        span: tokens [start, stop) of the segment.
        limits: tokens [start, stop) of the text.
        decode: token ids to text.
    """
    low, start = max(limits[0], span[0] - _BESIDE), max(limits[0], span[0])
    stop, high = min(limits[1], span[1]), min(limits[1], span[1] + _BESIDE)
    if start >= stop:
        return "", span
    tokens = ids(low, high)
    said = decode(tokens)
    begin, end = (_said(tokens, decode, place - low) for place in (start, stop))
    end += decode(tokens[: stop - low]).endswith(_BROKEN)
    left, right = 0, len(said)
    if low > limits[0]:
        left = said.find(" ", 0, begin) + 1 or len(said) - len(said.lstrip(_BROKEN))
    if high < limits[1]:
        space = said.rfind(" ", end)
        right = space if space >= 0 else len(said.rstrip(_BROKEN))
    first, last = (left + place for place in around(said[left:right], max(0, begin - left), end - left))
    text = said[first:last].strip()
    place = said.find(text, first)
    since = bisect_left(range(len(tokens)), place, key=partial(_said, tokens, decode))
    until = bisect_left(range(len(tokens)), place + len(text), lo=since, key=partial(_said, tokens, decode))
    since -= len(decode(tokens[:since])) > place  # one token ends the text before and begins this one
    return text, (low + since, low + until)


def _said(tokens: Sequence[int], decode: Decode, count: int) -> int:
    """Return how many whole characters the first tokens say."""
    return len(decode(tokens[:count]).rstrip(_BROKEN))


def trimmed(text: str, span: tuple[int, int], whole: tuple[int, int]) -> str:
    """Remove the halves of characters that a span's edges cut out of the whole.

    Args:
        text: what the span's tokens say.
        span: tokens [start, stop) of the text.
        whole: tokens [start, stop) of what it was cut from.
    """
    text = text.lstrip(_BROKEN) if span[0] > whole[0] else text
    return text.rstrip(_BROKEN) if span[1] < whole[1] else text
