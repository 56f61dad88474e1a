"""Weights in fewer bits inside an ONNX file whose graph stays in floats: by group, or beside inputs rounded for each request.

Values that lie on a grid (multiples of one step, in each group) are stored without loss, others to the nearest. A product keeps
its integers (ONNX Runtime and OpenVINO have kernels for them), a filter is turned to floats once, as the file is loaded; an
embedding turns the rows that it reads. All but the table of 4 bits are standard ONNX. Weights that several operators read, as
the table of a language model that is its head too, are held once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, checker, helper, load_from_string, numpy_helper

from equipoise.errors import unknown
from equipoise.records import Choice
from equipoise.runtimes.layers import TRANSPOSED, WEIGHT_INPUT, scope_of, tied
from equipoise.runtimes.simplify import selects
from equipoise.runtimes.structure import QUANTIZED, SCALE, parameter_of
from equipoise.schemes import GROUPS, group, scheme, shared, top

OPSET = 21
"""The first with 4-bit integers and scales by group."""
HALVES: Mapping[Choice, int] = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
FEW = 8
"""Levels below the highest within which the largest values of at least half of the groups lie, where weights are on a grid."""
EXACT = 1e-3
"""Of a step: values that are no further from multiples lie on its grid."""

Floats = NDArray[np.float64]


def encoded(content: bytes, schemes: Mapping[str, Choice], *, exact: bool, gathers: bool = False) -> bytes:
    """Return an ONNX file in which the named layers hold their weights as their schemes say.

    Args:
        content: With float weights in these layers.
        schemes: Layer -> scheme, see `equipoise.schemes`.
        exact: Whether the CPU adds 8-bit products without overflow.
        gathers: Whether the runtime gathers rows of 4-bit integers, and turns weights that were made floats at no cost. ONNX
            Runtime does neither, and has blocks longer than a row; OpenVINO does, and has none.
    Raises:
        InputError: A layer that the file does not have in floats.
    """
    model = load_from_string(content)
    tensors = _tensors(model.graph, schemes)
    turned = {node.output[0]: name for node, name in tied(model.graph)}
    writer = _Writer(model, exact, gathers)
    for node in model.graph.node:
        name = turned.get(node.output[0]) or _weights(node)
        if name in tensors:
            writer.write(node, name, tensors[name], turned=node.output[0] in turned)
        else:
            writer.nodes.append(node)
    missing = schemes.keys() - {layer for tensor in tensors.values() for layer in tensor.layers}
    if missing:
        raise unknown("layer with float weights", min(missing), sorted(map(parameter_of, writer.floats)))
    return writer.finished()


@dataclass(frozen=True, slots=True)
class _Tensor:
    """How weights are held, once for all operators that read them.

    Attributes:
        choice: The scheme: of the layers' that were named, see `schemes.shared`.
        kinds: What the operators are to `schemes.group`.
        rows: Whether an operator reads rows of it, or all of it turned, so that it lies as the module has it.
        layers: The layers that were named.
    """

    choice: Choice
    kinds: frozenset[str]
    rows: bool
    layers: tuple[str, ...]

    def group(self, width: int) -> int:
        """Weights of a row of `width` that share a step: as few as for any of the operators."""
        return min(group(self.choice, kind, width) for kind in self.kinds)


def _tensors(graph: GraphProto, schemes: Mapping[str, Choice]) -> dict[str, _Tensor]:
    """Return the tensors of which a named layer holds or reads the weights."""
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    turned = [(node, name, True) for node, name in tied(graph)]
    found: dict[str, _Tensor] = {}
    for node, name, rows in [*((node, _weights(node), node.op_type == "Gather") for node in graph.node), *turned]:
        if name not in floats or not _own(node, name):
            continue
        own = [layer for layer in (parameter_of(name).rpartition(".")[0], scope_of(node)) if layer in schemes]
        kind = {"Gather": "embedding", "Gemm": "linear", "MatMul": "linear"}.get(node.op_type, "conv")
        before = found.get(name, _Tensor(32, frozenset(), False, ()))
        layers = tuple(dict.fromkeys((*before.layers, *own)))
        found[name] = _Tensor(32, before.kinds | {kind}, before.rows or rows, layers)
    return {
        name: replace(tensor, choice=shared(schemes[layer] for layer in tensor.layers))
        for name, tensor in found.items()
        if tensor.layers
    }


def _own(node: NodeProto, name: str) -> bool:
    """Whether a tensor holds a layer's weights in the rows in which they were rounded; a turned copy read turned does not."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return parameter_of(name).rpartition(".")[2] == "weight" and not (turned and name.endswith(TRANSPOSED))


