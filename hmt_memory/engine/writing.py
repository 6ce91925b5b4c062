"""Whatever chooses the tokens of an answer, one by one, behind a view: the backbone itself, or a `Writer` with its weights.

A writer is given input embeddings, so that memory reaches it as it reaches the backbone. Knows token ids; no text, no stream.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import AnswererError, BackboneError
from .abstaining import OPENINGS, Abstention, abstention
from .chances import noted
from .decoding import Decoding, Sampler
from .modes import eval_mode

if TYPE_CHECKING:
    from .backbone import Backbone
    from .view_cache import Prefill


_PROBES, _ALIKE = 4, 0.3  # prompts that are compared, and the mean difference of log-probabilities that rounding explains
_SERVE = "Serve the folder that `hmt export` writes for this model and adapter."


class Choice(NamedTuple):
    """A token of an answer."""

    token: int
    logprobs: dict[int, float] | None = None  # of it and of the likeliest tokens in its place, where they are asked for


class Writer(Protocol):
    """A model elsewhere that has the backbone's weights, and writes behind input embeddings. Used by several threads."""

    @property
    def width(self) -> int | None:
        """The size of an input embedding; None: not known."""
        ...

    def write(
        self, embeddings: Tensor, decoding: Decoding, *, end_ids: Collection[int], most: int, least: int = 0
    ) -> Generator[Choice]:
        """Write tokens, one by one; whoever closes the generator ends the work on them.

        Args:
            embeddings: [t, d] of what stands before them.
            decoding: how they are chosen. It has no logits processors, and its stop strings are the caller's concern.
            end_ids: tokens that end an answer; one of them is the last that is yielded.
            most: how many tokens, at most.
            least: how many come before an end token, at least.

        Raises:
            AnswererError: it does not answer.
            BudgetError: there is no room for them.
        """
        ...


class Source(Protocol):
    """The tokens of one answer."""

    def begin(self, before: Tensor, behind: Tensor, said: Sequence[int], room: int) -> int:
        """Go on behind another view.

        Args:
            before: [s, d] input embeddings that it begins with, which may be kept.
            behind: [t, d] those that follow.
            said: the answer so far.
            room: how many tokens are chosen behind this view, at most.

        Returns:
            How many positions of it did not have to be read.
        """
        ...

    def choose(self, shown: Tensor, said: Sequence[int]) -> Choice:
        """Choose the next token.

        Args:
            shown: [v] token ids of the stream that the first view shows.
            said: the answer so far.
        """
        ...

    def close(self) -> None:
        """End the work on further tokens."""
        ...


def source_of(
    backbone: Backbone, decoding: Decoding, prefill: Prefill, *, threshold: float, writer: Writer | None = None
) -> Source:
    """Return what chooses the tokens of an answer.

    Args:
        backbone: of the model that answers.
        decoding: how they are chosen.
        prefill: reads views for the backbone.
        threshold: the least probability of abstaining from which on the answer may abstain; 0: it may always.
        writer: writes instead, but for what only the backbone can do: logits processors, and weighing an abstention.
    """
    own = _Own(backbone, decoding, prefill, threshold if decoding.temperature == 0 else 0.0)
    return own if writer is None or decoding.logits_processors else _Elsewhere(own, backbone, decoding, writer)


