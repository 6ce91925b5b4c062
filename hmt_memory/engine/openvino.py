"""A backbone run by OpenVINO on a CPU: its body with the key-value cache inside, and its head, with 8-bit weights (extension).

Writing is bound by the bytes of the weights, and these are a quarter of those of fp32, or with 4 bits in the body an eighth.
Torch stays the truth: what a conversion computes is compared with it, and where they differ there is no engine. A conversion is
kept on disk, under a name made from the weights and the versions. Knows OpenVINO and a traced body; no Hugging Face name.
Nothing is reported to anybody: OpenVINO is imported without its telemetry, which counts imports otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BackboneError, MissingDependencyError
from .places import cache_folder
from .traced import TracedBody

_VERSION = 4  # of the conversion
_UNUSED_SECONDS = 30 * 24 * 3600  # after which a conversion is removed when another is made
_GRAPHS, _SAMPLE = ("body.xml", "head.xml"), "sample.npz"
_DAMAGES = (RuntimeError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of graphs, and of arrays
_LEAST_WEIGHTS = 1 << 12  # smaller matrices stay as they are
_STEPS = 127  # of an 8-bit weight, to each side
_GROUP, _LEVELS = 32, 15  # 4-bit weights that share a scale, and the steps between their least and largest
_ALIKE = {8: 0.98, 4: 0.9}  # the least cosine of hidden states with those of torch, by the bits of weights
_SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": "f16"}
_log = logging.getLogger(__name__)


@cache
def _openvino() -> Any:
    """Import OpenVINO without the package by which its import is reported to its makers."""
    name = "openvino_telemetry"
    known = sys.modules.get(name, sys)
    sys.modules[name] = None  # type: ignore[assignment]  # whoever imports it is told that it is missing, and goes without
    try:
        import openvino
        import openvino.opset13
    finally:
        del sys.modules[name]
        if known is not sys:
            sys.modules[name] = known
    return openvino


def ops() -> Any:
    """Return what graphs are made of."""
    return _openvino().opset13


def available() -> bool:
    """Tell whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


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
        """Compare with torch what comes of two rows, the second half behind the first."""
        half = sample.shape[1] // 2
        first, kept = self.extend(sample[:, :half], None)
        actual = torch.cat([first, self.extend(sample[:, half:], kept)[0]], dim=1)
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
            state.state = _openvino().Tensor(np.concatenate(rows))
        whole.rows, whole.pads = len(parts), np.array(pads)
        whole.nbytes = len(parts) * max(part.nbytes for part in parts)
        return whole

    def part(self, row: int) -> Kept:
        """Return what holds a row by itself."""
        own = Kept(self._compiled.create_infer_request(), self._compiled)
        pad = 0 if self.pads is None else int(self.pads[row])
        held = {state.name: state.state.data for state in self.request.query_state()}
        for state in own.request.query_state():
            state.state = _openvino().Tensor(np.ascontiguousarray(held[state.name][row : row + 1, :, pad:]))
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
            state.state = _openvino().Tensor(np.ascontiguousarray(held[:, :, :positions]))
        self.nbytes = self.nbytes * (held.shape[2] + positions) // held.shape[2]


# --- conversion ---------------------------------------------------------------------------------------------------------


def _compiled(folder: Path) -> list[Any]:
    # What is compiled is kept as well: that takes seconds.
    settings = {**_SETTINGS, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "CACHE_DIR": str(folder / "compiled")}
    core = _openvino().Core()
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
    models = (_body_graph(body, layers, sample.shape[-1], bits), _head_graph(*head))
    expected = body(sample, torch.zeros(2, dtype=torch.long), *_nothing(layers, 2))[0]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    except OSError as error:
        raise BackboneError(f"{folder.parent} cannot be written: {error}. Point HMT_CACHE to a folder that can.") from error
    try:
        for model, name in zip(models, _GRAPHS, strict=True):
            _openvino().save_model(model, scratch / name, compress_to_fp16=False)
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
    """Remove conversions that nobody has used for long: each new adapter and each update of a library makes another."""
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


def _nothing(layers: Sequence[tuple[int, int]], rows: int, held: int = 0) -> list[Tensor]:
    return [torch.zeros(rows, heads, held, width) for heads, width in layers]