def _weights(node: NodeProto) -> str:
    """The tensor of weights that an operator reads; empty where it has none."""
    index = WEIGHT_INPUT.get(node.op_type, -1)
    return str(node.input[index]) if 0 <= index < len(node.input) and not selects(node) else ""


def grid(rows: Floats, most: int, size: int) -> tuple[NDArray[np.int8], Floats]:
    """Return integers (O, d) and steps (O, d / size) of weights (O, d).

    In each group all values are multiples of the step, where there is one such that the largest is at most `most` of them; else
    the largest is `most` steps, and the values are rounded.

    Example:
        >>> grid(np.array([[0.2, -0.6, 0.4, 0.0]]), 7, 4)
        (array([[ 2, -6,  4,  0]], dtype=int8), array([[0.1]]))
    """
    groups = rows.reshape(len(rows), -1, size)
    largest = np.abs(groups).max(2)
    steps, missing = np.where(largest > 0, largest / most, 1.0), largest > 0
    for level in range(most, 0, -1):
        if not missing.any() or (level == most - FEW and missing.sum() > 0.5 * largest.size):
            break  # no more is to be found, or it does not look as if anything were
        tried = largest[missing] / level
        parts = groups[missing] / tried[:, None]
        fits = (np.abs(parts - np.rint(parts)) <= EXACT * level / most).all(1)
        places = np.argwhere(missing)[fits]
        steps[tuple(places.T)] = tried[fits]
        missing[tuple(places.T)] = False
    steps = steps.astype(np.float32).astype(np.float64)
    integers = np.clip(np.rint(groups / steps[..., None]), -most, most).astype(np.int8)
    return integers.reshape(rows.shape), steps


