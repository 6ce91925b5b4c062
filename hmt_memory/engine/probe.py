"""What a model has to do to be a backbone, asked of it by a few tiny forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import BackboneError
from .modes import eval_mode

# Relative differences that rounding explains: between one row computed twice, and between two ways to compute logits.
_SAME_ROW = {torch.float32: 1e-5, torch.float64: 1e-5}
_SAME_ROW_HALF, _SAME_LOGITS, _SAME_PARTS_HALF = 1e-3, 1e-2, 0.05


@torch.no_grad()
def probe(backbone: Any, logits_of: Callable[[Tensor], Tensor]) -> bool:
    """Refuse a model that does not do what a backbone has to do. Returns whether its caches go on by several positions.

    Args:
        backbone: the `Backbone` to try.
        logits_of: its own way from token ids [B, T] to logits [B, T, vocab].

    Raises:
        BackboneError: it is an encoder, has input embeddings on no device, another width inside, or a head that is not
            understood.
    """
    if backbone.device.type == "meta":
        raise BackboneError(f"device_map keeps the input embeddings of {backbone.name} on no device. Give them one in it.")
    top = backbone.vocab_size - 1
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=backbone.device).clamp(max=top)
    try:
        with eval_mode(backbone):
            hidden = backbone.body(embedded := backbone.embed(ids))
            appends = _appends(backbone, embedded, hidden)
            logits = logits_of(ids)
    except Exception as error:  # whatever a model raises that is not a decoder
        raise BackboneError(
            f"{backbone.name} ({type(backbone.causal_lm).__name__}) does not run on input embeddings: {error}. "
            "Choose a decoder-only model."
        ) from error
    if hidden.shape[-1] != backbone.hidden_size:
        raise BackboneError(
            f"{backbone.name}: hidden states are {hidden.shape[-1]} wide and input embeddings {backbone.hidden_size}; a memory "
            "embedding must fit both. Choose a model whose two widths are equal."
        )
    if _relative_difference(hidden[0, :-1], hidden[1, :-1]) > _SAME_ROW.get(hidden.dtype, _SAME_ROW_HALF):
        raise BackboneError(
            f"{backbone.name} ({backbone.config.model_type}) looks ahead: it is an encoder. Choose a decoder-only model."
        )
    if _relative_difference(backbone.head(hidden), logits) > _SAME_LOGITS:
        raise BackboneError(
            f"{backbone.name} ({backbone.config.model_type}) does more to its logits than is known here. Please report it."
        )
    return appends


def _appends(backbone: Any, embedded: Tensor, hidden: Tensor) -> bool:
    """Tell whether a text in two parts gives what it gives at once; Mamba goes on token by token only."""
    try:
        _, cache = backbone.extend(embedded[:, :2])
    except BackboneError:  # it keeps none
        return False
    try:
        last, _ = backbone.extend(embedded[:, 2:], cache)
    except IndexError:  # of releases whose Mamba steps behind a cache one at a time
        return False
    return _relative_difference(last, hidden[:, 2:]) < (1e-3 if hidden.dtype in _SAME_ROW else _SAME_PARTS_HALF)


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.float() - expected.float()).norm()
    return float(difference / expected.float().norm().clamp(min=1e-12))
