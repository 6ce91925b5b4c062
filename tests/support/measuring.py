"""States compared, and positions counted that go through a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hmt_memory import HMTModel, HMTState


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return found.shape == expected.shape and bool(torch.allclose(found, expected, rtol=tolerance, atol=tolerance))


def same(found: HMTState, expected: HMTState, tolerance: float = 1e-4) -> bool:
    return (
        close(found.memory, expected.memory, tolerance)
        and torch.equal(found.recent_ids, expected.recent_ids)
        and torch.equal(found.open_ids, expected.open_ids)
        and (found.segments, found.tokens) == (expected.segments, expected.tokens)
    )


@contextmanager
def counting_tokens(model: HMTModel) -> Iterator[list[int]]:
    """Collects how many positions each pass puts through the backbone's blocks."""
    seen: list[int] = []

    def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1])

    body = model.backbone.causal_lm.base_model
    handle = body.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
