"""When an answer says that it does not know: not as soon as that is the likeliest beginning, but when it is likely (extension).

A model that has learned to abstain has few ways to say so and many ways to answer. Greedy decoding takes the likeliest token,
so an abstention whose ways add up to a third is said although an answer is twice as likely. Here the ways are added up first.
Below a fitted threshold, none of them is taken. Knows tokens and a backbone; no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import BackboneError
from .branches import behind

if TYPE_CHECKING:
    from .backbone import Backbone

OPENINGS = ("I don't know", "You haven't", "You have not")  # that of `train.exercises`, and those of adapters before
_MOSTLY = 0.5  # a token after which an opening is likelier than not is not taken


class Abstention:
    """The tokens that an answer must not begin with, because abstaining is too unlikely.

    Args:
        openings: token ids of each way to begin an abstention.
        chances: of each opening, the probability of every token behind the ones before.
    """

    def __init__(self, openings: Sequence[Sequence[int]], chances: Sequence[Sequence[float]]) -> None:
        self._openings, self._chances = openings, chances

    @property
    def probability(self) -> float:
        """The probability that the answer begins with one of the openings."""
        return sum(_product(chances) for chances in self._chances)

    def forbidden(self, begun: Sequence[int]) -> set[int]:
        """Return the tokens that must not follow an answer's first tokens: those that would most likely go on to abstain."""
        shares: dict[int, float] = {}
        for opening, chances in zip(self._openings, self._chances, strict=True):
            if len(begun) < len(opening) and list(opening[: len(begun)]) == list(begun):
                token = opening[len(begun)]
                shares[token] = shares.get(token, 0.0) + _product(chances[len(begun) + 1 :])
        return {token for token, share in shares.items() if share > _MOSTLY}


def abstention(backbone: Backbone, logits: Tensor, cache: Any, threshold: float) -> Abstention | None:
    """Return what an answer must not begin with; None if it may begin as decoding has it.

    Args:
        backbone: the model that answers.
        logits: [vocab] of the answer's first token.
        cache: behind which the answer begins; it is copied.
        threshold: the least probability of abstaining from which on the answer may abstain.
    """
    openings = [backbone.encode(text, literal=True) for text in OPENINGS]
    first = logits.float().softmax(dim=-1)
    if int(logits.argmax()) not in {opening[0] for opening in openings}:
        return None
    found = Abstention(openings, _chances(backbone, openings, first, cache))
    return found if found.probability < threshold else None


@torch.no_grad()
def _chances(backbone: Backbone, openings: Sequence[Sequence[int]], first: Tensor, cache: Any) -> list[list[float]]:
    """Return the probabilities of each opening's tokens, read behind copies of the cache."""
    chances = [[float(first[opening[0]])] for opening in openings]
    rows = [torch.tensor(list(opening[:-1]), device=backbone.device) for opening in openings]
    for own, opening, states in zip(chances, openings, _behind(backbone, rows, cache), strict=True):
        following = backbone.head(states[: len(opening) - 1]).float().softmax(dim=-1)
        own += [float(following[place, token]) for place, token in enumerate(opening[1:])]
    return chances


def _behind(backbone: Backbone, rows: Sequence[Tensor], cache: Any) -> Sequence[Tensor]:
    """Return the hidden states of several continuations, which do not see each other."""
    try:
        return behind(backbone, copy.deepcopy(cache), [backbone.embed(row) for row in rows])
    except BackboneError:  # caches of some families hold one row, and go on by one token at a time
        return [_one_by_one(backbone, row, copy.deepcopy(cache)) for row in rows]


def _one_by_one(backbone: Backbone, row: Tensor, cache: Any) -> Tensor:
    """Return the hidden states [t, d] of token ids [t]."""
    states = []
    for token in row:
        hidden, cache = backbone.advance(backbone.embed(token[None, None]), cache)
        states.append(hidden[0])
    return torch.stack(states)


def _product(chances: Sequence[float]) -> float:
    product = 1.0
    for chance in chances:
        product *= chance
    return product
