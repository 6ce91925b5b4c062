"""LoRA trained through weights it is merged into: one product of matrices forward where the sum of both branches takes three.

The gradients are those of the two branches, with rounding in another order. It pays on a CPU, and costs a second copy of the
weights. Knows PEFT's linear layers; no model.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

MOST_BYTES = 2 << 30  # of merged weights


class _Merged:
    """One linear layer with LoRA, merged anew after each change of W, A or B."""

    def __init__(self, layer: Any) -> None:
        name = next(iter(layer.active_adapters))
        self._layer, self._scale = layer, layer.scaling[name]
        self._down: nn.Parameter = layer.lora_A[name].weight  # [r, in], A
        self._up: nn.Parameter = layer.lora_B[name].weight  # [out, r], B
        self._weight: Tensor = layer.base_layer.weight  # [out, in], W + scale * B A, once it is computed
        self._versions = (-1, -1, -1)  # of W, A and B

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self._layer.base_layer
        if self._layer.disable_adapters:
            return base(inputs, *args, **kwargs)  # type: ignore[no-any-return]
        versions = (base.weight._version, self._down._version, self._up._version)
        if versions != self._versions:
            with torch.no_grad():
                self._weight = torch.addmm(base.weight, self._up, self._down, alpha=self._scale)
            self._versions = versions
        if not torch.is_grad_enabled():
            return linear(inputs, self._weight, base.bias)
        merged = (self._weight, base.bias, self._down, self._up, self._scale)
        return _MergedLinear.apply(inputs, *merged)  # type: ignore[no-any-return, no-untyped-call]


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, down, up)
        ctx.scale = scale
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, down, up = ctx.saved_tensors
        gradient = gradients[0]
        before, behind = inputs.flatten(0, -2), gradient.flatten(0, -2)
        to_inputs = gradient @ weight if ctx.needs_input_grad[0] else None
        to_down = (behind @ up).T @ before * ctx.scale if ctx.needs_input_grad[3] else None
        to_up = behind.T @ (before @ down.T) * ctx.scale if ctx.needs_input_grad[4] else None
        return to_inputs, None, None, to_down, to_up, None


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[int]:
    """Compute every LoRA layer of a model through merged weights, until the context is left.

    Only plain LoRA without dropout of linear layers in fp32 on a CPU is merged, and none where the merged weights are more than
    `MOST_BYTES`; other layers compute as before.

    Args:
        model: with PEFT's layers, or without any.

    Yields:
        The number of layers that are merged.
    """
    adapted = importlib.util.find_spec("peft") is not None
    layers: list[Any] = [module for module in model.modules() if adapted and _can_merge(module)]
    if sum(layer.base_layer.weight.nbytes for layer in layers) > MOST_BYTES:
        layers = []
    for layer in layers:
        layer.forward = _Merged(layer).forward
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def _can_merge(module: Any) -> bool:
    """Tell whether a layer is plain LoRA around a linear layer, which PEFT has not merged itself."""
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear) or module.merged or len(module.active_adapters) != 1:
        return False
    base, name = module.base_layer, module.active_adapters[0]
    if type(base) is not nn.Linear or name not in module.lora_A:
        return False
    plain = isinstance(module.lora_dropout[name], nn.Identity) and name not in module.lora_variant
    parts = (base.weight, module.lora_A[name].weight, module.lora_B[name].weight)
    same = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts)
    return plain and same and module.lora_B[name].bias is None and not base.weight.requires_grad
