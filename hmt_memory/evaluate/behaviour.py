"""Behaviour of a trained memory, after the behaviour studies of the HMT paper.

Measures how far back it recalls, whether it tells two texts apart, what filler is worth to it, and how perplexity depends on
the sensory memory and on the number of memories kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..engine.modes import eval_mode
from ..engine.unroll import Steps, Turn, unroll
from ..errors import InputError
from .perplexity import token_losses
from .report import Figure, Report, Table
from .statistics import Interval, perplexity_interval

if TYPE_CHECKING:
    from ..engine.cell import Step
    from ..model import HMTModel

SENSORY = (8, 16, 32, 64)
WINDOWS = (1, 4, 16, 64, 300)


@torch.no_grad()
def recall_weights(model: HMTModel, ids: Tensor) -> list[np.ndarray]:
    """Return the recall weights [n] of each segment that recalls, over the n segments before it, oldest first."""
    steps = _Watching(model)
    with eval_mode(model):
        unroll(model, model.states(None, 1), [ids], keep_hidden=False, steps=steps)
    return steps.weights


class _Watching(Steps):
    """The usual steps, with the recall weights of each segment noted."""

    def __init__(self, model: HMTModel) -> None:
        super().__init__(model)
        self.weights: list[np.ndarray] = []

    def read(self, turn: Turn) -> Step:
        """Read a segment and note its recall weights."""
        (summary,), (window,) = turn.summaries, turn.windows
        if summary is not None and len(window):
            recalled = self.model.recall(summary[None], self.model.recallable(window)[None])
            self.weights.append(recalled.weights[0].float().cpu().numpy())
        return super().read(turn)


def distances(weights: Sequence[np.ndarray]) -> dict[int, float]:
    """Return the share of segments whose largest weight lies a given number of segments back, by that number.

    >>> distances([np.array([1.0]), np.array([0.9, 0.1]), np.array([0.2, 0.1, 0.7])])
    {1: 0.6666666666666666, 2: 0.3333333333333333}
    """
    counted = Counter(len(segment) - int(segment.argmax()) for segment in weights)
    return {back: count / len(weights) for back, count in sorted(counted.items())}


def interleaved(first: Tensor, second: Tensor, length: int) -> Tensor:
    """Put segments of two texts in turn: a memory that tells them apart recalls from an even distance.

    Args:
        first: [t] token ids.
        second: [t'] token ids of another text.
        length: tokens a segment.
    """
    pairs = zip(first.split(length), second.split(length), strict=False)
    return torch.cat([part for pair in pairs for part in pair if len(part) == length])


def diluted(ids: Tensor, filler: Tensor, length: int) -> Tensor:
    """Put a segment of filler after each segment of the text: a memory that works recalls no filler.

    Args:
        ids: [t] token ids of the text.
        filler: [f] token ids, repeated as needed.
        length: tokens a segment.
    """
    return interleaved(ids, filler.repeat(-(-len(ids) // len(filler)))[: len(ids)], length)


def measure(
    model: HMTModel,
    ids: Tensor,
    other: Tensor,
    *,
    sensory: Sequence[int] = SENSORY,
    windows: Sequence[int] = WINDOWS,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run all studies on one text.

    Args:
        model: a model that recalls.
        ids: [t] token ids of the text.
        other: [t'] token ids of a second text of about the same length.
        sensory: lengths of the sensory memory to compare, in tokens; those below `segment_length` are measured.
        windows: numbers of kept memories to compare, in segments.
        settings: what else the report records.
        progress: called with a line about the study that begins.

    Raises:
        InputError: the model does not recall, or the texts are shorter than four segments.
    """
    length = model.config.segment_length
    if model.config.mode != "hmt" or min(len(ids), len(other)) < 4 * length:
        raise InputError(f"these studies need a model that recalls, and two texts of at least {4 * length} tokens.")
    half = min(len(ids), len(other)) // 2
    dollar = torch.tensor(model.backbone.encode(" $"))
    histograms = {}
    for name, text in (
        ("one text", ids[: 2 * half]),
        ("two texts in turn", interleaved(ids[:half], other[:half], length)),
        ("text and $ in turn", diluted(ids[:half], dollar, length)),
    ):
        progress(f"recall over {name}")
        histograms[name] = distances(recall_weights(model, text))
    even = {name: sum(share for back, share in shares.items() if back % 2 == 0) for name, shares in histograms.items()}
    curves: dict[str, list[tuple[int, Interval]]] = {}
    for name, field, values in (
        ("sensory memory, tokens", "sensory_length", [k for k in sensory if k < length]),
        ("memories kept, segments", "recall_window", windows),
    ):
        curves[name] = []
        for value in values:
            progress(f"{name}: {value}")
            interval = perplexity_interval(token_losses(model.with_config(**{field: value}), ids), block=length)
            curves[name].append((value, interval))
    shown = range(1, 21)
    return Report(
        "behaviour",
        "What memory does",
        {**(settings or {}), "tokens": len(ids), "intervals": f"95 %, bootstrap over blocks of {length} tokens, seed 0"},
        [
            Table("Largest recall weight an even distance back", ["text", "share"], [[*row] for row in even.items()]),
            *(
                Table(f"Perplexity by {name}", [name, "perplexity", "low", "high"], [[x, *interval] for x, interval in points])
                for name, points in curves.items()
            ),
        ],
        [
            Figure(
                "How far back the largest recall weight lies",
                "segments back",
                "share",
                {name: [(back, shares.get(back, 0.0)) for back in shown] for name, shares in histograms.items()},
                bars=True,
            ),
            *(
                Figure(f"Perplexity by {name}", name, "perplexity", {"HMT": [(x, interval.value) for x, interval in points]})
                for name, points in curves.items()
            ),
        ],
    )
