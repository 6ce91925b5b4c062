"""A LoRA adapter merged into the weights it is for: as fast as without one, and no PEFT needed. Knows PEFT's files.

`W + alpha / r * B A` (Hu et al., arXiv 2106.09685), computed in fp32 and rounded once. Adapters that are more than that (DoRA,
trained biases or embeddings, ...) are left to PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What of PEFT's configuration makes an adapter more than W + alpha / r * B A, and the values under which it does not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    **{name: (False, None) for name in ("use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out")},
    **{name: (None, [], {}) for name in ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication")},
    **{name: (None, [], {}) for name in ("trainable_token_indices", "target_parameters", "megatron_config", "arrow_config")},
}


@dataclass(frozen=True)
class Merged:
    """An adapter that is in the weights: what a checkpoint and a fingerprint still need of it."""

    files: Mapping[str, bytes]  # by name, to be saved again
    tensors: Mapping[str, Tensor]  # by PEFT's names


@torch.no_grad()
def merge(causal_lm: nn.Module, folder: Path) -> Merged | None:
    """Merge the adapter in `folder` into `causal_lm`; None, and nothing changed, where it is more than plain LoRA.

    Raises:
        ValueError, OSError, KeyError: the files are damaged or for another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    config = json.loads(files[CONFIG_FILE])
    if any(config.get(name, allowed[-1]) not in allowed for name, allowed in _PLAIN.items()):
        return None
    try:
        tensors = load(files[WEIGHTS_FILE])
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS_FILE}: {error}") from error
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    if set(tensors) != {f"{name}.lora_{part}.weight" for name in modules for part in "AB"}:
        return None
    changes = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in modules}
    found = {name: causal_lm.get_submodule(name.removeprefix(_PREFIX)) for name in modules}
    linear = {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
    if len(linear) < len(modules):
        return None
    for name, (low, high) in changes.items():
        if linear[name].weight.shape != (high.shape[0], low.shape[1]):
            raise ValueError(f"{name} is {tuple(linear[name].weight.shape)}, the adapter is for another model")
    scale = config["lora_alpha"] / config["r"]
    for name, (low, high) in changes.items():
        weight = linear[name].weight
        change = scale * high.to(weight.device).float() @ low.to(weight.device).float()
        weight.copy_(weight.float() + change)
    return Merged(files, tensors)
