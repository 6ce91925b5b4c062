"""A model's outline, from the files that it is loaded from. Knows names and files; imports no torch, so it takes no time.

A model whose outline differs from a stored fingerprint is another model for certain; one that agrees may still be another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import HMTConfig
from ..errors import CheckpointError, ModelNotFoundError
from . import places

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG_FILE = "hmt_config.json"
MEMORY_FILE = "hmt_memory.safetensors"
UNTRAINED = "none"  # asks for no adapter where there is a default one
READING = (  # fields of the configuration that memory depends on
    "segment_length",
    "summary_length",
    "sensory_length",
    "recall_window",
    "recall_dim",
    "memory_tokens",
    "memory_input",
    "mode",
)
READING_IF_SET = ("recalled_tokens", "key_dim")  # fields of later versions; unset, they leave a fingerprint as it was
_BACKBONE = ("model_type", "num_hidden_layers")  # fields that a backbone's own configuration has too


class Sources(NamedTuple):
    """The places that a model is loaded from."""

    name: str  # the backbone's, as checkpoints record it
    adapter: Path | None  # folder of a checkpoint; None: untrained memory


def sources(name: str, adapter: str | Path | None, config: HMTConfig | None = None) -> Sources:
    """Resolve the arguments of `HMTModel.from_pretrained`.

    Args:
        name: of a backbone, or the folder of a checkpoint, which names its backbone.
        adapter: folder of a checkpoint, or "none".
        config: if given, no bundled adapter is taken by default.

    Raises:
        ModelNotFoundError: there is no such folder.
        CheckpointError: the folder is not a checkpoint.
    """
    if adapter is None and (Path(name) / CONFIG_FILE).is_file():
        adapter, name = name, str(read_config(Path(name))["backbone"].get("name"))
    if adapter is None and config is None:
        adapter = places.bundled_adapter(name)
    adapter = None if str(adapter) == UNTRAINED else adapter
    if Path(name).expanduser().exists():
        name = str(Path(name).expanduser().resolve())  # recorded in checkpoints, which are loaded from anywhere
    if adapter is not None and not Path(adapter).is_dir():
        raise ModelNotFoundError(f"there is no adapter folder {adapter}. Check the path.")
    return Sources(name, None if adapter is None else Path(adapter))


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's configuration, with its "config" and its "backbone".

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not an HMT checkpoint: it has no {CONFIG_FILE}.") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Restore the file.") from error
    parts = [content.get(key) if isinstance(content, dict) else None for key in ("config", "backbone")]
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{path} is not an HMT configuration: it lacks 'config' or 'backbone'. Restore the file.")
    return content


def difference(chosen: Sources, stored: Mapping[str, Any]) -> str | None:
    """Say why a model cannot be the one of a stored fingerprint; None: it may be that one.

    Args:
        chosen: where the model is loaded from.
        stored: `Fingerprint.parts`.

    Raises:
        CheckpointError: the adapter is not a checkpoint, or damaged.
    """
    return next(_differences(chosen, stored), None)


def _differences(chosen: Sources, stored: Mapping[str, Any]) -> Iterator[str]:
    for key, value in _backbone(chosen.name).items():
        if value != stored["backbone"].get(key):
            yield f"its {key} is {value}, not {stored['backbone'].get(key)}"
    config = HMTConfig().to_dict() if chosen.adapter is None else read_config(chosen.adapter)["config"]
    for key in (*READING, *READING_IF_SET):
        if config.get(key) is not None and config[key] != stored["config"].get(key):
            yield f"its {key} is {config[key]}, not {stored['config'].get(key)}"
    if chosen.adapter is not None and (digest := _memory(chosen.adapter / MEMORY_FILE)) not in (None, stored["memory"]):
        yield f"its memory was trained otherwise ({digest}, not {stored['memory']})"


def quantization(name: str) -> dict[str, Any] | None:
    """Return what a model's own configuration says of its quantised weights; None: it is not on this machine, or says nothing.

    Raises:
        ModelNotFoundError: nothing has that name.
    """
    said = _configuration(name).get("quantization_config")
    return said if isinstance(said, dict) else None


def weight_count(name: str) -> int | None:
    """Return how many weights a model has, by the headers of its files; None: this machine does not have them whole.

    Raises:
        ModelNotFoundError: nothing has that name.
    """
    from .trust import header

    folder = _folder(name)
    try:
        tensors = [header(path) for path in sorted(folder.glob("model*.safetensors"))] if folder else []
    except (ValueError, OSError):
        return None
    return sum(math.prod(tensor.shape) for stored in tensors for tensor in stored.values()) or None


def _backbone(name: str) -> dict[str, Any]:
    """Return what the configuration of the backbone's weights says, if it is on this machine in plain words."""
    config = _configuration(name)
    return {} if "text_config" in config else {key: config[key] for key in _BACKBONE if config.get(key) is not None}


def _configuration(name: str) -> dict[str, Any]:
    folder = _folder(name)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _folder(name: str) -> Path | None:
    path = places.bundled_file(name) if name.lower() in places.BUNDLED else places.local(name)
    if path is None:
        return places.hub_folder(name)
    return places.converted_folder(path) if path.suffix.lower() == ".gguf" else path


def _memory(path: Path) -> str | None:
    """Return the digest of a checkpoint's memory parameters; None if the file alone does not tell it."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # damaged, which loading will say, or of a type unknown to numpy
        return None
    if any(value.dtype != np.float32 for value in tensors.values()):
        return None
    return digest_of_arrays(sorted(tensors.items()))


def digest_of_arrays(arrays: Iterable[tuple[str, NDArray[np.float32]]]) -> str | None:
    """Compute a digest of named numbers; None if there are none."""
    digest, empty = hashlib.sha256(), True
    for name, values in arrays:
        empty = False
        digest.update(name.encode())
        digest.update(values.tobytes())
    return None if empty else digest.hexdigest()[:16]
