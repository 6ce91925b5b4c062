"""Whether a module's parts are in training or in eval mode. Knows torch modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Turn dropout off inside: memory is a function of the text. Every submodule's own training flag is put back."""
    training = [part for part in _parts(module) if part.training]
    if training:  # what would be loaded inside has to be put back as well
        training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and what is in it, as far as it is in memory."""
    yield module
    for child in module.children():
        yield from _parts(child)
