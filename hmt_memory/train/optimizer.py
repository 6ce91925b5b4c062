"""AdamW over parameters of any precision. Knows tensors and their names; no model, no schedule.

A bf16 parameter has 8 significant bits: an update of a thousandth of it is lost. So each parameter has a master copy in fp32,
which is stepped and then rounded into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Group(NamedTuple):
    """Parameters that learn at one rate."""

    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    apart: bool = False  # clipped by itself: a few numbers with large gradients would shrink the steps of all others


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019) on fp32 master copies."""

    def __init__(self, groups: Sequence[Group], *, weight_decay: float = 0.0, clip: float = 1.0) -> None:
        self._live = {name: value for group in groups for name, value in group.parameters.items()}
        self._master = {name: value.detach().float().clone() for name, value in self._live.items()}
        self._clip = clip
        together = [name for group in groups if not group.apart for name in group.parameters]
        self._clipped = [names for names in (together, *(list(group.parameters) for group in groups if group.apart)) if names]
        self._rates = [group.learning_rate for group in groups]
        self._adam = torch.optim.AdamW(
            [{"params": [self._master[name] for name in group.parameters], "lr": group.learning_rate} for group in groups],
            weight_decay=weight_decay,
        )

    def adopt(self, *prefixes: str) -> None:
        """Take over the present values of the parameters whose names begin with one of `prefixes`."""
        for name in (name for name in self._live if name.startswith(prefixes)):
            self._master[name].data.copy_(self._live[name])

    def step(self, factor: float, total: Callable[[Sequence[Tensor]], None] | None = None) -> float:
        """Take one step and clear the gradients. Returns their norm before clipping.

        Args:
            factor: of the learning rates.
            total: adds to the gradients of parameters, in fp32, what other devices have.
        """
        for name, value in self._live.items():
            self._master[name].grad = None if value.grad is None else value.grad.float()
            value.grad = None
        if total is not None:
            total(list(self._master.values()))
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        learning = [[self._master[name] for name in names if self._master[name].grad is not None] for names in self._clipped]
        norms = [float(nn.utils.clip_grad_norm_(values, self._clip)) for values in learning if values]
        norm = math.hypot(*norms)
        self._adam.step()
        self._adam.zero_grad()
        self._write()
        return norm

    @torch.no_grad()
    def _write(self) -> None:
        for name, value in self._live.items():
            value.copy_(self._master[name])

    def state(self) -> dict[str, Tensor]:
        """Return everything a later run needs, as named tensors on the CPU."""
        tensors = {f"master/{name}": value for name, value in self._master.items()}
        for name, value in self._master.items():
            for key, held in self._adam.state[value].items():
                tensors[f"{key}/{name}"] = torch.as_tensor(held)
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            KeyError: the state belongs to other parameters.
        """
        for name, value in self._master.items():
            value.copy_(state[f"master/{name}"])
        for name, value in self._master.items():
            held = {key: state.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            self._adam.state[value] = {
                key: moment.clone() if key == "step" else moment.to(value.device).clone()
                for key, moment in held.items()
                if moment is not None
            }
        self._write()
