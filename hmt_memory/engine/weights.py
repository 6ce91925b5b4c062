"""Loading of a backbone's weights from their place (`places`), in a chosen precision.

Knows transformers' loaders; nothing of the network once the weights are there. A GGUF file is converted once to safetensors in
fp32 (lossless), under a folder named by its hash, moved into place atomically.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import BackboneError, ConfigError, HMTError, MissingDependencyError, ModelNotFoundError
from ..locks import ThreadLock
from . import places, trust
from .quantized import kind_of

DTYPES = ("float32", "bfloat16", "float16")  # the values of $HMT_DTYPE
_PLACE_OPTIONS = ("revision", "cache_dir", "token")
_SOURCE_OPTIONS = (*_PLACE_OPTIONS, "trust_remote_code")  # options of configuration and tokenizer alike
_log = logging.getLogger(__name__)
_parsing = ThreadLock()


def load(name: str, *, dtype: str | torch.dtype = "auto", device: str = "auto", **options: Any) -> tuple[Any, Any]:
    """Load a causal language model in eval mode and its tokenizer.

    Args:
        name: `smollm2-135m-instruct`, a `.gguf` file, a local folder, or a hub id (local copy first, then the network).
        dtype: "auto" (see `auto_dtype`), or a torch dtype or its name.
        device: "auto" (see `auto_device`), or a torch device.
        **options: passed to transformers' `from_pretrained`. `trust_remote_code=True` allows a model to run code of its own,
            `use_safetensors=False` to be a pickle; nothing in a file does.

    Raises:
        ModelNotFoundError: nothing has that name; the message says what to install or download.
        BackboneError: the model is not a decoder, or would run code.
    """
    options["trust_remote_code"] = options.get("trust_remote_code") is True
    options.setdefault("use_safetensors", True)
    place = auto_device() if device == "auto" else named_device(device)
    options["dtype"] = auto_dtype(place) if dtype == "auto" else named_dtype(dtype)
    with quiet(), contextlib.nullcontext() if options["trust_remote_code"] else trust.nothing_asked():
        folder = local_folder(name)
        load_model: Callable[..., tuple[Any, Any]] = _from_hub if folder is None else _from_transformers
        model, tokenizer = load_model(folder or name, place=place, **options)
    placed = "device_map" in options or getattr(model, "is_quantized", False)
    return (model if placed else model.to(place)).eval(), tokenizer


def local_folder(name: str) -> Path | None:
    """Return the folder with safetensors for a bundled name, a `.gguf` file or a folder; None: `name` may be a hub id.

    Converts a GGUF file that has not been seen before (tens of seconds for 135M parameters).
    """
    if name.lower() in places.BUNDLED:
        return convert_gguf(places.bundled_file(name))
    path = places.local(name)
    return convert_gguf(path) if path is not None and path.suffix.lower() == ".gguf" else path


def convert_gguf(gguf: Path) -> Path:
    """Convert a GGUF file once, atomically. If two processes race, both convert and the first to finish wins."""
    target = places.converted_folder(gguf)
    if target.is_dir():
        return target
    _log.info("converting %s once to %s", gguf.name, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        places.sweep_killed(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=places.CONVERTING, dir=target.parent))
    except OSError as error:
        raise ConfigError(f"{target.parent} cannot be written: {error}. Point HMT_CACHE to a folder that can.") from error
    try:
        _write_safetensors(gguf, scratch)
        with contextlib.suppress(OSError):  # another process was first
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not target.is_dir():
        raise ModelNotFoundError(f"{target} could not be written. Free disk space, or point HMT_CACHE elsewhere.")
    return target


def _write_safetensors(gguf: Path, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        with tempfile.TemporaryDirectory(prefix=places.CONVERTING, dir=folder.parent) as scratch:
            model, tokenizer = _from_gguf(_alone(gguf, Path(scratch)))
    except ImportError as error:
        raise MissingDependencyError(f"{gguf} takes a package that is not installed: {error}. Install it.") from error
    except Exception as error:  # whatever a parser raises for a damaged file: struct.error, KeyError, ...
        raise BackboneError(f"{gguf} could not be read as a GGUF model: {error}. Check that it downloaded whole.") from error
    try:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder.parent} cannot be written: {error}. Free disk space, or set HMT_CACHE.") from error


def _alone(gguf: Path, folder: Path) -> Path:
    """Put the file alone in a folder: transformers would also read a tokenizer's or an adapter's settings beside it."""
    alone = folder / gguf.name
    try:
        alone.symlink_to(gguf.resolve())
    except OSError:  # Windows allows links to some users only
        shutil.copyfile(gguf, alone)
    return alone


def _from_gguf(gguf: Path) -> tuple[Any, Any]:
    import transformers

    # Releases of transformers that can keep GGUF blocks must be told to unpack them; earlier ones always do.
    keep = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    source = {"gguf_file": gguf.name, "trust_remote_code": False}
    with quiet(), trust.nothing_asked(), contextlib.redirect_stderr(io.StringIO()), _parsed_once():
        load_model = transformers.AutoModelForCausalLM.from_pretrained
        model = load_model(gguf.parent, dtype=torch.float32, **source, **keep)
        return model, transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Keep what a GGUF file and its tensors' names are parsed to: transformers parses them anew for each thing it asks."""
    import gguf

    with _parsing.held():
        parsers = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
        for name, parser in parsers.items():
            setattr(gguf, name, functools.cache(parser))
        try:
            yield
        finally:
            for name, parser in parsers.items():
                setattr(gguf, name, parser)


