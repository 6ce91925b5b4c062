"""Adapter files that others wrote: which may be loaded at all, and LoRA merged into the weights it is for, without PEFT.

`W + alpha / r * B A` (Hu et al., arXiv 2106.09685), computed in fp32 and rounded once. Adapters that are more than that (DoRA,
trained biases or embeddings, ...) are left to PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import offloaded, trust

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Kinds of adapter that are only tensors in their own file; others name models and adapters that PEFT would load.
_KINDS = (
    *("LORA", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "MISS", "DELORA", "HIRA"),
    *("IA3", "LN_TUNING", "TRAINABLE_TOKENS", "VERA", "RANDLORA", "FOURIERFT", "WAVEFT", "C3A", "ROAD", "SHIRA", "VBLORA"),
)
# Fields whose numbers are sizes of tensors.
_SIZES = (
    *("r", "init_r", "rank_pattern", "oft_block_size", "boft_block_size", "boft_n_butterfly_factor", "n_frequency"),
    *("n_frequency_pattern", "block_size", "block_size_pattern", "num_vectors", "vector_length"),
)
# Fields of PEFT's configuration that can make an adapter more than W + alpha / r * B A, and their harmless values.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    **{name: (False, None) for name in ("use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out")},
    **{name: (None, [], {}) for name in ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication")},
    **{name: (None, [], {}) for name in ("trainable_token_indices", "target_parameters", "megatron_config", "arrow_config")},
}


@dataclass(frozen=True)
class Merged:
    """An adapter that is merged into the weights, as far as a checkpoint and a fingerprint still need it."""

    files: Mapping[str, bytes]  # by name, to be saved again
    tensors: Mapping[str, Tensor]  # by PEFT's names


def check(folder: Path) -> None:
    """Make sure that an adapter is only its tensors: no pickle, no other model, no size that no tensor has.

    Raises:
        ValueError: the adapter is more than that, or damaged.
        OSError: its files cannot be read.
    """
    config = _config(folder)
    if config.get("peft_type") not in _KINDS:
        raise ValueError(f"{CONFIG_FILE}: peft_type={config.get('peft_type')!r} is not loaded. Use LORA, or one of {_KINDS}.")
    if config.get("megatron_config"):
        raise ValueError(f"{CONFIG_FILE}: megatron_config names code to import, which is not done. Leave it out.")
    if not (folder / WEIGHTS_FILE).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(trust.a_pickle(folder, "adapter_model.bin"))
    largest = _largest(config, trust.header(folder / WEIGHTS_FILE))
    for name in _SIZES:
        given = config.get(name)
        for size in given.values() if isinstance(given, dict) else [given]:
            if (
                isinstance(size, (int, float)) and size > largest and config["peft_type"] != "LOKR"
            ):  # LOKR's rank is only a limit
                raise ValueError(f"{CONFIG_FILE}: {name}={size}, but no tensor of {WEIGHTS_FILE} is larger than {largest}.")


def _largest(config: Mapping[str, Any], tensors: Mapping[str, trust.Stored]) -> int:
    """Return the largest size that the configuration of these tensors can have."""
    ranks = [stored.shape[0] for name, stored in tensors.items() if ".lora_A." in name and stored.size]
    if ranks and config["peft_type"] == "LORA" and not config.get("rank_pattern"):
        return max(ranks)
    return max((stored.size for stored in tensors.values()), default=0)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{CONFIG_FILE} is nested too deeply") from error
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG_FILE} is no configuration of an adapter")
    return config


@torch.no_grad()
def merge(causal_lm: nn.Module, folder: Path) -> Merged | None:
    """Merge the adapter in `folder` into `causal_lm`. Returns None, with nothing changed, if it is more than plain LoRA.

    Raises:
        ValueError: the files are damaged or for another model, or not all its weights are in memory.
        OSError: the files cannot be read.
        KeyError: the files lack a field or a tensor.
    """
    if offloaded.some(causal_lm):
        raise ValueError("device_map keeps some of the weights elsewhere. Run hmt export, and load what it writes.")
    config, stored = _config(folder), trust.header(folder / WEIGHTS_FILE)
    linear = _changed(causal_lm, stored)
    if linear is None or any(config.get(name, allowed[-1]) not in allowed for name, allowed in _PLAIN.items()):
        return None
    for name, module in linear.items():
        _check_shapes(name, module, stored, config["r"])
    scale = config["lora_alpha"] / config["r"]
    if not isfinite(scale):
        raise ValueError(f"{CONFIG_FILE}: lora_alpha={config['lora_alpha']} is no number")
    merged = read(folder)
    for name, module in linear.items():
        low, high = (merged.tensors[f"{name}.lora_{part}.weight"].to(module.weight.device).float() for part in "AB")
        module.weight.copy_(module.weight.float() + scale * high @ low)
    return merged


def read(folder: Path) -> Merged:
    """Read an adapter that is merged into the weights already.

    Raises:
        ValueError: the files are damaged.
        OSError: the files cannot be read.
    """
    from safetensors.torch import load

    files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return Merged(files, load(files[WEIGHTS_FILE]))


def _changed(causal_lm: nn.Module, stored: Mapping[str, trust.Stored]) -> dict[str, nn.Linear] | None:
    """Return the linear layers that plain LoRA tensors change, by the tensors' names; None if they change anything else."""
    names = sorted({name.rsplit(".lora_", 1)[0] for name in stored})
    if set(stored) != {f"{name}.lora_{part}.weight" for name in names for part in "AB"}:
        return None
    modules = {name: causal_lm.get_submodule(name.removeprefix(_PREFIX)) for name in names}
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    return linear if len(linear) == len(names) else None


def _check_shapes(name: str, module: nn.Linear, stored: Mapping[str, trust.Stored], rank: Any) -> None:
    """Raise ValueError unless the two matrices at `name` have this rank and fit this layer."""
    low, high = (stored[f"{name}.lora_{part}.weight"] for part in "AB")
    if (low.shape, high.shape) != ((rank, module.in_features), (module.out_features, rank)):
        raise ValueError(
            f"{name} is {tuple(module.weight.shape)}, its adapter {high.shape} x {low.shape} of rank r={rank}: it is for "
            "another model"
        )
    if not (low.is_float and high.is_float and 0 < rank <= max(module.weight.shape)):
        raise ValueError(f"{name}: rank r={rank} is impossible, or the numbers are no floats")
