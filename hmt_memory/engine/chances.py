"""The log-probabilities of an answer's tokens, as the model has them: before temperature, penalties and a form.

Knows a backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from .backbone import Backbone


class Chance(NamedTuple):
    """A token and its log-probability."""

    text: str  # U+FFFD where it holds a part of a character only
    logprob: float


class TokenChance(NamedTuple):
    """A token of an answer, and those that were likeliest in its place."""

    chosen: Chance
    likeliest: list[Chance]


def noted(logprobs: Tensor, token: int, others: int) -> dict[int, float]:
    """Return the log-probabilities of a token and of the likeliest ones.

    Args:
        logprobs: [vocab] of its place.
        token: that was chosen.
        others: how many of the likeliest are noted, too.
    """
    best = logprobs.topk(min(others, len(logprobs)))
    return dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)) | {token: float(logprobs[token])}


def chance(backbone: Backbone, logprobs: Mapping[int, float], token: int, others: int) -> TokenChance:
    """Tell the log-probability of a token in text.

    Args:
        backbone: knows its text.
        logprobs: of it, and at least of so many of the likeliest tokens in its place.
        token: that was chosen.
        others: how many of the likeliest are told, too.
    """
    best = sorted(logprobs.items(), key=lambda pair: -pair[1])[:others]
    before = backbone.encode("a", literal=True) if backbone.tokenizer is not None else []

    def of(number: int, logprob: float) -> Chance:
        # Behind another token: some tokenizers drop a space that a text begins with.
        text = backbone.decode([*before, number])[len(backbone.decode(before)) :] if before else ""
        return Chance(text, logprob)

    return TokenChance(of(token, logprobs[token]), [of(*pair) for pair in best])
