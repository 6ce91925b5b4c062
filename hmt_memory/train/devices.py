"""The processes of a run, one for each device: who takes what of a step, and what they add up. Knows accelerate; no model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, MissingDependencyError, ProcessLostError

if TYPE_CHECKING:
    from accelerate import Accelerator

_Item = TypeVar("_Item")
_AT_ONCE = 1 << 24  # numbers that are summed in one message


class Devices:
    """This process among those of a run.

    Args:
        accelerator: joins the processes; None: this one is alone.
        in_step: whether all have to pass through the model equally often, as those have to that hold a part of it each.
    """

    def __init__(self, accelerator: Accelerator | None = None, *, in_step: bool = False) -> None:
        self._accelerator = accelerator
        self.number: int = accelerator.process_index if accelerator else 0
        self.count: int = accelerator.num_processes if accelerator else 1
        self.in_step = in_step and self.count > 1

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and speaks."""
        return self.number == 0

    def share(self, items: Sequence[_Item]) -> list[tuple[_Item, bool]]:
        """Return this process's part of what a step works on, each with whether it counts.

        Every item counts in one process. In step, all get equally many: those over are copies, which do not count.
        """
        most = -(-len(items) // self.count)
        ends = [number * most if self.in_step else number * len(items) // self.count for number in range(self.count + 1)]
        mine = range(ends[self.number], ends[self.number + 1])
        return [(items[min(place, len(items) - 1)], place < len(items)) for place in mine]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all processes."""
        if self._accelerator is None or self.count == 1:
            return [float(value) for value in values]
        held = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        return [float(value) for value in self._accelerator.reduce(held, reduction="sum")]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their sums over all processes; a parameter that has none anywhere keeps none."""
        if self._accelerator is None or self.count == 1:
            return
        learns = self.sum([parameter.grad is not None for parameter in parameters])
        learning = [parameter for parameter, anywhere in zip(parameters, learns, strict=True) if anywhere]
        for part in _parts(learning):
            held = [torch.zeros_like(value) if value.grad is None else value.grad for value in part]
            total = self._accelerator.reduce(torch.cat([gradient.flatten() for gradient in held]), reduction="sum")
            for value, gradient in zip(part, total.split([value.numel() for value in part]), strict=True):
                value.grad = gradient.view_as(value)

    @torch.no_grad()
    def agree(self, values: Iterable[Tensor]) -> None:
        """Give all processes the main one's values: what each computed by itself may differ by rounding."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for value in values:
            value.copy_(broadcast(value.detach().float().contiguous()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Name the reason where another process ends while this one waits for it.

        Raises:
            ProcessLostError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise ProcessLostError(
                    "another process of this run has ended; its own message says why. Start the same command again: it goes on "
                    "from the last checkpoint."
                ) from error
            raise


def join(device: str) -> Accelerator | None:
    """Join the processes that `accelerate launch` or `torchrun` started, one for each device; None where there is only this.

    Raises:
        MissingDependencyError: accelerate is not installed.
        ConfigError: the processes do not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2:
        return None
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingDependencyError("several devices need accelerate. Run: pip install 'hmt-memory[train]'") from error
    accelerator = Accelerator(cpu=device == "cpu" or (device == "auto" and not torch.accelerator.is_available()))
    if accelerator.num_processes != count:
        raise ConfigError(f"{count} processes were started, and {accelerator.num_processes} found each other. Check --device.")
    return accelerator


def sharding() -> dict[str, Any] | None:
    """Return the options of `shard_blocks` that accelerate's configuration has; None where it does not ask for FSDP.

    Raises:
        ConfigError: it asks for the first version of FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()  # reads what `accelerate launch` was told, on a CPU as well
    if plugin.fsdp_version != 2:
        raise ConfigError("only FSDP2 is supported. Set fsdp_version: 2 in accelerate's configuration.")
    return {"reshard_after_forward": plugin.reshard_after_forward, "offload_policy": plugin.cpu_offload}


def _parts(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters some at a time, so that no message is much larger than the largest parameter."""
    part: list[Tensor] = []
    for parameter in parameters:
        if part and sum(value.numel() for value in part) + parameter.numel() > _AT_ONCE:
            yield part
            part = []
        part.append(parameter)
    if part:
        yield part
