"""`hmt bench`: how fast the user's own machine and model are."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .options import DEFAULT_MODEL, Dtype
from .terminal import Screen


class Against(str, Enum):
    """What else may compute the same."""

    llama_cpp = "llama.cpp"


def bench(
    history: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Answer after so many tokens; may be repeated. 1,000, 10,000 and 100,000 if left out."),
    ] = None,
    segments: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Recall from so many segments; may be repeated. 10,000 if left out; 100,000 take 1 GB."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Medians over so many.")] = 3,
    against: Annotated[
        Against | None, typer.Option(help="Let this compute the same .gguf file, too, in turns.", show_default=False)
    ] = None,
    adapter: options.Adapter = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a report.", show_default=False)] = None,
    as_json: options.Json = False,
    model: options.Name = DEFAULT_MODEL,
    dtype: options.Precision = Dtype.auto,
    device: options.Device = "auto",
) -> None:
    """Measure this machine: loading, reading, the first word after long histories, writing, recall, memory. Takes minutes."""
    from ..evaluate import speed
    from ..evaluate.answers import Loading
    from ..evaluate.llama_cpp import LlamaCpp, file_of
    from ..evaluate.report import shown
    from .output import print_json, print_table

    screen = Screen.standard()
    given: dict[str, Any] = {"adapter": adapter, "dtype": dtype.value, "device": device}
    usual = speed.Plan()
    plan = speed.Plan(tuple(history or usual.history), tuple(segments or usual.segments), rounds)
    rival = None
    if against is not None:
        LlamaCpp.check()
        rival = partial(LlamaCpp, file_of(model))
    settings = {} if against is None else {"against": against.value}
    report = speed.measure(Loading(model, given), plan, against=rival, settings=settings, progress=screen.note)
    (table,) = report.tables
    if as_json:
        rows = [{"what": what, "value": value, "unit": unit} for what, value, unit in table.rows]
        print_json({"measured": rows, "settings": report.settings, "machine": report.environment}, screen)
    else:
        print_table(table.columns, [[what, shown(value), unit] for what, value, unit in table.rows], screen)
    for path in report.write(out) if out else ():
        screen.note(str(path))
