"""A backbone run by OpenVINO on a CPU: its body with the key-value cache inside, and its head, with 8-bit weights (extension).

Writing is bound by the bytes of the weights, and these are a quarter of those of fp32, or with 4 bits in the body an eighth.
Torch stays the truth: what a conversion computes is compared with it, and where they differ there is no engine. A conversion is
kept on disk, under a name made from the weights and the versions. Knows OpenVINO and a traced body; no Hugging Face name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BackboneError, MissingDependencyError
from .graphs import available, body_graph, head_graph, library, nothing
from .places import CONVERTING, cache_folder, sweep_killed
from .traced import TracedBody

_VERSION = 4  # of the conversion
_UNUSED_SECONDS = 30 * 24 * 3600  # after which a conversion is removed when another is made
_GRAPHS, _SAMPLE = ("body.xml", "head.xml"), "sample.npz"
_DAMAGES = (RuntimeError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of graphs, and of arrays
_AT_ONCE = 2  # positions of two rows that are compared: weights are laid out anew, in 100 MB, for 8 to 80 positions
_ALIKE = {8: 0.98, 4: 0.9}  # the least cosine of hidden states with those of torch, by the bits of weights
_SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": "f16"}
_log = logging.getLogger(__name__)


def _require() -> None:
    if not available():
        raise MissingDependencyError("this engine needs OpenVINO. Run: pip install 'hmt-memory[cpu]'")


class _Damaged(BackboneError):
    """Files of a conversion cannot be read."""


class OpenVinoEngine:
    """The body and the head of one backbone, compiled for this CPU.

    Args:
        folder: of a conversion.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        BackboneError: it computes something else than torch did, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        _require()
        self.folder = folder
        try:
            with np.load(folder / _SAMPLE) as kept:
                sample, expected = (torch.from_numpy(kept[name]) for name in ("sample", "expected"))
                layers, self.bits = kept["layers"].tolist(), int(kept["bits"])
            self._body, self._head = _compiled(folder)
        except _DAMAGES as error:
            raise _Damaged(f"the conversion in {folder} is damaged: {error}. Remove the folder.") from error
        with contextlib.suppress(OSError):
            os.utime(folder)  # it was used
        self._idle: list[Any] = []  # requests that hold nothing that anybody waits for
        self._position_bytes = 4 * sum(heads * wide for heads, wide in layers)
        self._compare(sample, expected)

    @property
    def name(self) -> str:
        """The name that chooses it."""
        return "openvino" if self.bits == 8 else f"openvino-{self.bits}bit"

    @classmethod
    def convert(
        cls,
        body: TracedBody,
        layers: Sequence[tuple[int, int]],
        head: tuple[Tensor, Tensor | None],
        sample: Tensor,
        *,
        bits: int = 8,
    ) -> OpenVinoEngine:
        """Convert a body and a head, unless that was done before.

        Args:
            body: the body as a function of tensors alone.
            layers: heads and width of keys and values, of each layer in turn.
            head: the weights [vocab, d] of the head and its bias.
            sample: [2, t, d] input embeddings of some tokens, by which it is compared with torch.
            bits: of the body's weights, 8 or 4.

        Raises:
            MissingDependencyError: OpenVINO is not installed.
            BackboneError: `bits` is another number, OpenVINO does not convert this body or computes something else than torch,
                or its files cannot be written.
        """
        _require()
        if bits not in _ALIKE:
            raise BackboneError(f"bits={bits} must be 8 or 4.")
        folder = cache_folder() / f"openvino-{_digest(body, head, bits)}"
        try:
            return cls(_converted(folder, body, layers, head, sample, bits))
        except _Damaged:
            shutil.rmtree(folder, ignore_errors=True)
            return cls(_converted(folder, body, layers, head, sample, bits))

    def body(self, embeddings: Tensor) -> Tensor:
        """Turn input embeddings [B, T, d] into hidden states [B, T, d]."""
        hidden, kept = self.extend(embeddings, None)
        self._idle.append(kept.request)
        return hidden

    def extend(self, embeddings: Tensor, kept: Kept | None) -> tuple[Tensor, Kept]:
        """Append [B, T, d] to what is kept. Returns hidden states [B, T, d] and what is kept then; the old one is spent."""
        kept = self._fresh() if kept is None else kept
        rows = np.arange(len(embeddings), dtype=np.int32) if kept.chosen is None else kept.chosen
        pads = np.zeros(len(embeddings), np.int64) if kept.pads is None else kept.pads[rows]
        kept.chosen, kept.pads = None, None if kept.pads is None else pads
        kept.nbytes = len(embeddings) * (kept.nbytes // max(1, kept.rows) + embeddings.shape[1] * self._position_bytes)
        kept.rows = len(embeddings)
        given = {"embeddings": np.ascontiguousarray(embeddings.detach().float().numpy()), "rows": rows, "pads": pads}
        return torch.from_numpy(kept.request.infer(given)[0].copy()), kept

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., d] into logits [..., vocab]."""
        flat = hidden.detach().float().reshape(-1, hidden.shape[-1])
        logits = self._head.create_infer_request().infer({"hidden": np.ascontiguousarray(flat.numpy())})[0]
        return torch.from_numpy(logits.copy()).reshape(*hidden.shape[:-1], -1)

    def _fresh(self) -> Kept:
        with contextlib.suppress(IndexError):  # another thread took it
            request = self._idle.pop()
            request.reset_state()
            return Kept(request, self._body)
        return Kept(self._body.create_infer_request(), self._body)

    @torch.no_grad()
    def _compare(self, sample: Tensor, expected: Tensor) -> None:
        """Compare with torch what comes of two rows, a few positions behind those before."""
        hidden, kept = [], None
        for given in sample.split(_AT_ONCE, dim=1):
            made, kept = self.extend(given, kept)
            hidden.append(made)
        actual = torch.cat(hidden, dim=1)
        alike = torch.nn.functional.cosine_similarity(expected.flatten(1), actual.flatten(1)).min()
        if not alike >= _ALIKE[self.bits]:
            raise BackboneError(f"OpenVINO computes something else than torch (cosine {alike:.3f}). Use engine='torch'.")


class Kept:
    """The keys and values of some rows, in a request that holds them. A copy holds them by itself.

    Args:
        request: of the compiled body.
        compiled: makes another one for a copy.
    """

    def __init__(self, request: Any, compiled: Any) -> None:
        self.request, self._compiled = request, compiled
        self.rows = self.nbytes = 0  # how many, and the bytes of all their keys and values in fp32
        self.chosen: np.ndarray | None = None  # [n] the rows that the next input continues; None: each one
        self.pads: np.ndarray | None = None  # [rows] how many of the first positions are padding; None: none

    def repeat(self, rows: int) -> Kept:
        """Let several rows continue the only one."""
        return self.choose([0] * rows)

    def choose(self, rows: Sequence[int]) -> Kept:
        """Let the next input continue these rows alone."""
        self.chosen = np.array(rows, np.int32)
        return self

    def __deepcopy__(self, _: Mapping[int, Any]) -> Kept:
        copied = Kept(self._compiled.create_infer_request(), self._compiled)
        held = {state.name: state.state for state in self.request.query_state()}
        for state in copied.request.query_state():
            state.state = held[state.name]
        copied.rows, copied.nbytes, copied.chosen, copied.pads = self.rows, self.nbytes, self.chosen, self.pads
        return copied

    @classmethod
    def joined(cls, parts: Sequence[Kept]) -> Kept:
        """Return what holds the keys and values of several rows that were held each by itself, padded on the left."""
        whole = cls(parts[0]._compiled.create_infer_request(), parts[0]._compiled)
        held = [{state.name: state.state.data for state in part.request.query_state()} for part in parts]
        lengths = [next(iter(states.values())).shape[2] for states in held]
        pads = [max(lengths) - length for length in lengths]
        for state in whole.request.query_state():
            rows = [np.pad(own[state.name], ((0, 0), (0, 0), (pad, 0), (0, 0))) for own, pad in zip(held, pads, strict=True)]
            state.state = library().Tensor(np.concatenate(rows))
        whole.rows, whole.pads = len(parts), np.array(pads)
        whole.nbytes = len(parts) * max(part.nbytes for part in parts)
        return whole

    def part(self, row: int) -> Kept:
        """Return what holds a row by itself."""
        own = Kept(self._compiled.create_infer_request(), self._compiled)
        pad = 0 if self.pads is None else int(self.pads[row])
        held = {state.name: state.state.data for state in self.request.query_state()}
        for state in own.request.query_state():
            state.state = library().Tensor(np.ascontiguousarray(held[state.name][row : row + 1, :, pad:]))
        length = next(iter(held.values())).shape[2]
        own.rows, own.nbytes = 1, self.nbytes // max(1, self.rows) * (length - pad) // max(1, length)
        return own

    def crop(self, positions: int) -> None:
        """Remove the last positions.

        Args:
            positions: how many, as a negative number.
        """
        for state in self.request.query_state():
            held = state.state.data
            state.state = library().Tensor(np.ascontiguousarray(held[:, :, :positions]))
        self.nbytes = self.nbytes * (held.shape[2] + positions) // held.shape[2]


# --- conversion ---------------------------------------------------------------------------------------------------------


def _compiled(folder: Path) -> list[Any]:
    # What is compiled is kept as well: that takes seconds.
    settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "CACHE_DIR": str(folder / "compiled")}
    core = library().Core()
    return [core.compile_model(folder / name, "CPU", settings) for name in _GRAPHS]


@torch.no_grad()
def _converted(
    folder: Path,
    body: TracedBody,
    layers: Sequence[tuple[int, int]],
    head: tuple[Tensor, Tensor | None],
    sample: Tensor,
    bits: int,
) -> Path:
    """Convert the body and the head into a folder, unless it is there. Returns it."""
    if folder.is_dir():
        return folder
    _log.info("converting the model for OpenVINO once, to %s", folder)
    models = (body_graph(body, layers, sample.shape[-1], bits), head_graph(*head))
    expected = body(sample, torch.zeros(2, dtype=torch.long), *nothing(layers, 2))[0]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=CONVERTING, dir=folder.parent))
    except OSError as error:
        raise BackboneError(f"{folder.parent} cannot be written: {error}. Point HMT_CACHE to a folder that can.") from error
    try:
        for model, name in zip(models, _GRAPHS, strict=True):
            library().save_model(model, scratch / name, compress_to_fp16=False)
        np.savez(scratch / _SAMPLE, sample=sample.numpy(), expected=expected.numpy(), layers=np.array(layers), bits=bits)
        for written in scratch.iterdir():
            with written.open("rb") as content:
                os.fsync(content.fileno())
        with contextlib.suppress(OSError):  # another process was first
            scratch.rename(folder)
    except (OSError, RuntimeError) as error:
        raise BackboneError(f"{folder.parent} cannot be written: {error}. Free disk space, or set HMT_CACHE.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not folder.is_dir():
        raise BackboneError(f"{folder} could not be written. Free disk space, or point HMT_CACHE elsewhere.")
    _sweep(folder.parent)
    return folder


def _sweep(parent: Path) -> None:
    """Remove conversions that were killed, and those that nobody has used for long: a new adapter or library makes another."""
    sweep_killed(parent)
    for kept in parent.glob("openvino-*"):
        with contextlib.suppress(OSError):
            if time.time() - kept.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(kept, ignore_errors=True)


def versions() -> list[str]:
    """Return the versions that a conversion depends on.

    Raises:
        PackageNotFoundError: OpenVINO is not installed.
    """
    packages = ("openvino", "torch", "transformers")
    return [str(_VERSION), *(importlib.metadata.version(package) for package in packages)]


def _digest(body: TracedBody, head: tuple[Tensor, Tensor | None], bits: int) -> str:
    """Make a name from all weights and the versions of what converts them."""
    digest = hashlib.sha256(f"{versions()} {bits} {body.described}".encode())
    tensors = {**dict(body.named_parameters()), **dict(body.named_buffers()), "head": head[0]}
    if head[1] is not None:
        tensors["bias"] = head[1]
    for name, value in sorted(tensors.items()):
        content = value.detach().cpu().contiguous()
        checksum = zlib.crc32(content.view(-1).view(torch.uint8).numpy().data) if content.numel() else 0
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} {checksum}\n".encode())
    return digest.hexdigest()[:24]
