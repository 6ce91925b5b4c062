"""The graphs of a backbone that OpenVINO runs: its body with a state of keys and values, and its head, with small weights.

Knows OpenVINO and a traced body. Nothing is reported to anybody: OpenVINO is imported without its telemetry, which else counts
imports.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BackboneError
from .traced import TracedBody

_LEAST_WEIGHTS = 1 << 12  # smaller matrices stay as they are
_STEPS = 127  # of an 8-bit weight, to each side
_GROUP, _LEVELS = 32, 15  # 4-bit weights that share a scale, and the steps between their least and largest


@cache
def library() -> Any:
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
    return library().opset13


def available() -> bool:
    """Tell whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def nothing(layers: Sequence[tuple[int, int]], rows: int, held: int = 0) -> list[Tensor]:
    """Return keys and values of `held` positions of some rows, all zero.

    Args:
        layers: heads and their width, for each layer.
        rows: the number of rows.
        held: positions of each.
    """
    return [torch.zeros(rows, heads, held, width) for heads, width in layers]


@torch.no_grad()
def body_graph(body: TracedBody, layers: Sequence[tuple[int, int]], width: int, bits: int) -> Any:
    """Convert a body.

    Args:
        body: as a function of tensors alone.
        layers: heads and width of keys and values, of each layer in turn.
        width: of an embedding.
        bits: of the weights, 8 or 4.

    Raises:
        BackboneError: OpenVINO does not convert it.
    """
    openvino = library()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = (torch.zeros(2, 4, width), torch.tensor([0, 1]), *nothing(layers, 2, 3))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            frontend = FrontEndManager().load_by_framework("pytorch")
            unchecked = {"check_trace": False}  # what is converted is compared with the body anyway
            # it has to outlive the conversion
            decoder = TorchScriptPythonDecoder(body.eval(), example_input=example, trace_kwargs=unchecked)
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
    openvino = library()
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
    openvino = library()
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


def head_graph(weight: Tensor, bias: Tensor | None) -> Any:
    """Make the graph from hidden states to logits, with 8-bit weights."""
    openvino = library()
    hidden = ops().parameter([-1, int(weight.shape[1])], openvino.Type.f32, name="hidden")
    hidden.output(0).get_tensor().set_names({"hidden"})
    logits = ops().matmul(hidden, _small(weight.detach().float().cpu().numpy(), 1), False, True)
    if bias is not None:
        logits = ops().add(logits, ops().constant(bias.detach().float().cpu().numpy()))
    return openvino.Model([logits], [hidden], "head")
