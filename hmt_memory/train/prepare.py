"""A model ready to be trained by a recipe: its backbone frozen, unfrozen, or with LoRA around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..engine import quantized, weights
from ..engine.backbone import Backbone
from ..engine.checkpoint import without_advice
from ..engine.sharded import shard_blocks
from ..errors import ConfigError, MissingDependencyError
from ..model import HMTModel
from .devices import sharding
from .recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def prepare(
    name: str,
    recipe: Recipe,
    *,
    start: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    accelerator: Accelerator | None = None,
) -> HMTModel:
    """Load a backbone ready to be trained by a recipe: LoRA around it, or its own weights unfrozen.

    Args:
        name: a folder or the name of a model.
        recipe: says whether LoRA is trained, and with which rank.
        start: an adapter to go on from; it must have the recipe's configuration.
        dtype: the precision of the weights; `auto`: what suits the device.
        device: where the weights go; `auto`: a GPU if there is one.
        accelerator: for several devices: it knows this process's device, and whether each holds a part of the backbone (FSDP).

    Raises:
        MissingDependencyError: LoRA needs peft.
        ConfigError: the backbone has none of `lora_targets`, is quantised and has no LoRA to learn, or is to be divided and to
            learn; or `start` has another configuration or no LoRA to go on with.
    """
    if accelerator is None:
        return _prepared(name, recipe, start, dtype=dtype, device=device)
    options = sharding()
    if options is None:
        return _prepared(name, recipe, start, dtype=dtype, device=str(accelerator.device))
    precision = weights.auto_dtype(accelerator.device) if dtype == "auto" else dtype
    model = _prepared(name, recipe, start, dtype=precision, device="cpu")
    shard_blocks(model, accelerator.device, **options)
    return model


def _prepared(name: str, recipe: Recipe, start: str | Path | None, *, dtype: str | torch.dtype, device: str) -> HMTModel:
    if start is not None:
        return _from_adapter(name, recipe, Path(start), dtype=dtype, device=device)
    causal_lm, tokenizer = weights.load(name, dtype=dtype, device=device)
    _check_learns(quantized.kind(causal_lm), name, recipe)
    causal_lm.requires_grad_(recipe.lora_rank == 0)
    if recipe.lora_rank:
        causal_lm = _with_lora(causal_lm, recipe)
        _freeze_early_layers(causal_lm, recipe)
    if Path(name).expanduser().exists():
        name = str(Path(name).expanduser().resolve())
    return HMTModel(Backbone(causal_lm, tokenizer, name=name), recipe.config)


def _from_adapter(name: str, recipe: Recipe, start: Path, **options: Any) -> HMTModel:
    model = HMTModel.from_pretrained(name, adapter=start, merge=False, engine="torch", **options)
    sizes = ("segment_length", "summary_length", "sensory_length", "recall_dim")
    differ = [
        field
        for field in (*sizes, "memory_tokens", "recalled_tokens", "memory_input")
        if getattr(model.config, field) != getattr(recipe.config.resolve(**_sizes(model)), field)
    ]
    if differ:
        raise ConfigError(f"{start} has another {', '.join(differ)} than the recipe. Train it with its own configuration.")
    if bool(recipe.lora_rank) != model.backbone.has_adapter:
        raise ConfigError(f"{start} {'has no LoRA' if recipe.lora_rank else 'has LoRA'}, unlike the recipe. Change lora_rank.")
    _check_learns(model.backbone.quantization, name, recipe)
    for parameter_name, value in model.backbone.causal_lm.named_parameters():
        value.requires_grad_("lora_" in parameter_name or not recipe.lora_rank)
    _freeze_early_layers(model.backbone.causal_lm, recipe)
    return model


def _check_learns(kind: str | None, name: str, recipe: Recipe) -> None:
    if kind is not None and not recipe.lora_rank:
        raise ConfigError(
            f"the weights of {name} are quantised ({kind}) and cannot learn. Train LoRA around them: lora_rank=8."
        )


def _freeze_early_layers(causal_lm: Any, recipe: Recipe) -> None:
    for name, value in causal_lm.named_parameters():
        if "lora_" in name and _layer(name) < recipe.lora_from_layer:
            value.requires_grad_(False)


def _layer(name: str) -> int:
    """Return the number of the block that a parameter belongs to; a large one for what belongs to none."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return numbers[0] if numbers else 1 << 30


def _sizes(model: HMTModel) -> dict[str, Any]:
    return {"hidden_size": model.backbone.hidden_size, "positions": model.backbone.positions}


def _with_lora(causal_lm: Any, recipe: Recipe) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("LoRA needs peft. Run: pip install 'hmt-memory[train]'") from error
    torch.manual_seed(recipe.seed)
    chosen = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(recipe.lora_targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    dtype = causal_lm.get_input_embeddings().weight.dtype
    try:
        with without_advice():
            wrapped = get_peft_model(causal_lm, chosen, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"lora_targets: {error}") from error
    for value in wrapped.parameters():
        if value.requires_grad:
            value.data = value.data.to(dtype)  # the optimizer keeps fp32 copies
    return wrapped
