"""The checkpoint folder: `hmt_config.json`, `hmt_memory.safetensors`, optional `backbone_adapter/` (PEFT). Never a pickle.

Knows files and the names in them; the backbone's own weights are never part of it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from .._version import __version__
from ..config import Engine, HMTConfig
from ..errors import CheckpointError, ConfigError, HMTError, MissingDependencyError, ModelNotFoundError
from ..files import replacing
from . import adapter, deferred, places, trust, weights
from .backbone import Backbone
from .cell import MemoryCell
from .outline import CONFIG_FILE, MEMORY_FILE, read_config, sources

_Model = TypeVar("_Model", bound=MemoryCell)

ADAPTER_FOLDER = "backbone_adapter"
CONVERTED = (10_000_000, 2_000_000_000)  # weights of a backbone that is converted unasked: few win nothing, many take memory
_log = logging.getLogger(__name__)


def save(model: MemoryCell, folder: Path) -> None:
    """Write a checkpoint into `folder`: each file and the adapter's folder replaced whole, the configuration last.

    Raises:
        CheckpointError: `folder` is a file.
    """
    from safetensors.torch import save as to_bytes

    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. Name a folder for the checkpoint.")
    folder.mkdir(parents=True, exist_ok=True)
    _save_adapter(model.backbone, folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.memory_parameters().items()}
    _replace(folder / MEMORY_FILE, to_bytes(tensors))
    content = {
        "hmt_memory_version": __version__,
        "config": model.config.to_dict(),
        "backbone": model.backbone.identity(),
    }
    _replace(folder / CONFIG_FILE, json.dumps(content, indent=2).encode())


def _save_adapter(backbone: Backbone, folder: Path) -> None:
    """Replace the adapter folder by the backbone's adapter, merged or active in PEFT; remove it if there is none."""
    target = folder / ADAPTER_FOLDER
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder) as scratch:
        source = _written_adapter(backbone, Path(scratch) / "new")
        if target.exists():
            target.rename(Path(scratch) / "old")
        if source is not None:
            source.rename(target)


def _written_adapter(backbone: Backbone, folder: Path) -> Path | None:
    if backbone.merged is not None:
        folder.mkdir()
        for name, content in backbone.merged.files.items():
            (folder / name).write_bytes(content)
        return folder
    if not backbone.has_adapter:
        return None
    name = backbone.causal_lm.active_adapter
    backbone.causal_lm.save_pretrained(folder, selected_adapters=[name])
    written = folder / name if (folder / name).is_dir() else folder  # PEFT nests every adapter but the one called "default"
    _without_paths(written, backbone.name)
    return written


