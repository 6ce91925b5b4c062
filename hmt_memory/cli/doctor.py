"""`hmt doctor`: what is installed, what this machine can do, and whether the default model can run. Loads no weights.

`examine` only looks; other functions show what it found. A package that does not import is a finding, never an error.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._version import __version__
from ..config import DEFAULT_MODEL, Engine
from ..engine import outline, places, quantized
from ..errors import HMTError
from ..store.open import SQLITE, default_store, shown

if TYPE_CHECKING:
    import torch

_BROKEN = (ImportError, RuntimeError, OSError)  # errors of a missing, mismatched or half-installed package
_ADVICE = {
    "torch": "needed: pip install torch",
    "transformers": "needed: pip install 'transformers>=5.6,<6'",
    "accelerate": "needed: pip install accelerate",
    "faiss": "for an index over long memories: pip install 'hmt-memory[cpu]', or [gpu]",
    "openvino": "for answers two to three times as fast on a CPU without bf16: pip install 'hmt-memory[cpu]'",
    "peft": "for adapters in the backbone: pip install 'hmt-memory[train]'",
    "triton": "for recall kernels on a GPU: pip install 'hmt-memory[gpu]'",
    "llguidance": "for tool calls and structured output: pip install llguidance",
    "pypdf": "for PDF files: pip install 'hmt-memory[documents]'",
    "python-docx": "for Word files: pip install 'hmt-memory[documents]'",
    "fastapi": "for hmt serve: pip install 'hmt-memory[serve]'",
    "uvicorn": "for hmt serve: pip install 'hmt-memory[serve]'",
    "beautifulsoup4": "for web pages: pip install 'hmt-memory[documents]'",
    "langchain-core": "for the LangChain classes: pip install 'hmt-memory[langchain]'",
    "llama-index-core": "for the LlamaIndex classes: pip install 'hmt-memory[llama-index]'",
}
_NEEDED = ("torch", "transformers", "accelerate")
_IMPORTED = ("torch", "transformers", "faiss")  # have to load; of others, some of which take seconds, the version is looked up
_ROUNDING = 1e-3  # what kernels in fp32 may be off
_TRIED = (20_000, 576, 128, 300)  # rows of an index, their width, the directions of queries, and how many are searched for
_READ_BY = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "gptq": "gptqmodel", "awq": "gptqmodel"}  # quantised weights
_MODEL_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Package:
    """One package. `version` is None where it is missing or does not import; then `advice` says what to do."""

    name: str
    version: str | None
    advice: str = ""


@dataclass(frozen=True)
class Hardware:
    """The choices of torch on this machine."""

    cpu: str  # torch's name of the instruction set
    bf16_native: bool  # whether this CPU multiplies bf16 itself
    device: str
    dtype: str | None  # the meaning of dtype="auto"; None if HMT_DTYPE names no precision
    dtype_from: str  # the origin of `dtype`: "HMT_DTYPE" or "hardware"
    engine: str  # what computes the model where nothing learns, under engine="auto"
    recall: str  # what computes the cross-attention over memory embeddings
    index: str  # what searches very many memories
    threads: int
    advice: str = ""  # what to do about HMT_DTYPE


@dataclass(frozen=True)
class DefaultModel:
    """The bundled model's file and its converted copy. If something is wrong, `advice` says what to do."""

    name: str
    file: str | None
    cache: str | None  # folder of the converted weights, there or to come
    cache_bytes: int  # 0: not converted yet
    advice: str = ""


@dataclass(frozen=True)
class ChosenModel:
    """Another model that is named: what its weights are, and what they still need."""

    name: str
    weights: str


