"""Train one step with plain and one with compiled blocks, in a process of its own: FOLDER of a model. Exit code 0: they agree.

The compiler's threads and loaded code end with this process, and whatever it dies of is this process's alone.
"""

from __future__ import annotations

import sys

import torch
from tiny import SMALL, random_ids

from hmt_memory.engine.compiled import compile_blocks
from hmt_memory.train import Recipe, Stage, prepare
from hmt_memory.train.examples import Example
from hmt_memory.train.losses import Weights
from hmt_memory.train.unrolled import unrolled_losses

L = SMALL.segment_length
RECIPE = Recipe(stages=(Stage(steps=1, segments=3),), config=SMALL, lora_rank=2)


def step(folder: str, *, compiled: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of two rows of three segments, and its gradients."""
    ids = [random_ids(3 * L, seed) for seed in range(2)]
    model = prepare(folder, RECIPE, dtype="float32").train()
    if compiled:
        compile_blocks(model.backbone)
    losses = unrolled_losses(model, [Example(row, row.clone()) for row in ids], Weights(0.5, 0.5), teacher_tokens=L)
    (losses.token_total / losses.tokens).backward()
    return losses.next_token, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    expected, wanted = step(folder, compiled=False)
    loss, gradients = step(folder, compiled=True)
    assert abs(loss - expected) <= 1e-5 * abs(expected), (loss, expected)
    assert gradients.keys() == wanted.keys() and gradients
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-6)
    print(f"{len(gradients)} gradients agree")


if __name__ == "__main__":
    main(sys.argv[1])
