"""Confidence intervals by the bootstrap. Knows arrays of numbers, nothing of models.

Tokens of one text are not independent, so whole blocks of them are resampled, the same blocks on both sides of a comparison.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray
_RESAMPLES = 2000
_LEVEL = 0.95


class Interval(NamedTuple):
    """A number and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def mean_interval(values: Array, *, seed: int = 0) -> Interval:
    """Return the mean of independent values [n] with its interval."""
    values = np.asarray(values, dtype=float)
    means = values[_resampled(len(values), seed)].mean(axis=1)
    return _interval(float(values.mean()), means)


def perplexity_interval(losses: Array, *, block: int, seed: int = 0) -> Interval:
    """Return the perplexity of a text with its interval.

    Args:
        losses: [t] losses of its tokens, in nats.
        block: tokens that are resampled together.
        seed: of the resampling.
    """
    sums, counts = _blocks(losses, block)
    chosen = _resampled(len(sums), seed)
    return _interval(float(np.exp(np.mean(losses))), np.exp(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)))


def gain_interval(losses: Array, reference: Array, *, block: int, seed: int = 0) -> Interval:
    """Return by which share the perplexity of `losses` lies below that of `reference`, with its interval.

    Args:
        losses: [t] nats a token.
        reference: [t] nats of the same tokens in the same order.
        block: tokens that are resampled together.
        seed: of the resampling.

    >>> gain = gain_interval(np.zeros(8), np.full(8, np.log(2.0)), block=2)
    >>> [round(value, 3) for value in gain]
    [0.5, 0.5, 0.5]
    """
    sums, counts = _blocks(np.asarray(losses) - np.asarray(reference), block)
    chosen = _resampled(len(sums), seed)
    return _interval(
        1 - float(np.exp(sums.sum() / counts.sum())), 1 - np.exp(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    )


def _blocks(values: Array, block: int) -> tuple[Array, Array]:
    starts = np.arange(0, len(values), block)
    return np.add.reduceat(values, starts), np.diff([*starts, len(values)])


def _resampled(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))


def _interval(value: float, resampled: Array) -> Interval:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
