"""Results as files: JSON for machines, Markdown for people, a PNG. Knows tables and curves, not how they were made."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..errors import InputError


@dataclass(frozen=True)
class Table:
    """Rows under columns; numbers as they were measured, rounded when shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """Curves [(x, y)] by name, or bars where `x` are names."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[Any, float]]]
    logarithmic: bool = False  # the x axis
    bars: bool = False


@dataclass(frozen=True)
class Report:
    """The result of one evaluation, with everything needed to repeat it."""

    name: str  # the name of its files
    title: str
    settings: Mapping[str, Any]  # data, sizes, seeds, adapters
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=lambda: environment())

    def write(self, folder: str | Path) -> list[Path]:
        """Write `NAME.json`, `NAME.md` and, with matplotlib, `NAME.png`. Returns the files written.

        Raises:
            InputError: the folder cannot be written.
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            made = [target / f"{self.name}.json", target / f"{self.name}.md"]
            made[0].write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
            picture = self._draw(target / f"{self.name}.png") if self.figures else None
            made[1].write_text(self.markdown(picture))
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error}. Name another folder.") from error
        return [*made, *([picture] if picture else [])]

    def markdown(self, picture: Path | None = None) -> str:
        """Return the report for people, with a link to its picture."""
        parts = [f"# {self.title}"]
        parts += [f"![{self.title}]({picture.name})"] if picture else []
        parts += [f"## {table.title}\n\n{_markdown(table)}" for table in self.tables]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        for title, values in (("Settings", self.settings), ("Machine", self.environment)):
            parts.append(f"## {title}\n\n" + "\n".join(f"- {key}: {value}" for key, value in values.items()))
        return "\n\n".join(parts) + "\n"

    def _draw(self, target: Path) -> Path | None:
        try:
            from matplotlib.figure import Figure as Canvas
        except ImportError:
            return None
        canvas = Canvas(figsize=(7, 3.4 * len(self.figures)), layout="constrained")
        for axis, figure in zip(canvas.subplots(len(self.figures), 1, squeeze=False)[:, 0], self.figures, strict=True):
            for number, (name, points) in enumerate(figure.curves.items()):
                xs, ys = [x for x, _ in points], [y for _, y in points]
                if figure.bars:
                    width = 0.8 / len(figure.curves)
                    axis.bar([place + number * width for place in range(len(xs))], ys, width, label=name)
                    axis.set_xticks([place + 0.4 - width / 2 for place in range(len(xs))], [str(x) for x in xs])
                else:
                    axis.plot(xs, ys, marker="o", markersize=3, label=name)
            if figure.logarithmic:
                axis.set_xscale("log", base=2)
            axis.set(title=figure.title, xlabel=figure.x, ylabel=figure.y)
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")
        canvas.savefig(target, dpi=120)
        return target


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(shown, row)) + " |" for row in table.rows)])


def shown(value: Any) -> str:
    """Format a number with its significant digits, anything else as text.

    >>> [shown(value) for value in (23.4567, 0.01234, 12345, None, "x")]
    ['23.46', '0.0123', '12,345', '-', 'x']
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def environment() -> dict[str, Any]:
    """Describe the machine, the versions and the date."""
    import transformers

    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hmt-memory": __version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
