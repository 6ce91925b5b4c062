"""Limits on a stranger's folder: it may not run code of its own, be unpickled, or be larger than its header says.

Knows where transformers asks and what a safetensors header says; nothing of models.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_INDEXES = "*.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_inside: list[int] = []  # transformers' setting before each call that is under way
_changing = threading.Lock()


class Stored(NamedTuple):
    """A tensor as the header of its file describes it."""

    shape: tuple[int, ...]
    is_float: bool

    @property
    def size(self) -> int:
        """The size of its largest dimension; 0 if it holds no number."""
        return 0 if 0 in self.shape else max(self.shape, default=1)


@contextmanager
def nothing_asked() -> Iterator[None]:
    """Make transformers refuse, inside, everything that it would ask about on standard input.

    It asks wherever the argument `trust_remote_code` does not reach, as in a tokenizer that is made of two others.
    """
    from transformers import dynamic_module_utils as rules

    with _changing:
        _inside.append(rules.TIME_OUT_REMOTE_CODE)
        rules.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        with _changing:
            before = _inside.pop()
            if not _inside:
                rules.TIME_OUT_REMOTE_CODE = before


def needs_code(source: str | Path, error: BaseException) -> str | None:
    """Return the message for transformers' refusal to run code that comes with `source`; None: `error` is something else."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        f"{source} needs Python code of its own, from its folder, which is not run. If you trust whoever made it, allow it "
        "in Python: HMTModel.from_pretrained(name, trust_remote_code=True). Else choose another model."
    )


def pickled(folder: Path) -> str | None:
    """Return the message for weights in `folder` that are pickles, wholly or in part; None: they are not."""
    names = [name for index in folder.rglob(_INDEXES) for name in _shards(index) if not name.endswith(".safetensors")]
    if not any(folder.glob("*.safetensors")):
        names += [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    return a_pickle(folder, names[0]) if names else None


def a_pickle(folder: Path | str, name: str) -> str:
    """Return the message for weights in a pickle of that name."""
    return (
        f"{folder} holds weights in {name}, a pickle, which can run code and is not loaded. Get them as safetensors, or load "
        "them in the library that wrote them and save them again."
    )


def _shards(index: Path) -> list[str]:
    """Return the files that an index of weights names; none if it cannot be read."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(name) for name in named.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def header(path: Path) -> dict[str, Stored]:
    """Read the shapes of the tensors in a safetensors file, by name; their numbers are not read.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices: dict[str, Any] = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Stored(tuple(tensor.get_shape()), tensor.get_dtype() in _FLOATS) for name, tensor in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
