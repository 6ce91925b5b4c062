"""Backbones whose frozen blocks lie in parts on several devices, each block whole only while it computes (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from ..errors import ConfigError
from .cell import MemoryCell
from .compiled import repeated_blocks


def shard_blocks(model: MemoryCell, device: torch.device, **options: Any) -> None:
    """Divide the weights of the backbone's blocks among all processes; what learns, and all else, is whole in each of them.

    From then on all processes have to pass through the backbone equally often.

    Args:
        model: is changed, and moved to `device`.
        device: that of this process.
        options: those of `torch.distributed.fsdp.fully_shard`.

    Raises:
        ConfigError: the backbone's own weights learn.
        BackboneError: no blocks repeat.
    """
    from torch.distributed.fsdp import fully_shard

    backbone = model.backbone
    whole: set[Any] = {value for _, value in backbone.adapter_parameters()}
    blocks = repeated_blocks(backbone)
    divided = {value for block in blocks for value in block.parameters()} - whole
    if any(value.requires_grad for value in divided):
        raise ConfigError("FSDP divides a backbone that stays as it is. Train LoRA (lora_rank above 0), or train without FSDP.")
    backbone.kept_digest = backbone.identity()["weights_digest"]
    for value in [*model.parameters(), *model.buffers()]:
        if value not in divided:
            value.data = value.data.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole, **options)
    backbone.sharded = True
