"""The keys by which recall compares questions with what was read, as vectors of texts: for a search of the caller's own.

Knows a model; no collection and no index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ..engine.modes import eval_mode
from ..engine.unroll import unroll
from ..errors import BudgetError, ConfigError, InputError
from .ranking import key_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import HMTModel

LONGEST = 8192  # tokens of a text


class Embedded(NamedTuple):
    """A text as recall compares it."""

    vector: Tensor  # [d_key] fp32, of length 1; zeros before keys are trained
    tokens: int


def width(model: HMTModel) -> int:
    """Return the width of a model's keys by meaning.

    Raises:
        ConfigError: it makes none.
    """
    if model.config.key_dim is None or model.config.mode == "plain":
        raise ConfigError(
            f"{model.backbone.name} makes no keys by meaning, which embeddings are. Use the bundled model as reader, or an "
            "adapter with key_dim."
        )
    return model.config.key_dim


def question(model: HMTModel, text: str) -> Embedded:
    """Return the key of a question: its inner product with the key of a passage is what recall compares.

    Args:
        model: makes keys by meaning.
        text: of which the last 256 tokens count.

    Raises:
        ConfigError: the model makes no keys.
        InputError: the text is empty.
        BudgetError: it is too long.
    """
    width(model)
    tokens = len(_ids(model, text))
    key = key_of(model, text)
    assert key is not None
    return Embedded(key.float(), tokens)


@torch.no_grad()
def passage(model: HMTModel, text: str) -> Embedded:
    """Return the key of a passage: of up to 32 tokens the one that recall has of it, of more the mean of its stretches' keys.

    Args:
        model: makes keys by meaning.
        text: read as a document of its own.

    Raises:
        ConfigError: the model makes no keys.
        InputError: the text is empty.
        BudgetError: it is too long.
    """
    dim = width(model)
    assert model.keys is not None
    ids = _ids(model, text)
    with eval_mode(model):
        (state,), (hidden,) = unroll(model, model.states(None, 1), [ids], keep_hidden=True, final=True)
        keys = torch.cat([torch.zeros(0, dim), *(key.float() for key in state.keys)])
        if not len(keys):  # too short for a stretch
            embedded = model.backbone.embed(ids.to(model.backbone.device))
            keys = model.keys.of_stretches(embedded, hidden, [(0, len(ids))]).float().cpu()
    return Embedded(torch.nn.functional.normalize(keys.mean(dim=0), dim=0), len(ids))


def _ids(model: HMTModel, text: str) -> Tensor:
    """Return the tokens [t] of a text, special ones in it as plain text."""
    ids = torch.tensor(model.backbone.encode(text, literal=True), dtype=torch.long)
    if not len(ids):
        raise InputError("a text is empty: it has no vector. Leave it out.")
    if len(ids) > LONGEST:
        raise BudgetError(f"a text has {len(ids):,} tokens, over {LONGEST:,}. Cut it into passages.")
    return ids
