"""ONNX Runtime on the CPU: float as exported, int8 by its own quantizer in the scheme that is right and fast here.

The scheme, and why (ResNet-20 on CIFAR-10, batch 1, one thread of an AMD EPYC with AVX2 and no VNNI, shuffled blocks):

- Unsigned activations and signed weights per output channel, as Q/DQ pairs. Signed activations were 1.5 times slower than
  float here, unsigned weights no faster than float.
- Seven-bit weights where the CPU has no VNNI: its 8-bit kernels add two products in 16 bits, which overflow. Full range cost
  27 times the divergence from the float model (KL 0.046 against 0.0017) at the same speed.
- Adds, pools and shape operators between int8 layers are quantized too, so that a residual network stays int8 from the first to
  the last of them. Before and after they stay float: an addition that puts degrees beside fractions at the end would round the
  fractions away on the scale of the degrees (R squared 0.95 in place of 0.98, whichever single layer was in int8).
- A layer that is left in float between int8 ones reads its input through scales per channel, all alike. With one scale ONNX
  Runtime would quantize its weights when it loads the file, with 8 bits for the whole tensor: worse than int8, where more was
  asked for.
- Attention is the exception: its softmax and normalization have no int8 kernels, and the conversions around them made a small
  encoder slower than float at batch 1 (0.89x); with float outputs of the weighted operators it is 1.02x, and 1.22x at batch 16.
- Ranges of least squared error, channels of one scale between convolutions, weights rounded for what they read, biases that
  take up the mean error (`qdq`): ONNX Runtime's own rounding left MobileNetV2 with 4 times the divergence (benchmarks/int8.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import Inputs, take
from equipoise.errors import InputError, must_be
from equipoise.records import Choice
from equipoise.runtimes.base import (
    Program,
    Session,
    Source,
    check_program,
    check_quantizable,
    check_schemes,
    feeds,
    precision_of,
)
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.failures import failures
from equipoise.runtimes.fallback import WHOLE_MODEL, culprits, told
from equipoise.runtimes.sessions import damaged, opened
from equipoise.runtimes.simplify import readers_of, selects

if TYPE_CHECKING:
    from equipoise.runtimes.qdq import Rounding

FILE = "model.onnx"
"""The one file of a program."""

QUANTIZED_OPS = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice", "Pad", "Resize"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
"""Operators that have int8 kernels on the CPU. Normalization and softmax have none: they would only gain conversions."""

WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
ATTENTION = ("Softmax", "LayerNormalization")
"""A graph with one of these leaves int8 all the time: there only the weighted operators are quantized, with float outputs."""

RENAMED = "_QuantizeLinear_Input"
"""What the quantizer adds to an output's name where the model's own output is to keep it."""
PRODUCTS = ("Gemm", "MatMul")
"""Operators whose int8 kernels can give floats."""

REWEIGHTED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose float weights ONNX Runtime (1.21 and later) quantizes by itself between int8 tensors."""


class OnnxRuntime:
    """ONNX Runtime, CPU execution provider. See `base.Runtime` for the methods."""

    name = "onnxruntime"
    precisions: tuple[Choice, ...] = (32, 8, "8-dynamic", "8-weights", "4-weights", "float16", "bfloat16")
    runs_code = False

    def __init__(self, how: Rounding | None = None) -> None:
        """Take how int8 with static ranges is made; None for what was found best."""
        self._how = how

    def unavailable(self) -> str:
        """Return an empty text: ONNX Runtime is a core dependency."""
        return ""

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the exported file, quantized when `float_layers` is a set; what cannot be quantized is named in `left`."""
        content, held = source.onnx(), check_schemes(self.name, self.precisions, schemes)
        precision, reasons = precision_of(float_layers, held), dict[str, str]()
        if float_layers is not None:
            content, reasons = self._int8(source, calibration, float_layers | held.keys())
        if held:
            from equipoise.runtimes.encoding import encoded

            content = encoded(content, held, exact=has_exact_int8())
        return Program(self.name, precision, {FILE: content}, reasons)

    def _int8(self, source: Source, calibration: Inputs | None, float_layers: frozenset[str]) -> tuple[bytes, dict[str, str]]:
        """Return the file in int8 but for the named layers, and why others had to be left in floats too."""
        from equipoise.runtimes.layers import fixed_nodes, layer_nodes, scoped_nodes

        content = source.onnx()
        layers = layer_nodes(content)
        known = {**scoped_nodes(content), **layers}
        data = check_quantizable(calibration, float_layers, frozenset(known))
        excluded = {node for layer in float_layers for node in known[layer]} | fixed_nodes(content, source.model)
        if layers and excluded >= {node for nodes in layers.values() for node in nodes}:
            return content, {}  # nothing with weights is left to quantize
        quantized, left = _quantized(content, data, excluded, self._how)
        owners = {node: layer for layer, nodes in known.items() for node in nodes}
        return quantized, {owners.get(node, node): why for node, why in left.items()}

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session with all graph optimizations; nothing but the program's own bytes is read.

        The batch axis stays free, as it is for whoever loads the file: fixed to 1 it gains at most 4 % (a transformer in fp32),
        and ONNX Runtime 1.32 then gives up its integer kernels for int8 layers of tokens, which made them 2 to 5 times slower.
        """
        check_program(program, self.name)
        session = opened(program.file(FILE), threads=threads)
        try:
            return Loaded(session)
        except failures() as error:
            raise damaged(str(error)) from error


