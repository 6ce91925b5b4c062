"""The indexes of a session or corpus, as its model shapes them. Knows indexes; runs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..retrieval import lexical
from ..retrieval.sources import Indexes
from ..store.index.vectors import KeyIndex, MemoryIndex
from ..store.index.words import WordIndex

if TYPE_CHECKING:
    from ..model import HMTModel


class Shape(NamedTuple):
    """What indexes have to know of the model whose memory they search."""

    width: int  # of a memory embedding
    slots: int  # of a segment that may be recalled
    others: int  # embeddings before these
    key_width: int | None  # None: the model makes no keys by meaning
    directions: NDArray[np.float32]  # [d_h, d] that folded queries lie in: those of the key projection
    made_by: str  # the model's digest
    factory: str  # of the search


def shape_of(model: HMTModel, made_by: str, factory: str) -> Shape:
    """Return the shape of a model's indexes.

    Args:
        model: the model.
        made_by: its digest.
        factory: names the search.
    """
    slots = model.recalled_slots
    directions: NDArray[np.float32] = model.recall.key.weight.detach().float().cpu().numpy()
    return Shape(
        model.backbone.hidden_size, slots, model.slots - slots, model.config.key_dim or None, directions, made_by, factory
    )


def new_indexes(paths: tuple[Path, Path, Path], shape: Shape, decode: Callable[[Sequence[int]], str]) -> Indexes:
    """Return indexes that hold nothing yet.

    Args:
        paths: their files, which may be missing: of memory, words and keys by meaning.
        shape: of the model that made the memory.
        decode: token ids to text.
    """
    memory, vocabulary, keys = paths
    made: dict[str, Any] = {"factory": shape.factory, "made_by": shape.made_by}
    return Indexes(
        MemoryIndex(memory, width=shape.width, slots=shape.slots, others=shape.others, directions=shape.directions, **made),
        WordIndex(vocabulary, decode=decode, terms=lexical.terms, made_by=shape.made_by),
        KeyIndex(keys, width=shape.key_width, **made) if shape.key_width else None,
    )
