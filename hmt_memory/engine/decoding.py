"""From logits to tokens and from tokens to text: sampling, incremental decoding, stop strings. Knows no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

Decode = Callable[[Sequence[int]], str]
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Sampler:
    """Chooses the next token from logits through transformers' own logits processors; greedy at temperature 0.

    Args:
        temperature: 0 is greedy. top_p: keep the smallest set of tokens with this mass. top_k: keep so many; 0: all.
        repetition_penalty: above 1 makes tokens of the prompt's visible part and the answer less likely.
        seed: makes sampling repeatable; None: torch's global generator.
        processors: further `LogitsProcessor`s (constrained decoding), applied before all others.

    Raises:
        InputError: a value is out of range.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        processors: Iterable[Any] = (),
    ) -> None:
        from transformers.generation.logits_process import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        _check(temperature == 0 or temperature > 1e-6, f"temperature={temperature} must be 0 (greedy) or above 1e-6.")
        _check(0 < top_p <= 1, f"top_p={top_p} must be above 0 and at most 1.")
        _check(top_k >= 0, f"top_k={top_k} must be 0 (all tokens) or more.")
        _check(repetition_penalty > 0, f"repetition_penalty={repetition_penalty} must be above 0; 1 is none.")
        self._greedy = temperature == 0
        self._seed = seed
        self._generator: torch.Generator | None = None
        self._processors = LogitsProcessorList(processors)
        if repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty=repetition_penalty))
        if not self._greedy:
            if temperature != 1:
                self._processors.append(TemperatureLogitsWarper(float(temperature)))
            if top_k:
                self._processors.append(TopKLogitsWarper(top_k=top_k))
            if top_p < 1:
                self._processors.append(TopPLogitsWarper(top_p=top_p))

    def __call__(self, ids: Tensor, logits: Tensor) -> int:
        """The next token id from `logits` [vocab], given the visible token ids [t] so far."""
        scores = self._processors(ids[None].to(logits.device), logits[None].float())[0]
        if self._greedy:
            return int(scores.argmax())
        if self._generator is None and self._seed is not None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))


class Detokenizer:
    """Token ids to text, one at a time; a character is given out only when all its bytes are there."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._settled = 0  # where the context for decoding begins: spaces depend on the token before
        self._given = 0  # tokens whose text was given out

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._ids.append(token)
        before = self._decode(self._ids[self._settled : self._given])
        now = self._decode(self._ids[self._settled :])
        if now.endswith(_INCOMPLETE) or len(now) <= len(before):
            return ""
        self._settled, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """The text still held, when the tokens are known to be all: bytes that make no character become U+FFFD."""
        before = self._decode(self._ids[self._settled : self._given])
        return self._decode(self._ids[self._settled :])[len(before) :]


class StopStrings:
    """Holds back text that may be the beginning of a stop string, and cuts at the first one.

    Raises:
        InputError: a stop string is empty or not a string.
    """

    def __init__(self, stop: str | Iterable[str] | None) -> None:
        self.stops = [stop] if isinstance(stop, str) else list(stop or [])
        for one in self.stops:
            _check(isinstance(one, str) and bool(one), f"stop strings must be non-empty strings, not {one!r}.")
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """What of `text` and the text held so far can be given out; after a stop string, everything before it."""
        self._held += text
        hits = [(at, -len(stop), stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if hits:
            at, _, self.found = min(hits)
            return self._release(at)
        return self._release(len(self._held) - self._overlap())

    def flush(self) -> str:
        """What is still held, when nothing more will come."""
        return self._release(len(self._held)) if self.found is None else ""

    def _release(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _overlap(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stops):
                return size
        return 0


def align(ids: Sequence[int], text: str, decode: Decode, encode: Callable[[str], list[int]]) -> tuple[list[int], int]:
    """Token ids for `text`, the beginning of what `ids` decode to: as many of `ids` as fit, the rest encoded anew.

    Returns:
        the ids, and how many of them are the first of `ids`.
    """
    for kept in range(len(ids), -1, -1):
        beginning = decode(ids[:kept])
        if text.startswith(beginning):
            return [*ids[:kept], *encode(text[len(beginning) :])], kept
    raise AssertionError("the empty beginning fits every text")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