class _Writer:
    """The graph in the making."""

    def __init__(self, model: ModelProto, exact: bool, gathers: bool) -> None:
        self.model, self.exact, self.gathers = model, exact, gathers
        self.floats = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.nodes: list[NodeProto] = []
        self._held = {tensor.name for tensor in model.graph.initializer}
        self._rounded: dict[str, tuple[str, str, str]] = {}

    def write(self, node: NodeProto, name: str, tensor: _Tensor, *, turned: bool) -> None:
        """Append what computes `node` from its weights `name` in their scheme; `turned` where it reads them turned."""
        if tensor.choice in HALVES:
            self._half(node, name, tensor, turned=turned)
            return
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
        if node.op_type == "Gather":
            self._table(node, name, tensor)
        elif node.op_type == "MatMul" or (node.op_type == "Gemm" and plain):
            self._product(node, name, tensor, turned=turned or bool(attributes.get("transB")))
        else:
            self._filters(node, name, tensor)

    def _product(self, node: NodeProto, name: str, tensor: _Tensor, *, turned: bool) -> None:
        """A matrix product with weights (K, N), or (N, K) `turned`."""
        given, output = node.input[0], node.output[0]
        summed = len(node.input) > 2
        product = f"{output}/product" if summed else output
        if scheme(tensor.choice).inputs == "dynamic" and (turned or not tensor.rows):
            integers, scale = self._columns(name, tensor, turned=turned)
            rounded, step, zero = self._round(given)
            counts, floats, steps = (f"{node.name}/{part}" for part in ("counts", "floats", "steps"))
            self._add("MatMulInteger", [rounded, integers, zero], counts)
            self._add("Cast", [counts], floats, to=TensorProto.FLOAT)
            self._add("Mul", [step, scale], steps)
            self._add("Mul", [floats, steps], product)
        else:
            weight = self._floated(name, tensor, turned=turned)
            self._add("MatMul", [given, weight], product, name=node.name)
        if summed:
            self._add("Add", [product, node.input[2]], output)

    def _columns(self, name: str, tensor: _Tensor, *, turned: bool) -> tuple[str, str]:
        """Integers (K, N) and steps (K / size, N) of a product: kept so, or turned from rows as the file is loaded."""
        if not tensor.rows or self.gathers:
            return self._keep(name, tensor, turned=turned, columns=True)
        kept = self._keep(name, tensor)
        for part in kept:
            self._add("Transpose", [part], f"{part}{TRANSPOSED}", perm=[1, 0])
        return f"{kept[0]}{TRANSPOSED}", f"{kept[1]}{TRANSPOSED}"

    def _floated(self, name: str, tensor: _Tensor, *, turned: bool) -> str:
        """Weights (K, N) as floats, by a step that runtimes fuse with the product where groups have a size that they know.

        ONNX Runtime does so where integers were turned; OpenVINO would store these again, and fuses what is turned after (but
        2026.4 crashes where such integers of 4 bits have one step a row).
        """
        size = tensor.group(self.floats[name].dims[1 if turned else 0])
        if tensor.rows and (not turned or (self.gathers and (size in GROUPS or scheme(tensor.choice).bits > 4))):
            rows = self._floats(name, tensor)
            if not turned:
                return rows
            self._add("Transpose", [rows], f"{rows}{TRANSPOSED}", perm=[1, 0])
            return f"{rows}{TRANSPOSED}"
        integers, scale = self._columns(name, tensor, turned=turned)
        floats = f"{integers.removesuffix(QUANTIZED)}/floats"
        if size in GROUPS:
            self._add("DequantizeLinear", [integers, scale], floats, axis=0, block_size=size)
        else:
            self._turned(integers, scale, floats)
        return floats

    def _floats(self, name: str, tensor: _Tensor) -> str:
        """All of a tensor as floats that lies in rows."""
        integers, scale = self._keep(name, tensor)
        size = tensor.group(self.floats[name].dims[1])
        if size in GROUPS:
            self._add("DequantizeLinear", [integers, scale], f"{name}/floats", axis=1, block_size=size)
        else:
            self._turned(integers, scale, f"{name}/floats")
        return f"{name}/floats"

    def _half(self, node: NodeProto, name: str, tensor: _Tensor, *, turned: bool) -> None:
        """A layer with weights in half precision: turned to floats as the file is loaded, a table's rows as they are read."""
        kept, floats = f"{name}{QUANTIZED}", f"{name}/floats"
        if kept not in self._held:
            half = numpy_helper.to_array(self.floats[name]).astype(helper.tensor_dtype_to_np_dtype(HALVES[tensor.choice]))
            self.model.graph.initializer.append(numpy_helper.from_array(half, kept))
            self._held.add(kept)
        if node.op_type == "Gather":
            self._add("Gather", [kept, node.input[1]], f"{node.name}/rows")
            self._add("Cast", [f"{node.name}/rows"], node.output[0], to=TensorProto.FLOAT)
            return
        self._add("Cast", [kept], floats, to=TensorProto.FLOAT)
        if turned:
            self._add("Transpose", [floats], f"{floats}{TRANSPOSED}", perm=[1, 0])
        node.input[WEIGHT_INPUT[node.op_type]] = f"{floats}{TRANSPOSED}" if turned else floats
        self.nodes.append(node)

    def _filters(self, node: NodeProto, name: str, tensor: _Tensor) -> None:
        """A convolution, or what has no integer form of its own."""
        integers, scale = self._keep(name, tensor)
        self._turned(integers, scale, f"{name}/floats")
        node.input[WEIGHT_INPUT[node.op_type]] = f"{name}/floats"
        self.nodes.append(node)

    def _table(self, node: NodeProto, name: str, tensor: _Tensor) -> None:
        """An embedding: the rows that are read are turned to floats."""
        integers, scale = self._keep(name, tensor)
        width = self.floats[name].dims[1]
        size = tensor.group(width)
        if scheme(tensor.choice).bits == 4 and (size in GROUPS or not self.gathers):  # a block of two to some power, from 16
            block = max(GROUPS[-1], 1 << (size - 1).bit_length())
            axes: dict[str, Any] = {"block_size": block, "gather_axis": 0, "quantize_axis": 1, "domain": "com.microsoft"}
            self._add("GatherBlockQuantized", [integers, node.input[1], scale], node.output[0], **axes)
            return
        if size < width and self.gathers:  # which turns to floats what it gathers
            self._add("Gather", [self._floats(name, tensor), node.input[1]], node.output[0], name=node.name)
            return
        rows, floats, steps = (f"{node.name}/{part}" for part in ("rows", "floats", "steps"))
        self._add("Gather", [integers, node.input[1]], rows)
        self._add("Gather", [scale, node.input[1]], steps)
        if size < width:
            self._add("DequantizeLinear", [rows, steps], node.output[0], axis=-1, block_size=size)
            return
        self._add("Cast", [rows], floats, to=TensorProto.FLOAT)
        self._add("Mul", [floats, steps], node.output[0])

    def _turned(self, integers: str, scale: str, floats: str) -> None:
        """Integers to floats by operators that are folded as the file is loaded."""
        self._add("Cast", [integers], f"{floats}/cast", to=TensorProto.FLOAT)
        self._add("Mul", [f"{floats}/cast", scale], floats)

    def _round(self, given: str) -> tuple[str, str, str]:
        """What a tensor is rounded to in the range of the request: integers, step, zero; once for all that read it."""
        if given not in self._rounded:
            outputs = tuple(f"{given}/{part}" for part in ("rounded", "step", "zero"))
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [given], outputs, name=f"{given}/rounding"))
            self._rounded[given] = (outputs[0], outputs[1], outputs[2])
        return self._rounded[given]

    def _keep(self, name: str, tensor: _Tensor, *, turned: bool = False, columns: bool = False) -> tuple[str, str]:
        """Keep a tensor (or the `turned` one) as integers and steps, shared in rows or `columns`, and return their names."""
        name, value = (f"{name}{TRANSPOSED}" if turned else name), numpy_helper.to_array(self.floats[name]).astype(np.float64)
        names = f"{name}{QUANTIZED}", f"{name}{SCALE}"
        if names[0] not in self._held:
            value = value.T if turned else value
            rows = value.T if columns else value.reshape(len(value), -1)
            integers, steps = grid(rows, top(tensor.choice, exact=self.exact), tensor.group(rows.shape[1]))
            integers = integers.T if columns else integers.reshape(value.shape)
            steps = steps.T if columns else steps.reshape(*steps.shape, *[1] * (value.ndim - 2))
            # OpenVINO 2026.4 multiplies 4-bit rows of odd length wrongly on AVX2 (a tenth of the answers' spread or more)
            wrong = self.gathers and "linear" in tensor.kinds and rows.shape[1] % 2
            packed = _packed if scheme(tensor.choice).bits == 4 and not wrong else numpy_helper.from_array
            self.model.graph.initializer.append(packed(np.ascontiguousarray(integers), names[0]))
            self.model.graph.initializer.append(numpy_helper.from_array(steps.astype(np.float32), names[1]))
            self._held.update(names)
        return names

    def _add(self, kind: str, inputs: list[str], output: str, *, name: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name or output, **attributes))

    def finished(self) -> bytes:
        """Return the file: each tensor made once, and none that nothing reads."""
        graph = self.model.graph
        made: dict[str, NodeProto] = {}
        for node in self.nodes:
            made.setdefault(node.output[0] if node.output else node.name, node)
        read = {name for node in made.values() for name in node.input} | {value.name for value in graph.output}
        nodes = [node for node in made.values() if node.op_type != "Transpose" or node.output[0] in read]
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        foreign = any(node.domain for node in nodes)
        for entry in self.model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, OPSET)
        if foreign and "com.microsoft" not in {entry.domain for entry in self.model.opset_import}:
            self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        checker.check_model(self.model)
        content: bytes = self.model.SerializeToString(deterministic=True)
        return content


def _packed(integers: NDArray[np.int8], name: str) -> TensorProto:
    """A tensor of 4-bit integers, two to a byte, the first in the low half."""
    flat = integers.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return TensorProto(
        name=name, data_type=TensorProto.INT4, dims=list(integers.shape), raw_data=(flat[0::2] | flat[1::2] << 4).tobytes()
    )