@dataclass(frozen=True)
class Findings:
    """Everything `hmt doctor` shows. `problems` keep the default model from running; there are none when `ok`."""

    packages: tuple[Package, ...]
    hardware: Hardware | None
    model: DefaultModel | None
    chosen: ChosenModel | None  # None: the default model is
    sessions: str  # folder where sessions are kept
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True where the default model can run."""
        return not self.problems


def examine(chosen: str = DEFAULT_MODEL) -> Findings:
    """Examine this installation; takes the time of importing torch and transformers.

    Raises:
        ModelNotFoundError: nothing has the name of the chosen model.
    """
    packages = {name: _package(name, advice) for name, advice in _ADVICE.items()}
    problems = [f"{name}: {packages[name].advice}" for name in _NEEDED if packages[name].version is None]
    has_torch = packages["torch"].version is not None
    model = _default_model() if has_torch else None
    if model is not None and model.advice:
        problems.append(model.advice)
    hardware = _hardware(chosen) if has_torch else None
    if hardware is not None and hardware.advice:
        problems.append(hardware.advice)
    here = (Package("hmt-memory", __version__), Package("python", platform.python_version()), Package("sqlite", SQLITE))
    other = None if chosen.lower() in places.BUNDLED else ChosenModel(chosen, _weights(chosen))
    return Findings((*here, *packages.values()), hardware, model, other, shown(default_store()), tuple(problems))


def print_json(findings: Findings) -> None:
    """Print one JSON object: the fields of `Findings`, and `ok`."""
    print(json.dumps({"ok": findings.ok, **asdict(findings)}, indent=2))


def print_table(findings: Findings) -> None:
    """Print a table, then a sentence for each problem. Lines are folded for a terminal only."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 240)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(findings):
        table.add_row(name, Text(value))
    console.print(table)
    for problem in findings.problems:
        console.print(Text(f"Problem: {problem}", style="red"), soft_wrap=True)
    if findings.ok:
        console.print(Text("The default model can run.", style="green"))


def _rows(findings: Findings) -> list[tuple[str, str]]:
    rows = [(package.name, package.version or package.advice) for package in findings.packages]
    if (hardware := findings.hardware) is not None:
        native = "native" if hardware.bf16_native else "not native"
        rows += [
            ("CPU", f"{hardware.cpu}, bf16 {native}, {hardware.threads} threads"),
            ("device", hardware.device),
            ("precision", _precision(hardware)),
            ("engine", hardware.engine),
            ("recall", hardware.recall),
            ("index", hardware.index),
        ]
    if (model := findings.model) is not None:
        converted = (
            _megabytes(model.cache_bytes) if model.cache_bytes else "will be converted on first use, in about half a minute"
        )
        rows += [
            ("default model", f"{model.name}: {model.file or 'not installed'}"),
            ("converted to", f"{model.cache} ({converted})" if model.cache else "-"),
        ]
    if (chosen := findings.chosen) is not None:
        rows += [("model", f"{chosen.name}: {chosen.weights}")]
    return [*rows, ("sessions in", findings.sessions)]


def _precision(hardware: Hardware) -> str:
    if hardware.dtype is None:
        return hardware.advice
    reason = "set by HMT_DTYPE" if hardware.dtype_from == "HMT_DTYPE" else "fastest here; HMT_DTYPE chooses another"
    return f"{hardware.dtype} ({reason})"


def _package(name: str, advice: str) -> Package:
    try:
        version = str(importlib.import_module(name).__version__) if name in _IMPORTED else metadata.version(name)
    except (ModuleNotFoundError, metadata.PackageNotFoundError) as error:
        whole = error.name == name  # else something that the package itself imports is missing
        return Package(name, None, f"not installed; {advice}" if whole else f"does not load ({error}); {advice}")
    except _BROKEN as error:
        return Package(name, None, f"does not load ({error}); {advice}")
    return Package(name, version)


def _hardware(chosen: str) -> Hardware:
    import torch

    from ..engine import weights

    device = weights.auto_device()
    dtype, advice = _auto_dtype(device)
    return Hardware(
        cpu=torch.backends.cpu.get_cpu_capability(),
        bf16_native=weights.fast_dtype(torch.device("cpu")) == torch.bfloat16,
        device=f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device),
        dtype=dtype,
        dtype_from="HMT_DTYPE" if os.environ.get("HMT_DTYPE") else "hardware",
        engine=_auto_engine(device, dtype, chosen),
        recall=_recall(device),
        index=_index(),
        threads=torch.get_num_threads(),
        advice=advice,
    )


def _auto_dtype(device: torch.device) -> tuple[str | None, str]:
    """Return the precision that dtype="auto" means, or None and what to do if HMT_DTYPE names no precision."""
    from ..engine import weights

    try:
        return str(weights.auto_dtype(device)).removeprefix("torch."), ""
    except HMTError as error:
        return None, str(error)


def _auto_engine(device: torch.device, dtype: str | None, chosen: str) -> str:
    """Say which engine `engine="auto"` means for a model, and why.

    Args:
        device: of the model.
        dtype: its precision; None: nobody knows it.
        chosen: the model's name, or the folder of a checkpoint.
    """
    from ..engine import graphs

    if asked := os.environ.get("HMT_ENGINE"):
        known = get_args(Engine)
        return f"{asked} (set by HMT_ENGINE)" if asked in known else f"HMT_ENGINE={asked!r} is not one of {', '.join(known)}"
    if dtype is None:
        return "-"
    if device.type != "cpu" or dtype != "float32":
        return f"torch (it is the fastest in {dtype} on {device.type})"
    if not graphs.available():
        return "torch (OpenVINO is not installed, which is faster here)"
    return _by_weights(chosen)


