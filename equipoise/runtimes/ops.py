"""Programs of a single operator, for tables of time by shape: what one layer costs on a runtime, before any model is built.

An int8 operator takes and gives 8-bit tensors, as it does inside a quantized network; the conversions at the borders of a
quantized run are operators of their own (``quantize``, ``dequantize``), so that a table can charge them once per border. In the
schemes that leave the graph in floats an operator takes and gives floats.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.ops import Op
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Runtime, Source
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.export import OPSET
from equipoise.runtimes.layers import TRANSPOSED
from equipoise.schemes import SCHEMES, scheme

MOST_ROWS = 4096
"""Rows of an embedding's program at most: it takes as long to read some rows of many, and far less to make."""
LAYER = "op"
"""Name of the layer that the operator is."""


def op_source(spec: Op, *, bits: Choice = 32) -> Source:
    """Return one operator with random weights as a `Source`; int8 ones have only an ONNX form.

    Args:
        bits: A name of `schemes.SCHEMES`; one that leaves the graph in floats is for the runtime to make of the float operator.
    """
    if bits not in SCHEMES:
        raise must_be("bits", f"one of {list(SCHEMES)}", bits, "These are what the runtimes compute in.")
    if bits == 8 or spec.kind in ("quantize", "dequantize"):
        return Source(lambda: _onnx(spec, bits))
    return Source(lambda: _onnx(spec, bits), _module(spec), torch.from_numpy(op_inputs(spec, batch=2)))


def op_program(spec: Op, runtime: Runtime, *, bits: Choice = 32) -> Program:
    """Return the operator compiled for `runtime`; load it with the batch that is timed.

    Args:
        bits: A name of `schemes.SCHEMES`. An operator without weights has none to hold otherwise: it stays as it is.
    Raises:
        InputError: The runtime does not compute in `bits`.
    """
    if bits not in runtime.precisions:
        raise must_be(f"bits for {runtime.name}", f"one of {runtime.precisions}", bits, "Choose another runtime.")
    held: dict[str, Any] = {"schemes": {LAYER: bits}} if scheme(bits).encoded and spec.weights else {}
    return replace(runtime.compile(op_source(spec, bits=bits), **held), precision="int8" if bits == 8 else "fp32")


def op_inputs(spec: Op, *, bits: Choice = 32, batch: int = 1) -> NDArray[Any]:
    """Return random inputs (batch, ...) of the shape and type that the operator's program takes."""
    shape = (batch, *_input_shape(spec))
    rng = np.random.default_rng(0)
    if spec.kind == "embedding":
        return rng.integers(0, min(spec.cin, MOST_ROWS), shape)
    if _input_type(spec, bits) == TensorProto.UINT8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32)


def _input_shape(spec: Op) -> tuple[int, ...]:
    if spec.kind == "embedding":
        return (spec.height,)
    if spec.kind == "linear":
        return (spec.cin,) if spec.height == 1 else (spec.height, spec.cin)
    return (spec.cin, spec.height, spec.width)


def _input_type(spec: Op, bits: Choice) -> int:
    if spec.kind == "embedding":
        return int(TensorProto.INT64)
    narrow = spec.kind == "dequantize" or (bits == 8 and spec.kind != "quantize")
    return TensorProto.UINT8 if narrow else TensorProto.FLOAT


def _module(spec: Op) -> nn.Module:
    """The operator in torch."""
    layer: nn.Module
    if spec.kind == "conv":
        layer = nn.Conv2d(
            spec.cin, spec.cout, spec.kernel, spec.stride, spec.padding, dilation=spec.dilation, groups=spec.groups
        )
    elif spec.kind == "linear":
        layer = nn.Linear(spec.cin, spec.cout)
    elif spec.kind == "embedding":
        layer = nn.Embedding(min(spec.cin, MOST_ROWS), spec.cout)
    elif spec.kind == "resize":
        layer = nn.Upsample(size=spec.kernel, mode="bilinear", align_corners=False)
    else:
        layer = _Double()
    return nn.Sequential(OrderedDict({LAYER: layer} | ({"relu": nn.ReLU()} if spec.relu else {}))).eval()