class Loaded:
    """A session of ONNX Runtime: inputs by name, one output."""

    def __init__(self, session: Any) -> None:
        taken, given = session.get_inputs(), session.get_outputs()
        if not taken or not given:
            raise ValueError(f"it takes {len(taken)} inputs and gives {len(given)} outputs, not at least one of each")
        self._session = session
        self._inputs = [value.name for value in taken]
        self._outputs = [given[0].name]

    def run(self, inputs: Inputs) -> NDArray[Any]:
        """Return the first output."""
        fed = feeds(inputs, self._inputs)
        try:
            result: Any = self._session.run(self._outputs, fed)[0]
        except failures() as error:
            reason = str(error).split(" : ")[-1].strip()
            raise InputError(f"inputs must be of the shape and type the program was made for: {reason}") from error
        if not isinstance(result, np.ndarray):
            raise must_be("program output", "one array", type(result).__name__, "Compile the program again.")
        return result


def _quantized(content: bytes, calibration: Inputs, excluded: set[str], how: Rounding | None) -> tuple[bytes, dict[str, str]]:
    """Return the quantized file, and for each node that had to be left in floating point the reason."""
    reasons: dict[str, str] = {}
    excluded = excluded | _outside(content, excluded)

    def attempt(data: Inputs, without: set[str]) -> bytes | None:
        try:
            made = _quantize(content, data, sorted(without), how)
            answer = OnnxRuntime().load(Program(OnnxRuntime.name, "int8", {FILE: made})).run(take(data, slice(2)))
            if not np.isfinite(answer).all():
                raise ValueError("its outputs are not finite")
        except Exception as error:  # noqa: BLE001 - the quantizer fails in any way it likes; the layer is then left float
            reasons[""] = f"ONNX Runtime's int8 fails on it: {told(error)}"
            return None
        return made

    made = attempt(calibration, excluded)
    if made is not None:
        return made, {}
    nodes = [name for name in _quantizable(content) if name not in excluded]
    few, left = take(calibration, slice(2)), {}

    def fails(names: Sequence[str]) -> bool:
        failed = attempt(few, excluded | (set(nodes) - set(names))) is None
        if failed:
            left[names[-1]] = reasons[""]  # of the last time that it was among those that fail, which is the narrowest
        return failed

    bad = culprits(nodes, fails)
    made = attempt(calibration, excluded | set(bad))
    why = reasons[""]
    if made is None:
        return content, dict.fromkeys(nodes or [WHOLE_MODEL], why)
    return made, {name: left.get(name, why) for name in bad}


def _outside(content: bytes, excluded: set[str]) -> set[str]:
    """Return the names of the operators that are no layers and do not lie between two layers to be quantized.

    Products of two computed tensors, inside attention, are none: no layer's precision speaks of them, and rounding both sides
    gains nothing (a MiniLM all in int8, 40 loads each: 1.04 [0.98, 1.09] times as fast without, 0.0067 nats for 0.0064).
    """
    import onnx

    graph = onnx.load_from_string(content).graph
    computed = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if computed & set(node.input):
            computed |= set(node.output)
    attention = any(node.op_type in ATTENTION for node in graph.node)
    pairs = {node.name for node in graph.node if attention and node.op_type == "MatMul" and computed >= set(node.input)}
    layers = {node.name for node in graph.node if node.op_type in WEIGHTED_OPS and not selects(node)} - pairs
    weighted = layers - excluded

    def reached(forward: bool) -> set[str]:
        tensors: set[str] = set()
        nodes = set()
        for node in graph.node if forward else reversed(graph.node):  # a graph is sorted
            ahead, behind = (node.input, node.output) if forward else (node.output, node.input)
            if tensors & set(ahead):
                nodes.add(node.name)
            if tensors & set(ahead) or node.name in weighted:
                tensors |= set(behind)
        return nodes

    between = reached(True) & reached(False)
    return {node.name for node in graph.node if node.op_type in QUANTIZED_OPS} - (between - pairs) - layers


