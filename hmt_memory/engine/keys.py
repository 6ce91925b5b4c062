"""Keys by meaning: unit vectors of stretches of a text and of questions, made from what reading computes anyway (extension).

A segment's tokens are cut into stretches (`stretches.py`). What reading has of one, its input embeddings and hidden states, is
averaged by learned weights into a vector; a question is compared with all of them by inner product. Knows tensors; no text, no
index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LONGEST_QUESTION = 256  # tokens, from its end
_INNER = 2  # width inside, as a multiple of a key's
_LARGEST_LOGIT = 8.0  # of a token's weight


class StretchKeys(nn.Module):
    """The parameters of keys by meaning; all in fp32. Before training every key is zero, which favours nothing.

    Args:
        width: d of the backbone.
        dim: width of a key.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        inner = _INNER * dim
        self.unit = nn.Parameter(torch.ones(()))  # what input embeddings are divided by
        self.embedding = nn.Linear(width, inner)
        self.hidden = nn.Linear(width, inner, bias=False)
        self.asked = nn.Linear(width, inner, bias=False)  # the same for the hidden states of a question
        self.attention = nn.Linear(inner, 1)
        self.key = nn.Linear(inner, dim, bias=False)
        self.question = nn.Linear(inner, dim, bias=False)  # what a question's key has besides
        for layer in (self.embedding, self.hidden, self.asked, self.attention, self.key, self.question):
            nn.init.zeros_(layer.weight)

    def of_stretches(self, embeddings: Tensor, hidden: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Return the keys [n, dim] of n stretches of a segment.

        Args:
            embeddings: [t, d] input embeddings of the segment.
            hidden: [t, d] its hidden states.
            spans: [start, stop) of each stretch.
        """
        inner = torch.nn.functional.gelu(self.embedding(self._scaled(embeddings)) + self.hidden(hidden.float()))
        vectors, weights = self.key(inner), self.weights(inner)
        parts = [(vectors[start:stop] * weights[start:stop]).sum(dim=0) for start, stop in spans]
        return _unit(torch.stack(parts)) if parts else vectors[:0]

    def of_question(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Return the key [dim] of a question.

        Args:
            embeddings: [t, d] its input embeddings.
            hidden: [t, d] its hidden states, read behind T alone.
        """
        inner = torch.nn.functional.gelu(self.embedding(self._scaled(embeddings)) + self.asked(hidden.float()))
        return _unit(((self.key(inner) + self.question(inner)) * self.weights(inner)).sum(dim=0))

    def _scaled(self, embeddings: Tensor) -> Tensor:
        return embeddings.float() / self.unit

    def weights(self, inner: Tensor) -> Tensor:
        """Return the weights [t, 1] of tokens."""
        logits: Tensor = self.attention(inner)
        return logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).exp()


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
