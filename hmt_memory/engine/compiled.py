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
        BackboneError: no blocks repeat, or there is no C++ compiler for a CPU.
    """
    if backbone.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise BackboneError("compiling for a CPU needs a C++ compiler. Install g++, or train without --compile.")
    lists = [module for module in backbone.causal_lm.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise BackboneError(f"{backbone.name} ({backbone.config.model_type}) has no repeated blocks. Train without --compile.")
    for block in max(lists, key=lambda blocks: sum(value.numel() for value in blocks.parameters())):
        block.compile(dynamic=True)
    backbone.compiled = True
