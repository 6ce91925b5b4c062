"""The curves of a run as a picture. Knows the log of a run; matplotlib is imported here only."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError, MissingDependencyError
from .trainer import LOG_FILE

_SMOOTHED = 20  # steps a point of the running mean


def plot_run(folder: str | Path, target: str | Path | None = None) -> Path:
    """Draw perplexity and distillation of a run over its tokens, as `training.png` in its folder or as `target`.

    Raises:
        InputError: the run has no log yet.
        MissingDependencyError: matplotlib is not installed.
    """
    path = Path(folder) / LOG_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if not lines:
        raise InputError(f"{path} has no steps yet. Train first.")
    try:
        import matplotlib

        matplotlib.use("agg", force=False)
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib. Run: pip install 'hmt-memory[train]'") from error
    wanted = [name for name in ("perplexity", "distillation", "recall") if any(line[name] is not None for line in lines)]
    figure = Figure(figsize=(8, 2.4 * max(1, len(wanted))), layout="constrained")
    axes = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, wanted, strict=True):
        points = [(line["tokens"], line[name]) for line in lines if line[name] is not None]
        axis.plot(*zip(*points, strict=True), linewidth=0.5, alpha=0.4, color="tab:blue")
        axis.plot([tokens for tokens, _ in points], _running([value for _, value in points]), color="tab:blue")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("tokens read")
    made = Path(target) if target else Path(folder) / "training.png"
    figure.savefig(made, dpi=120)
    return made


def _running(values: list[float]) -> list[float]:
    return [sum(part := values[max(0, index - _SMOOTHED + 1) : index + 1]) / len(part) for index in range(len(values))]
