"""Input embeddings on their way to vLLM: checked before they leave, because its engine trusts their shape and their numbers.

They are written as vLLM's API demands. Nothing of this kind is ever loaded here.
"""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

from ..errors import BackboneError, BudgetError, InputError

_KINDS = (torch.float32, torch.bfloat16, torch.float16)


def checked(embeddings: Tensor, width: int | None) -> Tensor:
    """Return embeddings [t, d] as a tensor of their own on the CPU.

    Args:
        embeddings: [t, d].
        width: the d of the model that they are for; None: not known.

    Raises:
        BackboneError: they are for a model of another width.
        InputError: they have another shape or type, or hold NaN or infinity.
    """
    if embeddings.dim() != 2 or not embeddings.numel():
        raise InputError(f"input embeddings are [tokens, width], not {tuple(embeddings.shape)}.")
    if width not in (None, embeddings.shape[1]):
        raise BackboneError(
            f"the model in vLLM is {width} wide, these embeddings are {embeddings.shape[1]}. Serve the same model."
        )
    if embeddings.dtype not in _KINDS:
        raise InputError(f"input embeddings are floats of 16 or 32 bits, not {embeddings.dtype}.")
    if not torch.isfinite(embeddings).all():
        raise InputError("input embeddings hold NaN or infinity: the memory or the weights are damaged. Load them anew.")
    return embeddings.detach().to("cpu").contiguous().clone()  # what is saved is all that a tensor stands on


def encoded(embeddings: Tensor) -> str:
    """Write checked embeddings as vLLM's API takes them: base64 of what `torch.save` writes."""
    content = io.BytesIO()
    torch.save(embeddings, content)
    return base64.b64encode(content.getvalue()).decode()


def check_room(positions: int, most: int, limit: int | None) -> None:
    """Make sure that a view and its answer fit.

    Args:
        positions: of the view.
        most: tokens of the answer.
        limit: what vLLM has room for; None: not known.

    Raises:
        BudgetError: they do not.
    """
    if limit is not None and positions + most > limit:
        raise BudgetError(
            f"a view of {positions} positions and {most} tokens behind it are over the {limit} that vLLM has room for. "
            "Start it with a larger --max-model-len, or lower recent_tokens."
        )
