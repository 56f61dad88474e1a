"""A float graph as int8: what its tensors hold is read once, channels are equalized, ranges chosen, weights rounded.

ONNX Runtime's own quantizer places the conversions; what it is told, and what stands in the file in the end, is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from equipoise.batch import Inputs, take
from equipoise.errors import unknown
from equipoise.runtimes import rounding
from equipoise.runtimes.equalize import PROOF, RECTIFIERS, equalized, same
from equipoise.runtimes.migrate import migrated
from equipoise.runtimes.ranges import RULES, rounded
from equipoise.runtimes.seen import Reading, read, runs
from equipoise.runtimes.simplify import readers_of

Array = NDArray[Any]

Shape = tuple[int, ...]

LEVELS, LEVELS_OF_SEVEN_BITS = 127, 64
"""Largest integer of a weight: of 8 bits, and of 7, two of whose products fit in 16 bits."""
BEST, CONTENDERS = "best", ("mse", "minmax")
"""The rule whose answers are nearest, and of which ones: least squared error cuts a rare large value that may count."""
CUT_COSTS = 2.0
"""Squared errors of answers that differ by less say nothing: 64 inputs chose the whole ranges for ResNet-20, wrongly."""
JUDGED = 64
"""Calibration inputs that tell which answers are nearer."""
MOST_BIAS = 2.0**30
"""Largest integer of a bias, with room for its correction: where weights are next to nothing, their scale is raised."""


@dataclass(frozen=True)
class Rounding:
    """How a graph is made int8: the defaults are what was found best (benchmarks/int8.py).

    Attributes:
        ranges: How the range of a tensor is read off the calibration inputs: a name of `ranges.RULES`,
            or ``best``: of least squared error, or the whole range where the answers are nearer with it.
        per_channel: Whether each output channel of the weights has a scale of its own.
        equalize: Whether channels are brought to one scale before: between convolutions, see `equalize`, and between a
            normalization and the products that read it where these are rounded here, see `migrate`.
        order: Whether weights are rounded in the order of second moments.
        correct: Whether biases take up the mean error.
    """

    ranges: str = BEST
    per_channel: bool = True
    equalize: bool = True
    order: bool = True
    correct: bool = True

    def __post_init__(self) -> None:
        if self.ranges not in (*RULES, BEST):
            raise unknown("ranges", self.ranges, (*RULES, BEST))


def quantized(
    model: ModelProto,
    calibration: Inputs,
    excluded: Collection[str],
    *,
    kinds: Sequence[str],
    options: Mapping[str, Any],
    seven_bits: bool,
    how: Rounding,
) -> ModelProto:
    """Return a graph with its nodes of these kinds between Q/DQ pairs: unsigned activations, signed weights.

    Args:
        model: Float, shapes inferred.
        calibration: Inputs (N, ...), one array or several by name.
        excluded: Names of nodes to leave in float.
        kinds: Types of operators to quantize.
        options: Of ONNX Runtime's quantizer.
        seven_bits: Whether weights keep to 7 bits.
    """
    levels = LEVELS_OF_SEVEN_BITS if seven_bits else LEVELS
    chosen = [node for node in model.graph.node if node.op_type in kinds and node.name not in excluded]
    layers = _layers(model, chosen) if how.order or how.correct else {}
    standing = _standing(model, _tensors(model, chosen))
    reading = read(model, list(dict.fromkeys(standing.values())), layers, calibration)
    inputs = {name: layer.input[0] for name, (layer, _) in layers.items()}
    if how.equalize and how.per_channel:
        raised, gains = equalized(model, reading.tensors, levels=levels, left=excluded)
        if gains and same(raised, model, take(calibration, slice(PROOF))):
            model, reading = raised, _raised(reading, gains, inputs)
        nodes = {name: layer for name, (layer, _) in layers.items()}
        moved, gains = migrated(model, reading, nodes, levels=levels, rule=CONTENDERS[0] if how.ranges == BEST else how.ranges)
        if gains and same(moved, model, take(calibration, slice(PROOF))):
            model, reading = moved, _raised(reading, gains, inputs)
    answers = {value.name for value in model.graph.output}

    def made(rule: str) -> ModelProto:
        found = {}
        for name, twin in standing.items():
            one = reading.tensors[twin]
            low, high = min(0.0, float(one.low.min())), max(0.0, float(one.high.max()))
            whole = name in answers  # nothing after it makes good what a range that is cut loses
            found[name] = RULES["minmax" if whole else rule](low, high, one.sample.ravel())
        graph = _placed(model, found, excluded, kinds, options, seven_bits=seven_bits, per_channel=how.per_channel)
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        held = {tensor.name: tensor for tensor in graph.graph.initializer}
        for layer, backs in _between(graph, layers):
            columns, bounds = reading.columns[layer.name], found[layers[layer.name][0].input[0]]
            values = [weights[name] for name in layers[layer.name][0].input[1:]]
            _put(held, layer, backs, values, columns, bounds, levels=levels, order=how.order, correct=how.correct)
        return graph

    if how.ranges != BEST:
        return made(how.ranges)
    return _nearest([made(rule) for rule in CONTENDERS], model, take(calibration, slice(JUDGED)))


def _nearest(graphs: Sequence[ModelProto], model: ModelProto, inputs: Inputs) -> ModelProto:
    """Return the first of two graphs, or the second where its answers to `inputs` are off by far less."""
    name = model.graph.output[0].name
    wanted, *found = (next(runs(graph, [name], inputs, at_once=JUDGED))[name] for graph in (model, *graphs))
    cut, whole = (float(np.square(answer - wanted).mean()) for answer in found)
    return graphs[int(cut > CUT_COSTS * whole)]


def _layers(model: ModelProto, nodes: Sequence[NodeProto]) -> dict[str, tuple[NodeProto, Shape]]:
    """Return the nodes whose weights are rounded here: constant, of no other node, and plain products of what is read."""
    held = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    found = {}
    for node in nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or any(uses[name] > 1 or name not in held for name in node.input[1:]):
            continue
        told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = told.get("alpha", 1.0) == told.get("beta", 1.0) == 1.0 and not told.get("transA", 0)
        padded = told.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        shape = held[node.input[1]]
        if plain and not padded and (node.op_type == "Conv" or len(shape) == 2) and np.prod(shape) > 0:
            found[node.name] = (node, shape)
    return found


def _tensors(model: ModelProto, nodes: Sequence[NodeProto]) -> list[str]:
    """Return the tensors of floats that these nodes read and make."""
    held = {tensor.name for tensor in model.graph.initializer}
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    named = [name for node in nodes for name in (*node.input, *node.output) if name and name not in held]
    return [name for name in dict.fromkeys(named) if kinds.get(name) == TensorProto.FLOAT]


def _standing(model: ModelProto, names: Sequence[str]) -> dict[str, str]:
    """Return for each tensor the one whose range it takes: itself, or what a rectifier alone makes of it."""
    readers = readers_of(model.graph)
    outputs = {value.name for value in model.graph.output}
    found = {}
    for name in names:
        after = readers.get(name, [])
        alone = len(after) == 1 and after[0].op_type in RECTIFIERS and name not in outputs and after[0].output[0] in names
        found[name] = after[0].output[0] if alone else name
    return found


def _raised(reading: Reading, gains: Mapping[str, Array], inputs: Mapping[str, str]) -> Reading:
    """Return what the equalized graph would have shown; `inputs` names what each layer reads."""
    tensors, columns = dict(reading.tensors), dict(reading.columns)
    for name, gain in gains.items():
        one, along = tensors[name], gain.astype(np.float32)
        kept = [values * along[:, None] for values in one.kept]
        tensors[name] = replace(one, low=one.low * along, high=one.high * along, kept=kept)
    for layer, name in inputs.items():
        if name in gains:
            held = columns[layer]
            values = held.reshape(len(gains[name]), -1, held.shape[2]) * gains[name].astype(np.float32)[:, None, None]
            columns[layer] = values.reshape(held.shape)
    return Reading(tensors, columns)


def _placed(
    model: ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    excluded: Collection[str],
    kinds: Sequence[str],
    options: Mapping[str, Any],
    *,
    seven_bits: bool,
    per_channel: bool,
) -> ModelProto:
    """Let ONNX Runtime's quantizer place the conversions."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    told = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        model,
        per_channel,
        seven_bits,
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, told),
        [],
        sorted(excluded),
        list(kinds),
        dict(options),
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: ModelProto = quantizer.model.model
    return made


