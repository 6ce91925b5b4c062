"""The way from logits to tokens and from tokens to text: sampling, incremental decoding, stop strings. Knows no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

Decode = Callable[[Sequence[int]], str]
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class DecodingOptions(TypedDict, total=False):
    """The fields of a `Decoding`, as keywords of a call."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
    stop: str | Iterable[str] | None
    logits_processors: Iterable[Any]
    abstain_from: float | None
    logprobs: int | None


@dataclass(frozen=True, kw_only=True)
class Decoding:
    r"""The choice of an answer's tokens from logits, and its end.

    Raises:
        InputError: a value is out of range; the message names it.

    >>> Decoding(max_new_tokens=64, stop="\\n").stop
    ('\\n',)
    """

    max_new_tokens: int = 256  # the longest answer, its end token included
    min_new_tokens: int = 0  # the shortest answer: no end token before
    temperature: float = 0.0  # the randomness of sampling; 0 is greedy
    top_p: float = 1.0  # keep the smallest set of tokens with this mass
    top_k: int = 0  # keep so many tokens; 0: all
    repetition_penalty: float = 1.0  # above 1 makes tokens of the recent turns, the question and the answer less likely
    seed: int | None = None  # makes sampling repeatable; None: torch's global generator
    stop: str | Iterable[str] | None = ()  # strings that end the answer and are not part of it; kept as a tuple
    logits_processors: Iterable[Any] = ()  # transformers' `LogitsProcessor`s, applied before all others; kept as a tuple
    abstain_from: float | None = None  # say "I don't know" from this probability of abstaining on; None: the model's own
    logprobs: int | None = None  # note the log-probability of each token, and of so many likeliest ones; None: of none

    def __post_init__(self) -> None:
        _check(self.max_new_tokens >= 1, f"max_new_tokens={self.max_new_tokens} must be at least 1.")
        _check(
            self.temperature == 0 or self.temperature > 1e-6,
            f"temperature={self.temperature} must be 0 (greedy) or above 1e-6.",
        )
        _check(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1.")
        _check(self.top_k >= 0, f"top_k={self.top_k} must be 0 (all tokens) or more.")
        _check(
            self.abstain_from is None or 0 <= self.abstain_from <= 1,
            f"abstain_from={self.abstain_from} must be a probability, from 0 to 1.",
        )
        _check(self.logprobs is None or self.logprobs >= 0, f"logprobs={self.logprobs} must be 0 or more.")
        _check(self.repetition_penalty > 0, f"repetition_penalty={self.repetition_penalty} must be above 0; 1 is none.")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        for text in stops:
            _check(isinstance(text, str) and bool(text), f"stop strings must be non-empty strings, not {text!r}.")
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "logits_processors", tuple(self.logits_processors))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return cast("tuple[str, ...]", self.stop)

    def changed(self, **options: Unpack[DecodingOptions]) -> Decoding:
        """Return the same with some fields changed."""
        return replace(self, **options)

    def also_stopping_at(self, stops: Iterable[str]) -> Decoding:
        """Return the same with further stop strings."""
        return replace(self, stop=(*self.stops, *stops))


class Sampler:
    """The choice of the next token, through transformers' own logits processors; greedy at temperature 0."""

    def __init__(self, decoding: Decoding) -> None:
        from transformers.generation.logits_process import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._greedy = decoding.temperature == 0
        self._seed = decoding.seed
        self._generator: torch.Generator | None = None
        self._processors = LogitsProcessorList(decoding.logits_processors)
        if decoding.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty=decoding.repetition_penalty))
        if not self._greedy:
            if decoding.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(float(decoding.temperature)))
            if decoding.top_k:
                self._processors.append(TopKLogitsWarper(top_k=decoding.top_k))
            if decoding.top_p < 1:
                self._processors.append(TopPLogitsWarper(top_p=decoding.top_p))

    def __call__(self, ids: Tensor, logits: Tensor) -> int:
        """Choose the next token id from `logits` [vocab], given the visible token ids [t] so far."""
        scores = self._processors(ids[None].to(logits.device), logits[None].float())[0]
        if self._greedy:
            return int(scores.argmax())
        if self._generator is None and self._seed is not None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))


class Detokenizer:
    """A decoder of token ids to text, one at a time; a character is given out only when all its bytes are there."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._settled = 0  # start of the context for decoding: spaces depend on the token before
        self._given = 0  # tokens whose text was given out

    def push(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is incomplete."""
        self._ids.append(token)
        before = self._decode(self._ids[self._settled : self._given])
        now = self._decode(self._ids[self._settled :])
        if now.endswith(_INCOMPLETE) or len(now) <= len(before):
            return ""
        self._settled, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """Return the text still held, when no more tokens come: bytes that make no character become U+FFFD."""
        before = self._decode(self._ids[self._settled : self._given])
        return self._decode(self._ids[self._settled :])[len(before) :]


class StopStrings:
    """A filter that holds back text which may be the beginning of a stop string, and cuts at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Append `text`; return the part that is safe to emit: up to a stop string, or up to what may begin one."""
        self._held += text
        hits = [(place, -len(stop), stop) for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if hits:
            place, _, self.found = min(hits)
            return self._release(place)
        return self._release(len(self._held) - self._overlap())

    def flush(self) -> str:
        """Return the text still held, when nothing more will come."""
        return self._release(len(self._held)) if self.found is None else ""

    def _release(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        return given

    def _overlap(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stops):
                return size
        return 0


def align(ids: Sequence[int], text: str, decode: Decode, encode: Callable[[str], list[int]]) -> tuple[list[int], int]:
    """Find token ids for `text`, the beginning of what `ids` decode to: as many of `ids` as fit, the rest encoded anew.

    Args:
        ids: token ids of a longer text.
        text: its beginning.
        decode: token ids to text.
        encode: text to token ids.

    Returns:
        The ids, and how many of them are the first of `ids`.
    """
    for kept in range(len(ids), -1, -1):
        beginning = decode(ids[:kept])
        if text.startswith(beginning):
            return [*ids[:kept], *encode(text[len(beginning) :])], kept
    raise AssertionError("the empty beginning fits every text")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