@torch.no_grad()
def _body_graph(body: TracedBody, layers: Sequence[tuple[int, int]], width: int, bits: int) -> Any:
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = (torch.zeros(2, 4, width), torch.tensor([0, 1]), *_nothing(layers, 2, 3))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            frontend = FrontEndManager().load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(body.eval(), example_input=example)  # has to outlive the conversion
            model = frontend.convert(frontend.load(decoder))
    except Exception as error:  # whatever a model's code raises that cannot be traced
        raise BackboneError(f"OpenVINO does not convert this model: {error}. Use engine='torch'.") from error
    held = [f"held.{number}" for number in range(len(layers))]
    kept = [f"kept.{number}" for number in range(len(layers))]
    sizes = [(-1, -1, width), (-1,), *((-1, heads, -1, wide) for heads, wide in layers)]
    for given, name in zip(model.inputs, ["embeddings", "pads", *held], strict=True):
        given.get_tensor().set_names({name})
    for made, name in zip(model.outputs, ["hidden", *kept], strict=True):
        made.get_tensor().set_names({name})
    model.reshape({given: openvino.PartialShape(list(size)) for given, size in zip(model.inputs, sizes, strict=True)})
    _hold(model, dict(zip(held, kept, strict=True)))
    _shrink(model, bits)
    return model


def _hold(model: Any, pairs: Mapping[str, str]) -> None:
    """Turn keys and values that come in and go out into a state, whose rows `rows` chooses at each step."""
    openvino = _openvino()
    from openvino._offline_transformations import apply_make_stateful_transformation

    rows = ops().parameter([-1], openvino.Type.i32, name="rows")
    rows.output(0).get_tensor().set_names({"rows"})
    model.add_parameters([rows])
    for name in pairs:
        given = model.input(name)
        users = given.get_target_inputs()
        chosen = ops().gather(given, rows, ops().constant(0, dtype=np.int64))
        for user in users:
            user.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(pairs))
    first = ops().constant(np.array([0]), dtype=np.int64)
    count = ops().gather(ops().shape_of(model.input("embeddings"), output_type="i64"), first, ops().constant(0, dtype=np.int64))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [0 if size.is_dynamic else size.get_length() for size in list(node.get_output_partial_shape(0))[1:]]
            shape = ops().concat([count, ops().constant(np.array(sizes), dtype=np.int64)], 0)
            node.set_arguments([ops().broadcast(ops().constant(0.0, dtype=np.float32), shape).output(0)])
    model.validate_nodes_and_infer_types()


def _shrink(model: Any, bits: int) -> None:
    """Turn the weights of products into 8-bit ones, with one scale for each output, or where groups fit into 4-bit ones."""
    for node in model.get_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1)
        weights = source.get_node()
        if weights.get_type_name() == "Constant" and len(weights.shape) == 2 and np.prod(weights.shape) >= _LEAST_WEIGHTS:
            inner = 1 if node.get_attributes()["transpose_b"] else 0
            values = np.asarray(weights.data)
            smaller = _smaller if bits == 4 and values.shape[inner] % _GROUP == 0 else _small
            node.input(1).replace_source_output(smaller(values, inner).output(0))


def _small(weights: np.ndarray, inner: int) -> Any:
    values = weights.astype(np.float32)
    scale = np.maximum(np.abs(values).max(axis=inner, keepdims=True), 1e-12) / _STEPS
    steps = ops().constant(np.round(values / scale).astype(np.int8))
    return ops().multiply(ops().convert(steps, "f32"), ops().constant(scale.astype(np.float32)))


def _smaller(weights: np.ndarray, inner: int) -> Any:
    """Make 4-bit weights: groups along `inner` have a scale and a zero each."""
    openvino = _openvino()
    values = np.moveaxis(weights.astype(np.float32), inner, 1)
    groups = values.reshape(len(values), -1, _GROUP)
    lowest = groups.min(2, keepdims=True)
    scale = np.maximum(groups.max(2, keepdims=True) - lowest, 1e-12) / _LEVELS
    steps = np.round((groups - lowest) / scale)

    pairs = steps.astype(np.uint8).reshape(-1, 2)
    packed = openvino.Tensor(openvino.Type.u4, openvino.Shape(steps.shape))  # a constant does not copy what it is given
    packed.data[:] = (pairs[:, 0] | pairs[:, 1] << 4).reshape(packed.data.shape)
    spread = ops().subtract(ops().convert(ops().constant(packed), "f32"), ops().constant(-lowest / scale))
    shape = ops().constant(np.array(values.shape, np.int64))
    made = ops().reshape(ops().multiply(spread, ops().constant(scale.astype(np.float32))), shape, False)
    return made if inner == 1 else ops().transpose(made, ops().constant(np.array([1, 0], np.int64)))


def _head_graph(weight: Tensor, bias: Tensor | None) -> Any:
    openvino = _openvino()
    hidden = ops().parameter([-1, int(weight.shape[1])], openvino.Type.f32, name="hidden")
    hidden.output(0).get_tensor().set_names({"hidden"})
    logits = ops().matmul(hidden, _small(weight.detach().float().cpu().numpy(), 1), False, True)
    if bias is not None:
        logits = ops().add(logits, ops().constant(bias.detach().float().cpu().numpy()))
    return openvino.Model([logits], [hidden], "head")