def _between(made: ModelProto, layers: Collection[str]) -> Iterator[tuple[NodeProto, list[NodeProto]]]:
    """Yield each layer that reads nothing but int8, with the nodes that turn what it reads back into floats."""
    makers = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        backs = [makers[name] for name in node.input if name in makers and makers[name].op_type == "DequantizeLinear"]
        if node.name in layers and len(backs) == len(node.input):
            yield node, backs


def _put(
    held: Mapping[str, TensorProto],
    layer: NodeProto,
    backs: Sequence[NodeProto],
    values: Sequence[Array],
    columns: Array,
    bounds: tuple[float, float],
    *,
    levels: int,
    order: bool,
    correct: bool,
) -> None:
    """Put a layer's weights and bias, rounded for what it reads, into the tensors of the file (in place)."""
    turned = _turned(layer)
    weights = values[0].T if turned else values[0]
    rows = weights.reshape(len(columns), len(weights) // len(columns), -1)
    bias = values[1].reshape(rows.shape[:2]) if len(values) > 1 else None
    step = numpy_helper.to_array(held[backs[0].input[1]])
    scale = rounding.scales(rows, levels)
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias) / (step * MOST_BIAS))
    if not held[backs[1].input[1]].dims:
        scale = np.full_like(scale, scale.max())
    if order:
        whole = rounding.integers(rows, scale, levels, columns, centred=correct and bias is not None)
    else:
        whole = rounding.nearest(rows, scale, levels)
    laid = whole.reshape(weights.shape)
    _set(held[backs[1].input[0]], laid.T if turned else laid)
    _set(held[backs[1].input[1]], scale)
    if bias is not None:
        if correct:
            bias = bias + rounding.mean_error(rows, columns, whole, scale, rounded(columns, *bounds))
        _set(held[backs[2].input[0]], np.round(bias / (step * scale).astype(np.float64)))
        _set(held[backs[2].input[1]], step * scale)


def _set(tensor: TensorProto, value: Array) -> None:
    """Give a tensor of the file its value (in place); one number where all are alike."""
    shape, kind = tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    held = value.ravel()[:1] if math.prod(shape) == 1 else value  # of one scale a tensor that of the bias has the shape (1,)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(held.astype(kind)).reshape(shape), tensor.name))


def _turned(layer: NodeProto) -> bool:
    """Whether the weights lie as (K, O)."""
    stored = next((attribute.i for attribute in layer.attribute if attribute.name == "transB"), 0)
    return layer.op_type == "MatMul" or (layer.op_type == "Gemm" and not stored)
