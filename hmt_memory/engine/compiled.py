"""Backbones whose blocks are compiled for training."""

from __future__ import annotations

import os
import shutil

from torch import nn

from ..errors import BackboneError
from .backbone import Backbone


def compile_blocks(backbone: Backbone) -> None:
    """Compile the decoder's repeated blocks with `torch.compile`, for training: results differ by rounding only.

    The first step then takes a minute; on a CPU each later step takes about half the time.

    Args:
        backbone: is changed.

    Raises:
        BackboneError: no blocks repeat, they are divided among devices, or there is no C++ compiler for a CPU.
    """
    if backbone.sharded:
        raise BackboneError("blocks that are divided among devices are not compiled yet. Train without --compile or FSDP.")
    if backbone.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise BackboneError("compiling for a CPU needs a C++ compiler. Install g++, or train without --compile.")
    for block in repeated_blocks(backbone):
        block.compile(dynamic=True)
    backbone.compiled = True


def repeated_blocks(backbone: Backbone) -> nn.ModuleList:
    """Return the decoder's repeated blocks.

    Raises:
        BackboneError: none repeat.
    """
    lists = [module for module in backbone.causal_lm.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise BackboneError(
            f"{backbone.name} ({backbone.config.model_type}) has no repeated blocks. Train without --compile and FSDP."
        )
    return max(lists, key=lambda blocks: sum(value.numel() for value in blocks.parameters()))
