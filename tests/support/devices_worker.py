"""One of the processes of runs on several devices: MODEL FOLDER DATA... What it saw is written to FOLDER by its number."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from places import ROOT
from safetensors.torch import save_file
from tiny import SMALL

from hmt_memory.cli import main as command
from hmt_memory.errors import ProcessLostError
from hmt_memory.train import Recipe, Stage, Trainer, open_sources, prepare, projections, trainer
from hmt_memory.train.devices import Devices, join
from hmt_memory.train.examples import IGNORED, Example

# One row in the first stage, so that one of two processes has none; three in the second, so that one has two.
RECIPE = Recipe(
    stages=(
        Stage(steps=2, segments=2, mode="rmt", batch=1),
        Stage(
            steps=2,
            segments=3,
            before=1,
            batch=3,
            tasks={"text": 1, "cloze": 1, "recitation": 1},
            recall=0.1,
            distillation=0.5,
            view_tokens=40,
            exercises=3,
            abstaining=0.5,
        ),
    ),
    config=replace(SMALL, memory_tokens=2, recalled_tokens=1, memory_input="centred", recall_dim=8),
    recall_questions=32,
    lora_rank=2,
    learning_rate=1e-2,
    checkpoint_every=4,
)
FEW_STEPS = 20  # of fitting recall; tiny models need no more


def begin(model: str, data: Sequence[str], folder: Path, recipe: Recipe = RECIPE, accelerator: Any = None) -> Trainer:
    loaded = prepare(model, recipe, dtype="float32", device="cpu", accelerator=accelerator)
    return Trainer(loaded, recipe, open_sources(data, loaded.backbone.encode), folder, sources=data, accelerator=accelerator)


@contextmanager
def recorded(folder: Path, name: str) -> Iterator[None]:
    """Write the rows that count, by step, and the gradients that each step is taken with."""
    rows: list[list[list[int]]] = []
    gradients: dict[str, torch.Tensor] = {}
    losses, total = trainer.unrolled_losses, Devices.sum_gradients

    def read(model: Any, examples: Sequence[Example], *arguments: Any, **options: Any) -> Any:
        rows.append([row.ids.tolist() for row in examples if bool((row.labels != IGNORED).any())])
        return losses(model, examples, *arguments, **options)

    def summed(self: Devices, parameters: Sequence[torch.Tensor]) -> None:
        total(self, parameters)
        step = len({key.split("/")[0] for key in gradients})
        gradients.update({f"{step}/{place}": v.grad.clone() for place, v in enumerate(parameters) if v.grad is not None})

    with mock.patch.object(trainer, "unrolled_losses", read), mock.patch.object(Devices, "sum_gradients", summed):
        yield
    (folder / f"{name}.json").write_text(json.dumps(rows))
    save_file(gradients, folder / f"{name}.safetensors")


def main(model: str, folder: Path, data: Sequence[str]) -> None:
    torch.set_num_threads(1)
    projections._STEPS = FEW_STEPS
    accelerator = join("cpu")
    assert accelerator is not None
    number = accelerator.process_index
    with recorded(folder, f"begun-{number}"):
        run = begin(model, data, folder / "begun", accelerator=accelerator)
        for report in run.run():
            if number == 1 and report.step == 1:
                run.stop()  # the other one is not told
        assert run.step == 2
    with recorded(folder, f"joined-{number}"):
        assert [report.step for report in begin(model, data, folder / "joined", accelerator=accelerator).run()] == [3, 4]
    divide(model, folder, data, accelerator)
    leave(begin(model, data, folder / "left", accelerator=accelerator), number)


def signalled(given: Sequence[str], presses: int, number: int, said: Path) -> None:
    """Train by the command, told in the first step to stop; what it says goes to a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in processes of the background
    drawn = Trainer._rows

    def rows(self: Trainer, stage: Any) -> Any:
        for _ in range(presses):
            signal.raise_signal(number)
        return drawn(self, stage)

    with said.open("w") as stream, redirect_stderr(stream), mock.patch.object(Trainer, "_rows", rows):
        command(["train", *given])


def divide(model: str, folder: Path, data: Sequence[str], accelerator: Any) -> None:
    """Train with the backbone in parts, as `accelerate launch` is told to by the example in the documentation."""
    told = yaml.safe_load((ROOT / "docs/examples/fsdp.yaml").read_text())["fsdp_config"]
    with mock.patch.dict(os.environ, {key.upper(): str(value) for key, value in told.items()}, ACCELERATE_USE_FSDP="true"):
        run = begin(model, data, folder / "divided", replace(RECIPE, activations="recompute"), accelerator)
    list(run.run())
    values = dict(run.model.backbone.causal_lm.named_parameters())
    parts = {name: value.to_local().numel() / value.numel() for name, value in values.items() if hasattr(value, "to_local")}
    (folder / f"parts-{accelerator.process_index}.json").write_text(json.dumps(parts))


def leave(run: Trainer, number: int) -> None:
    """End without a word in the middle of a step, as if killed; the other process prints what it makes of that."""
    if number:
        trainer.unrolled_losses = lambda *_, **__: os._exit(9)  # type: ignore[assignment]
    try:
        list(run.run())
    except ProcessLostError as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
