"""A backbone with its adapter merged, as a Hugging Face model folder that other engines load. Knows files; no memory."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

from ..errors import BackboneError
from .backbone import Backbone
from .checkpoint import without_advice
from .weights import quiet


def export(backbone: Backbone, folder: Path) -> None:
    """Write the weights with an adapter merged, the configuration and the tokenizer; the folder is there whole or not at all.

    Raises:
        BackboneError: the folder holds something, cannot be written, or the adapter cannot be merged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BackboneError(f"{folder} holds something already. Name a new folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=folder.parent) as scratch:
            written = Path(scratch) / "model"
            with quiet():
                _merged(backbone).save(written)
            shutil.rmtree(folder, ignore_errors=True)  # an empty one
            written.rename(folder)
    except OSError as error:
        raise BackboneError(f"{folder} cannot be written: {error}. Free disk space, or name another folder.") from error


def _merged(backbone: Backbone) -> Backbone:
    if not backbone.has_adapter:
        return backbone
    try:
        with without_advice():
            plain = copy.deepcopy(backbone.causal_lm).merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise BackboneError(f"the adapter of {backbone.name} cannot be merged: {error}. Train it as LoRA.") from error
    return Backbone(plain, backbone.tokenizer, name=backbone.name)
