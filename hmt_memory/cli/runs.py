"""`hmt train` on a terminal: the recipe, progress, results. Knows consoles; the work is in `train/`."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..errors import ConfigError, InputError, MissingDependencyError
from .terminal import Screen

if TYPE_CHECKING:
    from ..train import Recipe, StepReport, Trainer


def find_recipe(name: str) -> Recipe:
    """Return a preset by name, or a recipe from a JSON file.

    Raises:
        ConfigError: there is neither; the message lists the presets.
    """
    from ..train import PRESETS, Recipe

    if name in PRESETS:
        return PRESETS[name]
    try:
        content = json.loads(Path(name).expanduser().read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no recipe {name!r}. Choose {', '.join(PRESETS)}, or name a JSON file.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{name} is not a JSON file: {error}. hmt train --show-recipe prints a recipe.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name} is not a recipe. hmt train --show-recipe prints one.")
    return Recipe.from_dict(content)


def changed(recipe: Recipe, *, mode: str, seed: int | None, scale: float) -> Recipe:
    """Apply the options of the command line to a recipe.

    Args:
        recipe: the recipe to change.
        mode: the kind of memory to train.
        seed: another seed; None: the recipe's own.
        scale: the share of each stage's steps to take.
    """
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * scale))) for stage in recipe.stages)
    result = replace(recipe, stages=stages, seed=recipe.seed if seed is None else seed)
    return result.in_mode(mode)  # type: ignore[arg-type]


def train(
    sources: Sequence[str],
    folder: Path,
    screen: Screen,
    *,
    recipe: Recipe,
    start: Path | None,
    exercises: Sequence[Path] = (),
    compiled: bool,
    model: str,
    dtype: str,
    device: str,
) -> None:
    """Begin or resume a run, show it, and say what it left.

    Args:
        sources: names of the training text.
        folder: holds everything about the run.
        screen: where progress and results go.
        recipe: the stages and rates of the run.
        start: an adapter to go on from.
        exercises: files of exercises in answering from notes.
        compiled: compile the model's blocks first.
        model: a folder or the name of a model.
        dtype: the precision of the backbone.
        device: where the model runs.
    """
    from ..engine.compiled import compile_blocks
    from ..train import Trainer, open_sources, prepare
    from ..train.devices import join
    from ..train.exercises import Exercises, from_file
    from ..train.plot import plot_run

    accelerator = join(device)
    if accelerator is not None and not accelerator.is_main_process:
        screen = Screen(Console(quiet=True), StringIO())  # one of them speaks
    with screen.notes.status(f"loading {model} and the training text"):
        loaded = prepare(model, recipe, start=start, dtype=dtype, device=device, accelerator=accelerator)
        if compiled:
            compile_blocks(loaded.backbone)
        documents = open_sources(sources, loaded.backbone.encode, seed=recipe.seed)
        trainer = Trainer(
            loaded,
            recipe,
            documents,
            folder,
            exercises=Exercises([exercise for path in exercises for exercise in from_file(path)]),
            sources=[*sources, *map(str, exercises)],
            start=start,
            accelerator=accelerator,
        )
    if trainer.step:
        screen.note(f"Resumed at step {trainer.step} of {recipe.steps}.")
    screen.note(f"{trainer.trainable:,} parameters learn, in {recipe.steps} steps.")
    last = _show(trainer, screen, alone=accelerator is None)
    if accelerator is None or accelerator.is_main_process:
        with contextlib.suppress(MissingDependencyError):
            plot_run(folder)
    if last is not None:
        shown = "" if last.perplexity is None else f", perplexity {last.perplexity:.2f} on the last step"
        screen.note(f"{last.tokens:,} tokens in {timedelta(seconds=round(last.seconds))}{shown}.")
    screen.out.write(f"{folder / 'adapter'}\n")


def _show(trainer: Trainer, screen: Screen, *, alone: bool) -> StepReport | None:
    last = None
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
    with _stopping(trainer, screen, alone=alone), Progress(*columns, console=screen.notes, transient=True) as progress:
        task = progress.add_task("training", total=trainer.recipe.steps, completed=trainer.step, shown="")
        for last in trainer.run():
            progress.update(task, completed=last.step, shown=_line(last, trainer.recipe))
    return last


@contextlib.contextmanager
def _stopping(trainer: Trainer, screen: Screen, *, alone: bool) -> Iterator[None]:
    """Let Ctrl-C, or whoever ends this process, end the run with a checkpoint.

    Args:
        trainer: is stopped after its step.
        screen: says so.
        alone: whether there is no launcher, which sends such signals again: then the second one ends the process at once.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        trainer.stop()
        if len(received) == 1:
            again = " Ctrl-C again stops at once." if alone else ""
            screen.note(f"Stopping after this step.{again}")
        elif alone:
            raise KeyboardInterrupt

    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if trainer.step < trainer.recipe.steps:
        screen.note(f"Stopped after step {trainer.step} of {trainer.recipe.steps}. The same command goes on from there.")
        raise typer.Exit(128 + received[0] if received else 0)


def _line(report: StepReport, recipe: Recipe) -> str:
    parts = [f"loss {report.loss:.3f}"]
    if report.perplexity is not None:
        parts.append(f"PPL {report.perplexity:.2f}")
    left = report.seconds / report.step * (recipe.steps - report.step)
    return " · ".join([*parts, f"{report.tokens_per_second:.0f} tokens/s", f"{timedelta(seconds=round(left))} left"])


def check_sources(sources: Sequence[str]) -> None:
    """Raise InputError for no sources."""
    if not sources:
        raise InputError("name the training text: files, folders, .jsonl files, or hf:NAME.")