def _quantizable(content: bytes) -> list[str]:
    """Return the names of the nodes that the quantizer would look at, those with weights first."""
    import onnx

    nodes = [node for node in onnx.load_from_string(content).graph.node if node.op_type in QUANTIZED_OPS]
    return [node.name for node in sorted(nodes, key=lambda node: node.op_type not in WEIGHTED_OPS)]


def _quantize(content: bytes, calibration: Inputs, excluded: list[str], how: Rounding | None = None) -> bytes:
    """Return the quantized file: see `qdq`."""
    import onnx

    from equipoise.runtimes import qdq

    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    attention = any(node.op_type in ATTENTION for node in model.graph.node)
    own = {node.name: tuple(node.output) for node in model.graph.node}
    options: dict[str, Any] = {}
    if attention:
        options["OpTypesToExcludeOutputQuantization"] = ["MatMul", "Gemm"]
    kinds = WEIGHTED_OPS if attention else QUANTIZED_OPS
    seven_bits = not has_exact_int8()
    quantized = qdq.quantized(
        model, calibration, excluded, kinds=kinds, options=options, seven_bits=seven_bits, how=how or qdq.Rounding()
    )
    _float_outputs(quantized.graph, own)
    _float_weights(quantized.graph)
    del quantized.metadata_props[:], quantized.graph.value_info[:]
    onnx.checker.check_model(quantized)
    result: bytes = quantized.SerializeToString(deterministic=True)
    return result


def _float_outputs(graph: Any, own: Mapping[str, tuple[str, ...]]) -> None:
    """Let products after which nothing is in int8 give floats (in place): outputs of unlike scales, rounded together, are lost.

    Args:
        own: Node -> its outputs before: where a rectifier went into the rounding, it is the rounding that rectifies.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = readers_of(graph)
    rounded = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    followed: set[str] = set()  # tensors on whose way to the end something is rounded
    for node in reversed(graph.node):
        if node.op_type == "QuantizeLinear" or followed & set(node.output):
            followed |= set(node.input)
    for back in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in rounded]:
        there = rounded[back.input[0]]
        maker = makers.get(there.input[0])
        alone = len(readers[there.input[0]]) == len(readers[there.output[0]]) == 1
        if maker is None or maker.op_type not in PRODUCTS or not alone or back.output[0] in followed:
            continue
        if there.input[0].removesuffix(RENAMED) not in own.get(maker.name, ()):
            continue
        maker.output[list(maker.output).index(there.input[0])] = back.output[0]
        graph.node.remove(there)
        graph.node.remove(back)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _float_weights(graph: Any) -> None:
    """Let layers with float weights read int8 tensors through scales per channel, all alike (in place): see the module."""
    from onnx import helper, numpy_helper

    held = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes = []
    for node in graph.node:
        back = makers.get(node.input[0]) if node.op_type in REWEIGHTED and node.input[1] in held else None
        if back is not None and back.op_type == "DequantizeLinear":
            channels = _channels_in(node, held[node.input[1]].dims)
            scales, zeros, floats = (f"{node.name}/input_{part}" for part in ("scales", "zeros", "floats"))
            for name, old in ((scales, back.input[1]), (zeros, back.input[2])):
                value = np.full(channels, numpy_helper.to_array(held[old]))
                graph.initializer.append(numpy_helper.from_array(value, name))
            nodes.append(helper.make_node("DequantizeLinear", [back.input[0], scales, zeros], [floats], name=floats, axis=1))
            node.input[0] = floats
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if used & set(node.output)]
    del graph.node[:]
    graph.node.extend(kept)


def _channels_in(node: Any, weight: Sequence[int]) -> int:
    """How many channels or features the input of a layer has."""
    number: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return int(weight[1]) * number.get("group", 1)
    if node.op_type == "Gemm":
        return int(weight[1 if number.get("transB") else 0])
    return int(weight[0])
