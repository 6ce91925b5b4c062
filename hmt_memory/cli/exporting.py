"""`hmt export`: the weights that answer, for engines that know no adapter of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .models import load_model
from .options import DEFAULT_MODEL, Dtype
from .terminal import Screen


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the weights.")],
    model: options.Name = DEFAULT_MODEL,
    adapter: options.Adapter = None,
    dtype: options.Precision = Dtype.auto,
) -> None:
    """Write a model with its adapter merged, as a Hugging Face folder that vLLM and others load."""
    screen = Screen.standard()
    loaded = load_model(model, screen, adapter=adapter, dtype=dtype.value, device="cpu", engine="torch")
    loaded.save_merged(folder)
    precision = str(loaded.backbone.dtype).removeprefix("torch.")
    screen.note(f"{folder} holds {loaded.backbone.name} in {precision}. Serve it: vllm serve {folder} --enable-prompt-embeds")
