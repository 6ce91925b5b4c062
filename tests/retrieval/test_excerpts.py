"""Excerpts: whole sentences, and just the tokens that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hmt_memory.retrieval.excerpts import whole_sentences

WORDS = [f"Sentence {number} says {'so ' * (number % 5)}much. " for number in range(60)]
LETTERS = [bytes([byte]) for byte in "これは文です。Ça va? Oui, très bien. それも文です。".encode() * 12]
PIECES = [piece.encode() for word in WORDS for piece in (word[:4], word[4:11], word[11:])]
ODD = [b"".join(LETTERS[at : at + 5]) for at in range(0, len(LETTERS), 5)]


@pytest.mark.parametrize("pieces", [PIECES, LETTERS, ODD], ids=["parts of words", "bytes", "five bytes"])
def test_the_tokens_hold_the_sentences_and_no_more(pieces: list[bytes]) -> None:
    """Whatever is told of a passage by its tokens, such as its key by meaning, is told of the text."""

    def ids(low: int, high: int) -> Sequence[int]:
        return list(range(low, high))

    def decode(tokens: Sequence[int]) -> str:
        return b"".join(pieces[token] for token in tokens).decode(errors="replace")

    seen = 0
    for start in range(0, len(pieces), 16):
        text, (low, high) = whole_sentences(ids, (start, start + 16), (0, len(pieces)), decode)
        if not text:
            continue
        seen += 1
        assert low <= start < high
        assert text in decode(range(low, high))
        assert text not in decode(range(low, high - 1)) and text not in decode(range(low + 1, high))
    assert seen > 8
