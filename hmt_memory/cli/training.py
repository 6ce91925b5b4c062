"""`hmt train`: its arguments."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import DEFAULT_MODEL, Dtype
from .terminal import Screen


class TrainMode(str, Enum):
    """The values of --mode."""

    hmt = "hmt"
    rmt = "rmt"
    plain = "plain"


def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Text files, .jsonl files, folders of them, or one hf:NAME[:SPLIT[:COLUMN]]."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: log, checkpoints and, at the end, the adapter.")] = Path(
        "hmt-run"
    ),
    recipe: Annotated[str, typer.Option(help="A preset (paper, paper-lora, compact, notes) or a JSON file.")] = "compact",
    mode: Annotated[
        TrainMode, typer.Option(help="rmt, plain: the twin without recall or memory, to compare with.")
    ] = TrainMode.hmt,
    scale: Annotated[float, typer.Option(min=0.0001, help="This share of the recipe's steps.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.", show_default=False)] = None,
    start: Annotated[
        Path | None, typer.Option(help="An adapter to go on from, instead of untrained memory.", show_default=False)
    ] = None,
    exercises: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL files of exercises in answering from notes, for recipes that have such.", show_default=False),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: a slow first step, then about twice as fast on a CPU.")
    ] = False,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the recipe as JSON and stop.")] = False,
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Train memory for a model; LoRA or full fine-tune. If it is stopped at any moment, the same command goes on."""
    from . import runs

    chosen = runs.changed(runs.find_recipe(recipe), mode=mode.value, seed=seed, scale=scale)
    if show_recipe:
        print(chosen.to_json())
        return
    runs.check_sources(sources or [])
    screen = Screen.standard()
    runs.train(
        sources or [],
        out,
        screen,
        recipe=chosen,
        start=start,
        exercises=exercises or [],
        compiled=compiled,
        model=model,
        dtype=dtype.value,
        device=device,
    )