class _Own:
    """The backbone chooses."""

    def __init__(self, backbone: Backbone, decoding: Decoding, prefill: Prefill, threshold: float) -> None:
        self._backbone, self._decoding, self._prefill, self.threshold = backbone, decoding, prefill, threshold
        self._sampler = Sampler(decoding)
        self._step = backbone.advance if (batching := backbone.batching) is None else batching.advance  # the same to the end
        self._unlikely: Abstention | None = None  # what the answer must not begin with

    def begin(self, before: Tensor, behind: Tensor, said: Sequence[int], room: int) -> int:
        self._hidden, self._cache, known = self._prefill(self._backbone, before, behind)
        self._fresh = True
        if self.threshold and not said:
            logits = self._backbone.head(self._hidden)[0]
            self._unlikely = abstention(self._backbone, logits, self._cache, self.threshold)
        return known

    def choose(self, shown: Tensor, said: Sequence[int]) -> Choice:
        backbone, decoding = self._backbone, self._decoding
        if not self._fresh:
            embedded = backbone.embed(torch.tensor([[said[-1]]], device=backbone.device))
            self._hidden, self._cache = self._step(embedded, self._cache)
        self._fresh = False
        logits = backbone.head(self._hidden)[0]
        logprobs = None if decoding.logprobs is None else logits.float().log_softmax(dim=-1)
        for forbidden in self._unlikely.forbidden(said) if self._unlikely else ():
            logits[forbidden] = float("-inf")
        if len(said) < decoding.min_new_tokens:
            logits[list(backbone.end_ids)] = float("-inf")
        token = self._sampler(torch.cat([shown, torch.tensor(said, dtype=torch.long)]), logits)
        return Choice(token, None if logprobs is None else noted(logprobs, token, decoding.logprobs or 0))

    def close(self) -> None:
        return


class _Elsewhere:
    """A writer chooses, unless the answer begins like an abstention that is to be weighed: then the backbone does."""

    def __init__(self, own: _Own, backbone: Backbone, decoding: Decoding, writer: Writer) -> None:
        self._own, self._backbone, self._decoding, self._writer = own, backbone, decoding, writer
        self._own_now = False
        self._openings = {backbone.encode(text, literal=True)[0] for text in OPENINGS} if own.threshold else set()

    def begin(self, before: Tensor, behind: Tensor, said: Sequence[int], room: int) -> int:
        if self._own_now:
            return self._own.begin(before, behind, said, room)
        self._view, decoding = (before, behind, said, room), self._decoding
        most = min(room, decoding.max_new_tokens - len(said))
        seed = None if decoding.seed is None else decoding.seed + len(said)
        self._tokens = self._writer.write(
            torch.cat([before, behind]),
            replace(decoding, seed=seed),
            end_ids=self._backbone.end_ids,
            most=most,
            least=min(most, max(0, decoding.min_new_tokens - len(said))),
        )
        return 0

    def choose(self, shown: Tensor, said: Sequence[int]) -> Choice:
        if self._own_now:
            return self._own.choose(shown, said)
        choice = next(self._tokens, None)
        if choice is None:
            raise AnswererError("the answer ended before its end. Ask again; if it happens again, look at the server's log.")
        if not said and choice.token in self._openings:
            self._own_now = True
            self._tokens.close()
            self._own.begin(*self._view)
            return self._own.choose(shown, said)
        return choice

    def close(self) -> None:
        self._tokens.close()


@torch.no_grad()
def compare(backbone: Backbone, writer: Writer) -> None:
    """Compare what a writer makes of some tokens with what the backbone makes of them.

    Raises:
        BackboneError: they are not the same weights.
        AnswererError: the writer does not answer.
    """
    if writer.width not in (None, backbone.hidden_size):
        raise BackboneError(f"{writer} is {writer.width} wide, {backbone.name} is {backbone.hidden_size}. {_SERVE}")
    size, once, errors = backbone.vocab_size, Decoding(max_new_tokens=1, logprobs=0), []
    with eval_mode(backbone):
        for number in range(1, _PROBES + 1):
            ids = torch.arange(number, number + 12, device=backbone.device) * 7919 % size
            embedded = backbone.embed(ids)
            own = backbone.head(backbone.body(embedded[None])[:, -1])[0].float().log_softmax(dim=-1)
            (choice,) = writer.write(embedded, once, end_ids=(), most=1)
            if choice.logprobs is None or not 0 <= choice.token < size:
                raise BackboneError(f"{writer} writes token {choice.token} without its probability. {_SERVE}")
            likeliest = own.max() - own[choice.token]
            errors.append(abs(choice.logprobs[choice.token] - float(own[choice.token])) + float(likeliest))
    if not sum(errors) / _PROBES <= _ALIKE:
        raise BackboneError(f"{writer} computes something else than {backbone.name} with its adapter. {_SERVE}")