class _Double(nn.Module):
    """A sum of two tensors that needs only one."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


def _onnx(spec: Op, bits: Choice) -> bytes:
    """The operator as an ONNX file: input, weights, the operator, a rectifier, and 8-bit types around it where `bits` is 8."""
    graph = _Graph()
    narrow_in = _input_type(spec, bits) == TensorProto.UINT8
    narrow_out = spec.kind == "quantize" or (bits == 8 and spec.kind not in ("dequantize", "embedding"))
    value = graph.dequantized("input", 0.02) if narrow_in else "input"
    if spec.kind == "add":
        value = graph.add("Add", [value, graph.dequantized("input", 0.03) if narrow_in else value])
    elif spec.kind == "resize":
        sizes = graph.constant(np.array(spec.kernel, dtype=np.int64))
        value = graph.add("Resize", [value, "", "", sizes], axes=[2, 3], mode="linear")
    elif spec.kind in ("conv", "linear"):
        value = _weighted(graph, spec, value, bits)
    elif spec.kind == "embedding":
        table = np.random.default_rng(1).standard_normal((min(spec.cin, MOST_ROWS), spec.cout), dtype=np.float32)
        value = graph.add("Gather", [graph.constant(table, f"{LAYER}.weight"), value])
    if spec.relu and not narrow_out:
        value = graph.add("Relu", [value])
    if narrow_out:  # 8 bits from zero up are a rectifier already
        zero = np.uint8(0 if spec.relu else 128)
        value = graph.add("QuantizeLinear", [value, graph.constant(np.float32(0.05)), graph.constant(zero)])
    graph.nodes[-1].output[0] = "output"
    start = helper.make_tensor_value_info("input", _input_type(spec, bits), ["batch", *_input_shape(spec)])
    rank = len(_input_shape(spec)) + (spec.kind == "embedding")
    kind = TensorProto.UINT8 if narrow_out else TensorProto.FLOAT
    end = helper.make_tensor_value_info("output", kind, ["batch", *[None] * rank])
    body = helper.make_graph(graph.nodes, spec.kind, [start], [end], graph.constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="equipoise")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _weighted(graph: _Graph, spec: Op, value: str, bits: Choice) -> str:
    """Add the convolution or the matrix product, with per-channel 8-bit weights where `bits` is 8."""
    rng = np.random.default_rng(1)
    shape = (spec.cout, spec.cin // spec.groups, *spec.kernel) if spec.kind == "conv" else (spec.cout, spec.cin)
    bias = np.zeros(spec.cout, dtype=np.float32)
    rows = spec.kind == "linear" and spec.height > 1
    axis = 1 if rows else 0
    if bits == 8:
        limit = 127 if has_exact_int8() else 64
        integers = rng.integers(-limit, limit + 1, shape[::-1] if rows else shape, dtype=np.int8)
        weight = graph.dequantized(graph.constant(integers), np.full(spec.cout, 0.01), axis)
        offset = graph.dequantized(graph.constant(bias.astype(np.int32)), np.full(spec.cout, 0.02 * 0.01), 0)
    else:
        floats = rng.standard_normal(shape, dtype=np.float32)
        name = f"{LAYER}.weight{TRANSPOSED if rows else ''}"
        weight, offset = graph.constant(floats.T.copy() if rows else floats, name), graph.constant(bias)
    if spec.kind == "conv":
        pads = [*spec.padding, *spec.padding]
        window: dict[str, Any] = {"strides": spec.stride, "dilations": spec.dilation, "pads": pads}
        return graph.add("Conv", [value, weight, offset], group=spec.groups, **window)
    if rows:
        return graph.add("Add", [graph.add("MatMul", [value, weight]), offset])
    return graph.add("Gemm", [value, weight, offset], transB=1)


class _Graph:
    """Nodes and constants in the making."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Any, name: str = "") -> str:
        """Keep a constant and return its name."""
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: Iterable[str], **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{kind}_{len(self.nodes)}", **attributes))
        return output

    def dequantized(self, value: str, scale: Any, axis: int | None = None) -> str:
        """Append the step from integers to floats: per channel with an `axis`, else from zero up, as after a rectifier."""
        if axis is None:
            return self.add("DequantizeLinear", [value, self.constant(np.float32(scale)), self.constant(np.uint8(0))])
        return self.add("DequantizeLinear", [value, self.constant(np.asarray(scale, dtype=np.float32))], axis=axis)
