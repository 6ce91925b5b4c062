"""Streaming reading: any length, any chunk size, no gradient, no language-model head, only position -1 kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .cell import MemoryCell
from .modes import eval_mode
from .state import HMTState
from .unroll import unroll


@torch.no_grad()
def read(model: MemoryCell, ids_or_text: Any, state: HMTState | None = None) -> HMTState:
    """Append tokens to a stream: each segment they fill is read (Eq. 1-5) and leaves its memory embeddings.

    Args:
        model: the model that reads.
        ids_or_text: a string, a sequence of token ids, or a 1-D tensor of them. Text is tokenised as it is; cut a long
            text between words, or tokenise it once, for the same tokens in any chunks. Special tokens in a string are
            plain text; a text that is meant to hold them is passed as the tokenizer's ids.
        state: the stream to continue; None: a fresh one. It is not changed.

    Returns:
        The state afterwards: `memory` [n * m, d], `open_ids` the tokens of the segment that is not full yet.

    Raises:
        InputError: the input is neither text nor token ids of this model.
    """
    ids = token_ids(model, ids_or_text)
    with eval_mode(model):
        (after,), _ = unroll(model, model.states(state, 1), [ids], keep_hidden=False)
    return after


def read_in_chunks(model: MemoryCell, ids: Tensor, state: HMTState | None = None, *, segments: int = 16) -> Iterator[HMTState]:
    """Read some segments at a time and yield the state after each chunk: for progress, and to stop between.

    Args:
        model: the model that reads.
        ids: [t] token ids.
        state: the stream to continue; None: a fresh one.
        segments: the length of a chunk.
    """
    for chunk in ids.split(segments * model.config.segment_length) if len(ids) else [ids]:
        state = read(model, chunk, state)
        yield state


def token_ids(model: MemoryCell, ids_or_text: Any, *, literal: bool = True) -> Tensor:
    """Return int64 ids [t] on the CPU for a string, a sequence of ids or a 1-D tensor.

    Args:
        model: its tokenizer encodes a string.
        ids_or_text: text or token ids.
        literal: whether special tokens in a string are plain text.

    Raises:
        InputError: the input is none of these, or holds ids that are not this model's.
    """
    if isinstance(ids_or_text, str):
        ids_or_text = model.backbone.encode(ids_or_text, literal=literal)
    if not isinstance(ids_or_text, (Tensor, Sequence)):
        raise InputError(f"expected text or token ids, not {type(ids_or_text).__name__}.")
    try:
        ids = torch.as_tensor(ids_or_text)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected text or a flat sequence of token ids: {error}") from error
    if ids.dim() != 1:
        raise InputError(f"expected one stream of token ids [tokens], not shape {tuple(ids.shape)}. Pass one row.")
    if len(ids):
        model.check_ids(ids)
    return ids.detach().long().cpu()
