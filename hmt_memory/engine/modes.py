"""What of a module is training: modes of its parts, and which parameters learn. Knows torch modules."""

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


@contextmanager
def learning_kept(module: nn.Module) -> Iterator[None]:
    """Let the same parameters ask for a gradient afterwards as before."""
    wanted = [(value, value.requires_grad) for value in module.parameters()]
    try:
        yield
    finally:
        for value, learns in wanted:
            value.requires_grad_(learns)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and what is in it, as far as it is in memory."""
    yield module
    for child in module.children():
        yield from _parts(child)