def _from_hub(name: str, *, place: torch.device, **options: Any) -> tuple[Any, Any]:
    """Load the local copy of a hub id as a folder: transformers asks the network about an id even when it has the files."""
    where = {key: options[key] for key in ("revision", "cache_dir") if key in options}
    folder = places.hub_folder(name, **where)
    if folder is not None:
        with contextlib.suppress(ModelNotFoundError):  # only part of it is there
            return _from_transformers(folder, place=place, **options)
    places.check_hub(name, **{key: options[key] for key in ("revision", "token") if key in options})
    return _from_transformers(name, place=place, **options)


def _from_transformers(source: str | Path, *, place: torch.device, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    where = {key: options[key] for key in _SOURCE_OPTIONS if key in options}
    config = _load_config(source, **where)
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(f"{source} ({config.model_type}) is an encoder-decoder model. HMT needs a decoder-only model.")
    _check_files(source, config, **options)
    if (wanted := options.get("quantization_config", getattr(config, "quantization_config", None))) is not None:
        return _quantized(source, kind_of(wanted), **{"device_map": {"": place}, **options}), load_tokenizer(source, **where)
    try:
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except ValueError as error:
        otherwise: HMTError = BackboneError(f"{source} ({config.model_type}) is not a decoder-only model: {error}")
        raise _refusal(source, error) or otherwise from error
    except Exception as error:  # OSError, RuntimeError, SafetensorError, or anything else for a damaged file
        otherwise = ModelNotFoundError(f"the weights of {source} are incomplete or damaged: {error}. Get them again.")
        raise _refusal(source, error) or otherwise from error
    return model, load_tokenizer(source, **where)


def _quantized(source: str | Path, kind: str, **options: Any) -> Any:
    """Load quantised weights, or quantise them on the way: both put each weight in its place at once."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(source, **options)
    except ImportError as error:
        raise MissingDependencyError(
            f"the weights of {source} ({kind}) take a package that is not installed: {error}. Install it, and accelerate, "
            "or name a model that is not quantised."
        ) from error
    except Exception as error:  # of a library's kernels, of a GPU that is missing, of a damaged file
        otherwise = BackboneError(
            f"the weights of {source} ({kind}) do not load here: {error}. Install what it asks for, or name a model that "
            "is not quantised."
        )
        raise _refusal(source, error) or otherwise from error


def _load_config(source: str | Path, **where: Any) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **where)
    except Exception as error:  # OSError, ValueError, or anything else for a damaged configuration
        raise _refusal(source, error) or ModelNotFoundError(_nothing_there(source)) from error


def load_tokenizer(source: str | Path, kind: str = "AutoTokenizer", **where: Any) -> Any:
    """Load a model's tokenizer.

    Args:
        source: a folder or a hub id.
        kind: its class in transformers; one that is known takes a second, finding it out takes five.
        **where: passed to transformers.

    Raises:
        ModelNotFoundError: it is missing or damaged.
        BackboneError: it would run code.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(source, **where)
    except Exception as error:  # OSError, ValueError, or anything else for a damaged file
        otherwise = ModelNotFoundError(f"the tokenizer of {source} is missing or damaged: {error}. Get it again.")
        raise _refusal(source, error) or otherwise from error


def _refusal(source: str | Path, error: Exception) -> BackboneError | None:
    said = trust.needs_code(source, error)
    if "use_safetensors=True" in str(error):  # the hub has no safetensors
        said = trust.a_pickle(source, "pytorch_model.bin")
    return None if said is None else BackboneError(said)


def _check_files(source: str | Path, config: Any, *, use_safetensors: bool | None, **options: Any) -> None:
    """Raise BackboneError where transformers would load a pickle, or an adapter that brings another model with it."""
    from transformers.utils import find_adapter_config_file

    where = {key: options[key] for key in _PLACE_OPTIONS if key in options}
    if find_adapter_config_file(str(source), **where) is not None:
        raise BackboneError(
            f"{source} has a PEFT adapter beside its weights (adapter_config.json), which is not loaded. Load the adapter in "
            "PEFT, and save what merge_and_unload() returns, or pass it to HMTModel.wrap."
        )
    named = str(getattr(config, "transformers_weights", None) or ".safetensors")
    said = trust.pickled(source) if isinstance(source, Path) else None
    if said is None and not named.endswith((".safetensors", ".safetensors.index.json")):
        said = trust.a_pickle(source, named)
    if use_safetensors is not False and said is not None:
        raise BackboneError(said)


def _nothing_there(source: str | Path) -> str:
    if isinstance(source, Path):
        return f"{source} has no readable config.json: it is not a Hugging Face model folder. Check the path."
    return places.nothing_of(source, "it has no readable config.json")


def auto_device() -> torch.device:
    """Choose CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def auto_dtype(device: torch.device) -> torch.dtype:
    """Return what dtype="auto" means: the precision that $HMT_DTYPE names, else what is fast on `device` (see `fast_dtype`).

    Raises:
        ConfigError: $HMT_DTYPE names no precision that a model can be loaded in.
    """
    chosen = os.environ.get("HMT_DTYPE")
    if not chosen:
        return fast_dtype(device)
    if chosen not in DTYPES:
        raise ConfigError(f"HMT_DTYPE={chosen!r} is not a precision. Set it to float32, bfloat16 or float16, or unset it.")
    return named_dtype(chosen)


def fast_dtype(device: torch.device) -> torch.dtype:
    """Choose bf16 where the hardware multiplies it natively (on a CPU: AVX512-BF16 or AMX), fp16 on older GPUs, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.bfloat16 if any(getattr(torch.cpu, check, bool)() for check in checks) else torch.float32
    return torch.float32


def named_device(device: str) -> torch.device:
    """Return a torch device from its name: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: there is no such device on this machine.
    """
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device={device!r} cannot be used here. Choose auto, or one that torch finds.") from error
    return place


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a torch dtype from itself or its name: "float32", "bfloat16", "float16".

    Raises:
        ConfigError: no floating-point dtype has that name.
    """
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ConfigError(f"dtype={dtype!r} is unknown. Choose auto, float32, bfloat16 or float16.")
    return chosen


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and advice while a model loads; errors are raised all the same."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as hf_logging

    hub_level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            hf_logging.enable_progress_bar()
