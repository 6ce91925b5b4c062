"""A backbone's body as a function of tensors alone, which a graph compiler can trace.

Rows may be padded on the left, and positions are consecutive, so masks and positions follow from the shapes and the padding.
Knows Hugging Face's names for what goes in and comes out, and for what a cache holds.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError


class TracedBody(nn.Module):
    """The body of an attention model.

    Args:
        body: the module between input embeddings and the final norm.
        config: its configuration.
        cache_argument: the name of the cache in its forward pass.
    """

    def __init__(self, body: Any, config: Any, cache_argument: str) -> None:
        super().__init__()
        self._body, self._cache_argument = body, cache_argument
        self.described = json.dumps(config.to_dict(), sort_keys=True, default=str)  # equal weights compute what this says
        self._window = window(config)
        self._mixed = self._window is not None and len(set(getattr(config, "layer_types", None) or ())) > 1

    def forward(self, embeddings: Tensor, pads: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Append input embeddings [B, T, d] to what is held.

        Args:
            embeddings: the new input embeddings.
            pads: [B] how many of the first positions that are held are padding.
            past: keys and values [B, heads, P, width] of each layer in turn.

        Returns:
            Hidden states [B, T, d], and keys and values of P + T positions.
        """
        kept, held, new = _Kept(past), past[0].shape[2], embeddings.shape[1]
        output = self._body(
            inputs_embeds=embeddings,
            attention_mask=self._mask(held, new, pads, embeddings),
            position_ids=(torch.arange(new, device=embeddings.device) + held)[None] - pads[:, None],
            use_cache=True,
            **{self._cache_argument: kept},
        )
        return (output.last_hidden_state, *kept.tensors())

    def _mask(self, held: int, new: int, pads: Tensor, like: Tensor) -> Any:
        """Return what hides padding and later positions [B, 1, T, P + T], and where a window slides those too far back."""
        places, seen = torch.arange(new, device=like.device) + held, torch.arange(held + new, device=like.device)
        hidden = torch.finfo(like.dtype).min
        visible = (seen[None] <= places[:, None])[None] & (seen[None] >= pads[:, None])[:, None]
        whole = torch.where(visible, 0.0, hidden).to(like.dtype)[:, None]
        if self._window is None:
            return whole
        near = torch.where(visible & (seen[None] > places[:, None] - self._window)[None], 0.0, hidden).to(like.dtype)[:, None]
        return {"full_attention": whole, "sliding_attention": near} if self._mixed else near


class _Kept:
    """Keys and values, to which the attention layers of a model append."""

    is_compileable = False

    def __init__(self, past: Sequence[Tensor]) -> None:
        self._keys, self._values = list(past[0::2]), list(past[1::2])
        self._held = past[0].shape[2]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append to a layer."""
        self._keys[layer_idx] = torch.cat([self._keys[layer_idx], keys], dim=2)
        self._values[layer_idx] = torch.cat([self._values[layer_idx], values], dim=2)
        return self._keys[layer_idx], self._values[layer_idx]

    def get_seq_length(self, _: int = 0) -> int:
        """Return how many positions are held."""
        return self._held

    def tensors(self) -> list[Tensor]:
        """Return keys and values of each layer in turn."""
        return [tensor for pair in zip(self._keys, self._values, strict=True) for tensor in pair]


def positions(cache: Any) -> int:
    """Return how many positions a model's own cache holds."""
    return int(cache.get_seq_length())


def joined(caches: Sequence[Any], longest: int) -> Any:
    """Return caches of one row each as one of several rows, padded on the left to `longest` positions."""
    whole = copy.copy(caches[0])
    whole.layers = [copy.copy(layer) for layer in whole.layers]
    for number, layer in enumerate(whole.layers):
        parts = [cache.layers[number] for cache in caches]
        layer.keys, layer.values = (
            torch.cat([nn.functional.pad(row, (0, 0, longest - row.shape[2], 0)) for row in kind])
            for kind in ([part.keys for part in parts], [part.values for part in parts])
        )
    return whole


def chosen(cache: Any, rows: Sequence[int], first: int = 0) -> Any:
    """Return some rows of a cache by themselves, from position `first` on.

    Args:
        cache: of keys and values.
        rows: their numbers, in the order wanted.
        first: the position that is kept first.
    """
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in own.layers]
    for layer in own.layers:
        layer.keys, layer.values = (kind[list(rows), :, first:].clone() for kind in (layer.keys, layer.values))
    return own


def shapes(cache: Any) -> list[tuple[int, int]]:
    """Return heads and width of the keys and the values that a model's own cache holds, of each layer in turn.

    Raises:
        BackboneError: it holds something else.
    """
    try:
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return [(int(tensor.shape[1]), int(tensor.shape[3])) for tensor in tensors]
    except (AttributeError, IndexError) as error:
        raise BackboneError(f"its cache ({type(cache).__name__}) does not hold keys and values.") from error


def head_scale(config: Any) -> float:
    """Return the factor of the logits: Cohere multiplies them by `logit_scale`, Granite divides them by `logits_scaling`."""
    factor, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return (factor if isinstance(factor, (int, float)) else 1.0) / (divisor if isinstance(divisor, (int, float)) else 1.0)


def window(config: Any) -> int | None:
    """Return how many positions back attention reaches where it does not reach all; None: it does in every layer."""
    kinds = set(getattr(config, "layer_types", None) or ())
    size: int | None = getattr(config, "sliding_window", None)
    return None if kinds == {"full_attention"} or not getattr(config, "use_sliding_window", True) else size


def turns_by_length(config: Any) -> bool:
    """Tell whether the longest of several rows decides how the positions of all are turned ("longrope" of Phi-3)."""
    given = (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None))
    return "longrope" in str(given)


def text_config(model: Any) -> Any:
    """Return the configuration of a model, as far as it is about text."""
    return model.config.get_text_config()


def fields(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration as JSON has them, by their common names too."""
    own: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return own | {name: getattr(config, name) for name in type(config).attribute_map}
