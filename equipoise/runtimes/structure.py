"""What an ONNX file holds, read without running it: whether it can be trusted to run, its bits by layer, and its weights.

`faults` is for files of a stranger. ONNX Runtime reads other files for tensors that lie outside, loads libraries for operators
of other domains, and draws random numbers for a few operators; none of these has a place in a compressed model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, load_from_string, numpy_helper

from equipoise.errors import InputError, must_be
from equipoise.runtimes.export import TRANSPOSED, WEIGHT_INPUT
from equipoise.runtimes.simplify import selects

DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Domains of operators that ONNX Runtime itself brings along."""
RANDOM = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
    *("BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"),
}
"""Operators that answer at random."""
MOST_LEVELS = 8
"""Graphs within graphs beyond which a file is refused."""
QUANTIZED = "_quantized"
"""Suffix that ONNX Runtime's quantizer gives to the integers of a tensor."""


@dataclass(frozen=True)
class Stored:
    """One parameter as the file holds it.

    Attributes:
        value: As floats, in the shape that the torch module has.
        step: Distance of two neighbouring values, broadcast to `value`; 0 where the file holds floats.
        bits: 32, or the width of the integers.
    """

    value: NDArray[np.float64]
    step: NDArray[np.float64]
    bits: int


def read(content: bytes) -> ModelProto:
    """Return the model of an ONNX file.

    Raises:
        InputError: Not an ONNX file.
    """
    try:
        model: ModelProto = load_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise must_be("model.onnx", "an ONNX file", str(error)[:200], "Export it again.") from error
    if not model.graph.node and not model.graph.output:
        raise must_be("model.onnx", "an ONNX file", "no graph", "Export it again.")
    return model


def faults(content: bytes) -> list[str]:
    """Return why a file is not to be loaded: outside data, foreign or random operators, tensors larger than what is there."""
    try:
        model = read(content)
    except InputError as error:
        return [str(error)]
    found = [f"a function of its own, {f.name}" for f in model.functions]
    try:
        for graph in _graphs(model.graph):
            found += [reason for node in graph.node if (reason := _odd(node))]
            found += [reason for tensor in _tensors(graph) if (reason := _hollow(tensor, len(content)))]
    except RecursionError:
        found.append("graphs nested without end")
    return sorted(set(found))


def layer_bits(content: bytes) -> dict[str, int]:
    """Return module name -> 8 where the layer's weights reach its operator as integers of 8 bits, else 32."""
    graph = read(content).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    bits: dict[str, int] = {}
    for node in graph.node:
        index = WEIGHT_INPUT.get(node.op_type, -1)
        if not 0 <= index < len(node.input) or selects(node):
            continue
        name, width = node.input[index], 32
        maker = makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in held:
            name, width = maker.input[0].removesuffix(QUANTIZED), _width(held[maker.input[0]])
        elif name not in held:
            continue
        module, dot, last = name.removesuffix(TRANSPOSED).rpartition(".")
        if dot or last == "weight":
            bits[module] = min(width, bits.get(module, 32))
    return bits


def parameters(content: bytes) -> dict[str, Stored]:
    """Return parameter name -> what the file holds of it, integers turned back to floats by the graph's own scales.

    Limits:
        Parameters that an operator reads under their own name. One that was rearranged or folded away is not in the map.
    """
    graph = read(content).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    found: dict[str, Stored] = {}
    for name, tensor in held.items():
        if name in used and tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float64)
            found[_parameter(name)] = _upright(name, value, np.zeros_like(value), 32)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held and node.input[0].endswith(QUANTIZED):
            name = node.input[0].removesuffix(QUANTIZED)
            if set(node.output) & used:
                found[_parameter(name)] = _upright(name, *_dequantized(node, held), _width(held[node.input[0]]))
    return found


def _dequantized(node: NodeProto, held: dict[str, TensorProto]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    integers = numpy_helper.to_array(held[node.input[0]]).astype(np.float64)
    scale = numpy_helper.to_array(held[node.input[1]]).astype(np.float64)
    zero = numpy_helper.to_array(held[node.input[2]]).astype(np.float64) if len(node.input) > 2 else np.zeros_like(scale)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * integers.ndim
    if scale.ndim and scale.size > 1:
        shape[axis] = scale.size
    step = np.broadcast_to(scale.reshape(shape), integers.shape)
    return (integers - zero.reshape(shape)) * step, step


def _upright(name: str, value: NDArray[np.float64], step: NDArray[np.float64], bits: int) -> Stored:
    turned = name.endswith(TRANSPOSED)
    return Stored(value.T if turned else value, step.T if turned else step, bits)


def _parameter(name: str) -> str:
    return name.removesuffix(TRANSPOSED)


def _width(tensor: TensorProto) -> int:
    kind = tensor.data_type
    return 8 if kind in (TensorProto.INT8, TensorProto.UINT8) else 16 if kind in (TensorProto.INT16, TensorProto.UINT16) else 32


def _graphs(graph: GraphProto, level: int = 0) -> Iterator[GraphProto]:
    """The graph and all graphs within its nodes."""
    if level > MOST_LEVELS:
        raise RecursionError
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner, level + 1)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors)
            for inner in attribute.sparse_tensors:
                yield from (inner.values, inner.indices)


def _odd(node: NodeProto) -> str:
    """Why a node has no place in a compressed model; empty where it has."""
    if node.domain not in DOMAINS:
        return f"{node.op_type} of the domain {node.domain}"
    if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]):
        return f"{node.op_type}, which answers at random"
    return ""


def _hollow(tensor: TensorProto, available: int) -> str:
    """Why a tensor's data are not in the file; empty where they are."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        return f"data of {tensor.name} in another file"
    declared: int = math.prod(tensor.dims)
    if any(d < 0 for d in tensor.dims) or declared > available:
        return f"{tensor.name} of {list(tensor.dims)}, more than the file holds"
    return ""
