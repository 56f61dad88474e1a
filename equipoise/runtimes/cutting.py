"""An ONNX file in two: where it can be cut, and the files of both halves, with what passes between them in few levels.

A cut is a tensor that everything behind it is made of, as between two blocks of a residual network; beside it may pass inputs
of whole numbers, such as the mask of a text, which later layers read too. The inputs are the first cut: all runs behind it.

What passes is rounded inside the files: the first half ends with ``round((x - low) / step)`` as 8-bit integers, the second
begins with ``low + step * q``. So each half is a whole model that any runtime computes, and what is scored is what ships.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    load_from_string,
    numpy_helper,
    shape_inference,
)

from equipoise.errors import must_be

SENT = "/sent"
"""Suffix of a tensor in the form in which it passes."""
MOST_LEVELS = 256
"""Levels that 8 bits can tell apart."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a file is cut.

    Attributes:
        tensor: What passes, floats, by its name in the file; empty where only inputs pass.
        inputs: The inputs that pass beside it as they are.
        after: The operator that makes it, named after its layer; empty for an input.
    """

    tensor: str
    inputs: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class Grid:
    """The values that a tensor is rounded to: ``low + step * q`` for whole q from 0 to ``levels - 1``.

    Attributes:
        low, step: Float32, of a shape that broadcasts with the tensor: one for all of it, or one for each channel.
    """

    low: NDArray[np.float32]
    step: NDArray[np.float32]
    levels: int

    @classmethod
    def over(cls, low: NDArray[np.float32], high: NDArray[np.float32], levels: int) -> Grid:
        """Return the grid of so many levels from `low` to `high`; where the two are one, its step is 1."""
        span = np.where(high > low, high - low, levels - 1).astype(np.float32)
        return cls(np.asarray(low, np.float32), np.asarray(span / np.float32(levels - 1), np.float32), levels)


def cuts(content: bytes) -> list[Cut]:
    """Return where a file can be cut, in the order of its operators; the first sends the inputs, the output is no cut.

    Raises:
        InputError: The file gives more than one output.
    """
    graph, known = _inferred(content)
    if len(graph.output) != 1:
        outputs = ", ".join(value.name for value in graph.output)
        remedy = "A model that reads on from its past is not split."
        raise must_be("model", "one whose file has a single output", outputs, remedy)
    inputs = [value.name for value in graph.input]
    floats = {name for name, value in known.items() if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    rounded = next((name for name in inputs if name in floats), "")
    found = [Cut(rounded, tuple(name for name in inputs if name != rounded))]
    makers = _makers(graph)
    last = graph.output[0].name
    for name, node in makers.items():
        needed = _needed([last], makers, stop={name})
        beside = tuple(given for given in inputs if given in needed)
        if name in floats and name != last and name in needed and not floats & set(beside):
            found.append(Cut(name, beside, node.name))
    return found


def exposed(content: bytes, names: Sequence[str]) -> bytes:
    """Return the file with the tensors `names`, of `cuts`, as its outputs."""
    graph, known = _inferred(content)
    return _part(load_from_string(content), [known[name] for name in names], list(graph.input))


def halves(content: bytes, cut: Cut, grid: Grid | None) -> tuple[bytes, bytes]:
    """Return the files before and behind a cut; the first is empty where inputs pass as they are.

    Args:
        cut: One of `cuts`.
        grid: What its tensor is rounded to, which then passes under its name with `SENT`; None lets it pass as it is.
    """
    graph, known = _inferred(content)
    first, rest = load_from_string(content), load_from_string(content)
    name, inputs = cut.tensor, list(graph.input)
    passing = [known[each] for each in (name, *cut.inputs) if each]
    if name and grid is not None:
        passing[0] = ValueInfoProto()
        passing[0].CopyFrom(known[name])
        passing[0].name = name + SENT
        passing[0].type.tensor_type.elem_type = TensorProto.UINT8
        behind = [node for node in rest.graph.node if name not in node.output]
        rest.graph.ClearField("node")
        for half, (nodes, values) in ((first, _round(name, grid)), (rest, _back(name, grid))):
            half.graph.node.extend(nodes)
            half.graph.initializer.extend(values)
        rest.graph.node.extend(behind)
    whole_inputs = not name or (grid is None and name in {value.name for value in inputs})
    return b"" if whole_inputs else _part(first, passing[:1], inputs), _part(rest, list(graph.output), passing)


Parts = tuple[list[NodeProto], list[TensorProto]]
"""Operators and their constants."""


def _round(name: str, grid: Grid) -> Parts:
    """How a tensor becomes whole numbers."""
    words = ("low", "turns", "least", "most", "moved", "scaled", "rounded", "bounded")
    low, turns, least, most, moved, scaled, rounded, bounded = (f"{name}{SENT}/{word}" for word in words)
    nodes = [
        helper.make_node("Sub", [name, low], [moved], name=moved),
        helper.make_node("Mul", [moved, turns], [scaled], name=scaled),
        helper.make_node("Round", [scaled], [rounded], name=rounded),
        helper.make_node("Clip", [rounded, least, most], [bounded], name=bounded),
        helper.make_node("Cast", [bounded], [name + SENT], name=name + SENT, to=TensorProto.UINT8),
    ]
    return nodes, _constants({low: grid.low, turns: 1 / grid.step, least: 0, most: grid.levels - 1})


def _back(name: str, grid: Grid) -> Parts:
    """How whole numbers become a tensor again."""
    low, step, floats, scaled = (f"{name}{SENT}/{word}" for word in ("low", "step", "floats", "back"))
    nodes = [
        helper.make_node("Cast", [name + SENT], [floats], name=floats, to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, step], [scaled], name=scaled),
        helper.make_node("Add", [scaled, low], [name], name=f"{name}{SENT}/added"),
    ]
    return nodes, _constants({low: grid.low, step: grid.step})


def _constants(values: Mapping[str, NDArray[Any] | float]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]


def _inferred(content: bytes) -> tuple[GraphProto, dict[str, ValueInfoProto]]:
    """The graph of a file, and of its tensors those of which type and rank are known, with the first axis free."""
    graph = shape_inference.infer_shapes(load_from_string(content)).graph
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    return graph, {name: value for name, value in values.items() if _free(value)}


def _free(value: ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(value.type.tensor_type.elem_type and len(dims) and not dims[0].HasField("dim_value"))


def _makers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def _needed(names: Sequence[str], makers: Mapping[str, NodeProto], *, stop: set[str]) -> set[str]:
    """The tensors that others are made of, themselves included, going no further back than `stop`."""
    needed, waiting = set[str](), list(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += _read(makers[name]) if name in makers and name not in stop else []
    return needed


def _part(model: ModelProto, outputs: Sequence[ValueInfoProto], inputs: Sequence[ValueInfoProto]) -> bytes:
    """Return what of `model` (changed in place) the outputs need, from those of the `inputs` that they need."""
    graph = model.graph
    given = {value.name for value in inputs}
    needed = _needed([value.name for value in outputs], _makers(graph), stop=given)
    nodes = [node for node in graph.node if (needed - given) & set(node.output)]
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    taken = [value for value in inputs if value.name in needed]
    for field, values in (
        ("node", nodes),
        ("initializer", constants),
        ("input", taken),
        ("output", outputs),
        ("value_info", ()),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    checker.check_model(model)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _read(node: NodeProto) -> Iterator[str]:
    """The tensors that an operator reads, those within its branches among them."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for part in inner.node:
                yield from _read(part)