def _without_paths(folder: Path, backbone: str) -> None:
    """Name the backbone instead of its path on this machine, which PEFT records, in a template of a model card too."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["base_model_name_or_path"] = backbone
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_model(
    build: type[_Model],
    name: str,
    *,
    adapter: str | Path | None,
    config: HMTConfig | None,
    dtype: str | torch.dtype,
    device: str,
    merge: bool,
    engine: str,
    options: Mapping[str, Any],
) -> _Model:
    """Load a model of class `build`.

    Args:
        build: a subclass of `MemoryCell`.
        name: as in `HMTModel.from_pretrained`, like all others.
        adapter: folder of a checkpoint, or "none".
        config: sizes for an untrained model.
        dtype: of the backbone.
        device: of the model.
        merge: whether LoRA is merged into the weights.
        engine: what computes where nothing learns.
        options: passed to transformers.

    Raises:
        ModelNotFoundError: nothing has that name.
        BackboneError: the model is not a causal decoder, or would run code.
        CheckpointError: the checkpoint is damaged or for another backbone.
        ConfigError: a value is impossible, or the sizes do not fit the backbone.
    """
    name, adapter = sources(name, adapter, config)
    stored = None if adapter is None else _checked(adapter)
    choice = _Choice(_known_engine(engine), dtype, device)
    lora = None if adapter is None or not (adapter / ADAPTER_FOLDER).is_dir() else adapter / ADAPTER_FOLDER
    folder = choice.converted_from(name) if merge and not options else None
    origin = None if folder is None else deferred.Origin.of(folder, lora, choice.bits)
    backbone: Backbone | None = None if origin is None else deferred.find(name, origin, within=choice.sizes)
    if backbone is None:
        causal_lm, tokenizer = _load_backbone(name, adapter, dtype=dtype, device=device, **options)
        causal_lm.requires_grad_(False)
        backbone = Backbone(causal_lm, tokenizer, name=name)
        if adapter is not None and stored is not None:
            _check_backbone(adapter, stored.backbone, backbone.identity())
        if lora is not None and not (merge and _merged(backbone, lora)):
            backbone = Backbone(_with_peft(causal_lm, lora), tokenizer, name=name)
        choice.make(backbone)
        if origin is not None:
            deferred.keep(backbone, origin)
    elif adapter is not None and stored is not None:
        _check_backbone(adapter, stored.backbone, backbone.identity())
    if adapter is None or stored is None:
        return build(backbone, config or HMTConfig()).eval()
    model = build(backbone, stored.config)
    load_memory(model, adapter)
    return model.eval()


def _known_engine(engine: str) -> str:
    if engine == "auto":
        engine = os.environ.get("HMT_ENGINE") or "auto"
    if engine not in get_args(Engine):
        raise ConfigError(f"engine={engine!r} is not one of {', '.join(get_args(Engine))}.")
    return engine


class _Choice(NamedTuple):
    """What computes a model: OpenVINO where it is asked for, or where nobody chose and it is the fastest, in fp32 on a CPU."""

    engine: str
    dtype: str | torch.dtype
    device: str

    @property
    def sizes(self) -> tuple[int, int]:
        """How many weights a backbone that OpenVINO runs has, at least and at most."""
        return CONVERTED if self.engine == "auto" else (0, sys.maxsize)

    @property
    def bits(self) -> int:
        """The precision of the weights that OpenVINO computes with."""
        return 4 if self.engine == "openvino-4bit" else 8

    def make(self, backbone: Backbone) -> None:
        """Give a backbone its engine."""
        if self.engine.startswith("openvino"):
            with weights.quiet():
                backbone.use_openvino(self.bits)
        elif self.engine == "auto" and (self.dtype, backbone.device.type, backbone.dtype) == ("auto", "cpu", torch.float32):
            if not self.sizes[0] <= sum(value.numel() for value in backbone.parameters()) <= self.sizes[1]:
                return
            try:
                with weights.quiet():
                    backbone.use_openvino()
            except HMTError as error:
                _log.info("torch computes: %s", error)

    def converted_from(self, name: str) -> Path | None:
        """Return the folder of the weights that OpenVINO is to run; None: it runs none, or nothing has that name here."""
        if self.engine == "torch" or (self.engine == "auto" and self.dtype != "auto"):
            return None
        device = weights.auto_device() if self.device == "auto" else weights.named_device(self.device)
        dtype = weights.auto_dtype(device) if self.dtype == "auto" else weights.named_dtype(self.dtype)
        if (device.type, dtype) != ("cpu", torch.float32):
            return None
        try:
            return weights.local_folder(name) or places.hub_folder(name)
        except HMTError:  # loading says why
            return None


class _Stored(NamedTuple):
    """A checkpoint's own description, as far as it can be trusted before a model is made from it."""

    config: HMTConfig
    backbone: Mapping[str, Any]


def _checked(folder: Path) -> _Stored:
    """Read a checkpoint's configuration; check its sizes against its tensors, and that its adapter is only tensors.

    Raises:
        CheckpointError: the checkpoint is damaged, or the sizes differ.
        ConfigError: a value is impossible.
    """
    content = read_config(folder)
    config = _known(folder / CONFIG_FILE, content["config"])
    _check_sizes(folder / MEMORY_FILE, config)
    if (files := folder / ADAPTER_FOLDER).is_dir():
        try:
            adapter.check(files)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"the adapter in {files} does not load: {error}") from error
    return _Stored(config, content["backbone"])


