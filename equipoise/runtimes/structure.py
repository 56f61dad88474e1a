"""What an ONNX file holds, read without running it: whether it can be trusted to run, its bits by layer, and its weights.

`faults` is for files of a stranger. ONNX Runtime reads other files for tensors that lie outside, loads libraries for operators
of other domains, and draws random numbers for a few operators; none of these has a place in a compressed model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, load_from_string, numpy_helper

from equipoise.errors import InputError, must_be
from equipoise.runtimes.layers import TRANSPOSED, WEIGHT_INPUT, scope_of
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
"""Suffix that ONNX Runtime's quantizer gives to the integers of a tensor, and `encoding` too."""
SCALE = "_scale"
"""Suffix of their steps."""
TURNING = ("DequantizeLinear", "Mul", "Cast", "Transpose")
"""Operators by which integers become the floats that a layer multiplies with, in the layout that it reads."""
INTEGER_INPUT = {"MatMulInteger": 1, "GatherBlockQuantized": 0}
"""Operators that read integer weights themselves -> which input they are."""


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
    """Return module name -> bits of the integers as which a layer's weights reach its operator; 32 where they are floats."""
    graph = read(content).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    bits: dict[str, int] = {}
    for node in graph.node:
        index = INTEGER_INPUT.get(node.op_type, WEIGHT_INPUT.get(node.op_type, -1))
        if not 0 <= index < len(node.input) or selects(node):
            continue
        path = _sources(node.input[index], held, makers)
        name = path[-1]
        if name not in held:
            continue
        module, dot, last = parameter_of(name).rpartition(".")
        if any(makers[made].op_type == "Transpose" for made in path[:-1]):
            module = scope_of(node).partition("/")[0]  # of another layer's weights
            dot, last = module, ""
        if dot or last == "weight":
            bits[module] = min(_width(held[name]), bits.get(module, 32))
    return bits


def _sources(name: str, held: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> list[str]:
    """What a weight is made from, one from the other, the tensor of the file last: by steps that only turn it."""
    path = [name]
    while path[-1] not in held and path[-1] in makers and makers[path[-1]].op_type in TURNING:
        path.append(makers[path[-1]].input[0])
    return path


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
            found[parameter_of(name)] = _upright(name, value, np.zeros_like(value), 32)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held and node.input[0].endswith(QUANTIZED):
            name = node.input[0].removesuffix(QUANTIZED)
            if set(node.output) & used and not _by_group(node):
                found[parameter_of(name)] = _upright(name, *_dequantized(node, held), _width(held[node.input[0]]))
    for name in [name.removesuffix(QUANTIZED) for name in held if name.endswith(QUANTIZED)]:
        scale = held.get(f"{name}{SCALE}")
        integers = held[f"{name}{QUANTIZED}"]
        if integers.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            value = numpy_helper.to_array(integers).astype(np.float64)
            found[parameter_of(name)] = _upright(name, value, np.zeros_like(value), 16)
        if parameter_of(name) not in found and scale is not None and len(scale.dims) == len(integers.dims):
            step = numpy_helper.to_array(scale).astype(np.float64)
            for axis, extent in enumerate(integers.dims):
                step = step.repeat(extent // step.shape[axis], axis)
            value = numpy_helper.to_array(integers).astype(np.float64) * step
            found[parameter_of(name)] = _upright(name, value, step, _width(integers))
    return found


def _by_group(node: NodeProto) -> bool:
    return any(attribute.name == "block_size" and attribute.i for attribute in node.attribute)


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


def parameter_of(tensor: str) -> str:
    """Return the torch name of the parameter that a tensor of a file holds."""
    return tensor.removesuffix(QUANTIZED).removesuffix(TRANSPOSED)


def _width(tensor: TensorProto) -> int:
    return WIDTHS.get(int(tensor.data_type), 32)


WIDTHS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4), 4),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16, TensorProto.BFLOAT16), 16),
}
"""Type of a tensor -> bits of its numbers."""


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
    declared = math.prod(tensor.dims) // (2 if _width(tensor) == 4 else 1)  # two to a byte
    if any(d < 0 for d in tensor.dims) or declared > available:
        return f"{tensor.name} of {list(tensor.dims)}, more than the file holds"
    return ""