def _by_weights(chosen: str) -> str:
    """Say which engine computes a model in fp32 on a CPU, by its weights as far as they are known."""
    from ..engine import checkpoint

    least, most = checkpoint.CONVERTED
    try:
        name = outline.sources(chosen, None).name
        quantized_by, count = outline.quantization(name), outline.weight_count(name)
    except HMTError:  # loading says why
        quantized_by = count = None
    if quantized_by is not None:
        return "torch (the model's weights are quantised)"
    if count is None:
        return f"openvino, with 8-bit weights, if the model has {_millions(least)} to {_millions(most)} weights; else torch"
    if count < least:
        return f"torch (the model has {_millions(count)} weights; OpenVINO is chosen from {_millions(least)} on)"
    if count > most:
        asked = "HMT_ENGINE=openvino takes it, and converting takes much memory"
        return f"torch (the model has {_millions(count)} weights; OpenVINO is chosen up to {_millions(most)}; {asked})"
    return "openvino, with 8-bit weights (fastest here, if it converts the model; HMT_ENGINE=torch computes in fp32)"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} million" if count >= 1e6 else f"{count:,}"


def _recall(device: torch.device) -> str:
    """Say what computes recall there."""
    import torch

    if device.type != "cuda":
        return f"plain torch (it is the fastest on {device.type})"
    drawn = torch.Generator(device).manual_seed(0)
    query, memory = (torch.randn(*shape, generator=drawn, device=device) for shape in ((2, 576), (2, 1000, 576)))
    return _tried(query, memory)


def _tried(query: torch.Tensor, memory: torch.Tensor) -> str:
    """Try Triton's kernels beside plain torch, and say what is to be had."""
    import hmt_kernels

    if reason := hmt_kernels.reason_against(query, memory):
        return f"plain torch ({reason})"
    try:
        found = hmt_kernels.recall(query, memory, backend="triton").output
    except Exception as error:  # of a compiler, a driver or a GPU: the finding
        return f"Triton's kernels do not run here ({error}): pip uninstall triton, then plain torch computes it"
    off = float((found - hmt_kernels.recall(query, memory, backend="naive").output).abs().max())
    if not off <= _ROUNDING:
        return f"Triton's kernels are off by {off:.1e} here: pip uninstall triton, then plain torch computes it"
    return f"Triton's kernels (tried here, {off:.0e} from plain torch)"


def _index() -> str:
    """Try the search by codes, which indexes of very many memories use on a CPU, beside FAISS's scan."""
    from ..store.index import bounded

    count, _, _, k = _TRIED
    try:
        missed = bounded.missed(*_TRIED)
    except ImportError as error:
        return f"plain torch (FAISS does not load: {error})"
    except Exception as error:  # of FAISS, or of what it was built for: the finding
        return f"the search by codes does not run here ({error}): reinstall FAISS"
    if missed:
        return f"the search by codes misses {missed} of the best {k} that FAISS's scan finds here: reinstall FAISS"
    return (
        f"FAISS's scan; codes of 8 bits before it in large ones (tried here: the best {k} of {count:,}, as by the scan alone)"
    )


def _default_model() -> DefaultModel:
    try:
        file = places.bundled_file()
    except HMTError as error:
        return DefaultModel(DEFAULT_MODEL, None, None, 0, str(error))
    cache = places.converted_folder(file)
    return DefaultModel(DEFAULT_MODEL, str(file), str(cache), _size(cache), _cache_advice(cache))


def _weights(name: str) -> str:
    """Say what the weights of a model are, by its configuration alone."""
    said = outline.quantization(name)
    if said is None:
        return "its weights are not quantised, as far as this machine knows"
    kind = quantized.kind_of(said)
    needed = [name for name in ("accelerate", _READ_BY.get(kind.split()[0])) if name and _package(name, "").version is None]
    lacking = f"; they need {' and '.join(needed)}: pip install {' '.join(needed)}" if needed else ""
    return f"quantised weights ({kind}), which torch computes{lacking}"


def _cache_advice(cache: Path) -> str:
    if cache.is_dir():
        lacking = [name for name in _MODEL_FILES if not (cache / name).is_file()]
        return f"{cache} lacks {' and '.join(lacking)}: delete that folder, it is made anew." if lacking else ""
    existing = next(folder for folder in cache.parents if folder.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return "" if writable else f"{existing} cannot be written: point HMT_CACHE to a folder that can."


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