def _known(path: Path, values: Mapping[str, Any]) -> HMTConfig:
    """Build the configuration in a file. Fields that another version has added are named in a warning and left out."""
    fields = {field.name for field in dataclasses.fields(HMTConfig)}
    if unknown := sorted(set(values) - fields):
        warnings.warn(
            f"{path}: hmt-memory {__version__} does not know {', '.join(unknown)} and loads without. Update hmt-memory.",
            stacklevel=2,
        )
    return HMTConfig.from_dict({name: value for name, value in values.items() if name in fields})


def _check_sizes(path: Path, config: HMTConfig) -> None:
    """Raise CheckpointError if the configuration would make larger parameters than the file holds."""
    tensors = _header(path)
    width = tensors["summary_prompt"].shape[-1:] if "summary_prompt" in tensors else (0,)
    rows = (config.recall_dim or width[0],) if width else (0,)
    expected = {"summary_prompt": (1,), "initial_memory": (config.memory_tokens,)}
    expected |= {f"recall.{name}.weight": rows for name in ("query", "key")}
    _compare(path, tensors, {name: (*shape, *width) for name, shape in expected.items()})


def _load_backbone(name: str, adapter: str | Path | None, **options: Any) -> tuple[Any, Any]:
    try:
        return weights.load(name, **options)
    except ModelNotFoundError as error:
        if adapter is None:
            raise
        hint = f"If {adapter} was made for a model that lies elsewhere, name it: from_pretrained(model, adapter=folder)."
        raise ModelNotFoundError(f"{error} {hint}") from error


def load_memory(model: MemoryCell, folder: Path) -> None:
    """Fill the memory parameters from `folder`.

    Raises:
        CheckpointError: the file is missing, damaged, or holds other tensors than this configuration has.
    """
    path, parameters = folder / MEMORY_FILE, model.memory_parameters()
    header = _header(path)
    _compare(path, header, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
    if foreign := sorted(set(header) - set(parameters)):
        raise CheckpointError(f"{path} holds unknown tensors {', '.join(foreign)}. Is it an HMT checkpoint?")
    tensors = _read_tensors(path)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity. Use an earlier checkpoint.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _compare(path: Path, tensors: Mapping[str, trust.Stored], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless a file holds these tensors, by name and shape; it may hold others."""
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"{path} lacks {', '.join(missing)}. Save the checkpoint again.")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} is {tensors[name].shape}, the configuration says {shape}. The two files do not belong "
                "together."
            )
        if not tensors[name].is_float:
            raise CheckpointError(f"{path}: {name} holds no floating-point numbers. Save the checkpoint again.")


def _header(path: Path) -> dict[str, trust.Stored]:
    try:
        return trust.header(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {MEMORY_FILE}. Save the checkpoint again.") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}. Restore the file.") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Restore the file.") from error


def _check_backbone(folder: Path, stored: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Raise CheckpointError for another backbone. One that is quantised otherwise has other numbers and is no other one."""
    alike = stored.get("quantization") == actual.get("quantization")
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", *(["weights_digest"] if alike else [])):
        if stored.get(key) != actual[key] and None not in (stored.get(key), actual[key]):
            raise CheckpointError(
                f"{folder} was made for {stored.get('name')}: its {key} is {stored.get(key)}, that of {actual['name']} is "
                f"{actual[key]}. Load the backbone it was made for."
            )


def _merged(backbone: Backbone, files: Path) -> bool:
    try:
        return backbone.merge_lora(files)
    except (ValueError, OSError, KeyError, AttributeError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"the LoRA adapter in {files} does not load: {error}") from error


def _with_peft(causal_lm: Any, folder: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependencyError(
            "this checkpoint has a PEFT adapter for its backbone. Run: pip install 'hmt-memory[train]'"
        ) from error
    try:
        # In the backbone's own precision: PEFT would compute bf16 adapters in fp32, a fifth slower.
        with without_advice():
            return PeftModel.from_pretrained(causal_lm, str(folder), autocast_adapter_dtype=False)
    except Exception as error:  # ValueError, KeyError, RuntimeError, TypeError, whatever PEFT raises for a damaged file
        raise CheckpointError(f"the PEFT adapter in {folder} does not load: {error}") from error


@contextmanager
def without_advice() -> Iterator[None]:
    """Hide the FutureWarning that PEFT raises by asking transformers for a renamed attribute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _replace(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
