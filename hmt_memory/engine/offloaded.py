"""Weights that accelerate keeps elsewhere, on a disk or in the host's memory, while they are not computed with (`device_map`).

Such a parameter lies on the device "meta", which holds no numbers; a hook of its module brings them in and takes them away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def some(model: nn.Module) -> bool:
    """Tell whether any weights of a model are kept elsewhere."""
    return any(value.is_meta for value in model.parameters())


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's parameters by name as `named_parameters` does, with their numbers wherever those are kept."""
    modules = dict(model.named_modules())
    for name, value in model.named_parameters():
        owner, _, own = name.rpartition(".")
        yield name, _kept(modules[owner], own) if value.is_meta else value


def _kept(module: Any, name: str) -> Tensor:
    hook = module._hf_hook
    places = [one.weights_map for one in getattr(hook, "hooks", [hook]) if getattr(one, "weights_map", None) is not None]
    weight: Tensor = places[0][name]
    return weight
