"""Excerpts of a stream of tokens as text: whole sentences in and around a span. Knows tokens only through functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .sentences import around, sentences, whole

Decode = Callable[[Sequence[int]], str]
_BROKEN = "\ufffd"  # half a character, cut by a segment's edge, decodes to this
_BESIDE = 96  # tokens before and after a segment, within which its sentences begin and end


def sentences_in(
    ids: Callable[[int, int], Sequence[int]], span: tuple[int, int], limits: tuple[int, int], decode: Decode
) -> tuple[list[str], tuple[int, int]]:
    """Return the whole sentences of a text that stand in and around a segment's span, and the tokens that hold them."""
    low, high = max(limits[0], span[0] - _BESIDE), min(limits[1], span[1] + _BESIDE)
    if low >= high:
        return [], span
    text = trimmed(decode(ids(low, high)), (low, high), limits)
    return sentences(whole(text, from_start=low == limits[0], to_end=high == limits[1])), (low, high)


def whole_sentences(
    ids: Callable[[int, int], Sequence[int]], span: tuple[int, int], limits: tuple[int, int], decode: Decode
) -> tuple[str, tuple[int, int]]:
    """Return the sentences, each whole, that a segment's span has a part of, and the tokens that hold them."""
    low, start = max(limits[0], span[0] - _BESIDE), max(limits[0], span[0])
    stop, high = min(limits[1], span[1]), min(limits[1], span[1] + _BESIDE)
    if start >= stop:
        return "", span
    before, within, after = (decode(ids(*part)) for part in ((low, start), (start, stop), (stop, high)))
    before, after = trimmed(before, (low, start), limits), trimmed(after, (stop, high), limits)
    if low > limits[0]:
        before = before[before.find(" ") + 1 :]
    if high < limits[1] and " " in after:
        after = after[: after.rfind(" ")]
    return around(before + within + after, len(before), len(before) + len(within)), (low, high)


def trimmed(text: str, span: tuple[int, int], whole: tuple[int, int]) -> str:
    """Remove the halves of characters that a span's edges cut out of the whole."""
    text = text.lstrip(_BROKEN) if span[0] > whole[0] else text
    return text.rstrip(_BROKEN) if span[1] < whole[1] else text
