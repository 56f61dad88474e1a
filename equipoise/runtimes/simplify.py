"""Graph rewrites that change the time and never the function; exact up to the order of a sum.

Runtimes run convolutions and pools in blocked or int8 layouts and leave those layouts for anything else, which costs more
than the work itself. Two patterns of ordinary torch code fall out of the layout and need not, and a third takes two passes
over memory for one:

- a shortcut that subsamples and zero-pads channels (``F.pad(x[:, :, ::2, ::2], ...)``, "option A" of residual networks) is a
  1×1 convolution with a stride and zeros and ones for weights;
- a mean over both image axes is a global average pool;
- a sum of rows by weights (``(x * w[:, :, None]).sum(1)``, the pooling of texts and histories) is a product of matrices: 64
  users of `twotower`, 64 rows of 128 features each, take 0.80 of the time (AVX2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

IMAGE_AXES = (2, 3)
"""Height and width of (N, C, H, W)."""
KERNEL = "/kernel"
"""In the names of the weights of a rewritten shortcut, and of no other."""


def simplify(model: ModelProto) -> ModelProto:
    """Return `model` with these patterns rewritten; the input may be changed in place."""
    view = _View.of(shape_inference.infer_shapes(model))
    nodes: list[NodeProto] = []
    gone: set[str] = set()
    for node in model.graph.node:
        chain = _subsampling(node, view) if node.op_type == "Pad" else None
        if chain is not None:
            source, strides = chain
            replacement = _convolution(node, source, strides, view, model)
            gone |= _outputs_between(source, node, view)
        elif (product := _weighing(node, view)) is not None:
            gone.add(node.input[0])
            replacement = product
        else:
            replacement = _pooling(node, view) if node.op_type == "ReduceMean" else [node]
        nodes += replacement
    kept = [node for node in nodes if node.output[0] not in gone]
    used = {name for node in kept for name in node.input}
    constants = [initializer for initializer in model.graph.initializer if initializer.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)
    return model


@dataclass(frozen=True)
class _View:
    """What the patterns ask of a graph."""

    constants: Mapping[str, NDArray[np.generic]]
    producers: Mapping[str, NodeProto]
    consumers: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    floats: frozenset[str]
    taken: frozenset[str]

    @classmethod
    def of(cls, model: ModelProto) -> _View:
        """Read `model`, with its shapes inferred; an unknown extent is 0."""
        graph = model.graph
        small = (i for i in graph.initializer if i.data_type == TensorProto.INT64 or len(i.dims) == 0)
        consumers: dict[str, int] = {value.name: 1 for value in graph.output}
        for node in graph.node:
            for name in node.input:
                consumers[name] = consumers.get(name, 0) + 1
        values = (*graph.input, *graph.value_info)
        return cls(
            {i.name: numpy_helper.to_array(i) for i in small},
            {name: node for node in graph.node for name in node.output},
            consumers,
            {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values},
            frozenset(v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT),
            frozenset(node.name for node in graph.node),
        )

    def ints(self, node: NodeProto, index: int) -> list[int] | None:
        """The integers of a constant input, or None."""
        if len(node.input) <= index or node.input[index] not in self.constants:
            return None
        return [int(value) for value in self.constants[node.input[index]].ravel()]


def readers_of(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return tensor -> the nodes that read it, once for each place in which they do."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def selects(node: NodeProto) -> bool:
    """Whether the weights of an operator only select channels: a rewritten shortcut, which is no layer."""
    return node.op_type == "Conv" and KERNEL in node.input[1]


def _subsampling(pad: NodeProto, view: _View) -> tuple[str, dict[int, int]] | None:
    """The tensor that a chain of strided slices starts from, and axis -> stride, when `pad` only adds zero channels."""
    pads = view.ints(pad, 1)
    value = view.constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    if pads is None or len(pads) != 8 or len(pad.input) > 3 or value is None or np.any(value) or mode != b"constant":
        return None
    if any(pads[i] for i in (0, 2, 3, 4, 6, 7)) or min(pads) < 0:
        return None
    source, strides = pad.input[0], dict.fromkeys(IMAGE_AXES, 1)
    while (node := view.producers.get(source)) is not None and node.op_type == "Slice" and view.consumers[source] == 1:
        starts, ends, axes, steps = (view.ints(node, index) for index in (1, 2, 3, 4))
        if starts is None or ends is None or axes is None or steps is None or any(starts) or min(steps) < 1:
            break
        shape = view.shapes.get(node.input[0], ())
        if any(
            axis not in IMAGE_AXES or (end < 2**31 - 1 and not 0 < shape[axis] <= end)
            for axis, end in zip(axes, ends, strict=True)
        ):
            break
        for axis, step in zip(axes, steps, strict=True):
            strides[axis] *= step
        source = node.input[0]
    shape = view.shapes.get(source, ())
    return (source, strides) if len(shape) == 4 and shape[1] > 0 and max(strides.values()) > 1 else None


def _outputs_between(source: str, pad: NodeProto, view: _View) -> set[str]:
    """Names of the slices that the convolution replaces."""
    names, name = set(), pad.input[0]
    while name != source:
        names.add(name)
        name = view.producers[name].input[0]
    return names


def _convolution(pad: NodeProto, source: str, strides: dict[int, int], view: _View, model: ModelProto) -> list[NodeProto]:
    """The 1×1 convolution (cin -> before + cin + after) that subsamples and pads; its weights go into `model`."""
    pads = view.ints(pad, 1) or []
    channels = view.shapes[source][1]
    weight = np.zeros((pads[1] + channels + pads[5], channels, 1, 1), dtype=np.float32)
    weight[np.arange(channels) + pads[1], np.arange(channels)] = 1
    name = _free(pad.name.removesuffix("/Pad") + "/Subsample", view)
    model.graph.initializer.append(numpy_helper.from_array(weight, name + KERNEL))
    inputs = [source, name + KERNEL]
    return [helper.make_node("Conv", inputs, list(pad.output), name=name, strides=[strides[axis] for axis in IMAGE_AXES])]


def _pooling(mean: NodeProto, view: _View) -> list[NodeProto]:
    """A global average pool (and a flatten, where the axes are dropped), or the node itself."""
    axes = view.ints(mean, 1)
    keep = next((a.i for a in mean.attribute if a.name == "keepdims"), 1)
    if len(view.shapes.get(mean.input[0], ())) != 4 or axes is None or sorted(a % 4 for a in axes) != list(IMAGE_AXES):
        return [mean]
    name = mean.name.replace("ReduceMean", "GlobalAveragePool")
    if keep:
        return [helper.make_node("GlobalAveragePool", [mean.input[0]], list(mean.output), name=name)]
    pooled = f"{mean.output[0]}/pooled"
    flatten = mean.name.replace("ReduceMean", "Flatten")
    return [
        helper.make_node("GlobalAveragePool", [mean.input[0]], [pooled], name=_free(name, view)),
        helper.make_node("Flatten", [pooled], list(mean.output), name=_free(flatten, view), axis=1),
    ]


def _weighing(total: NodeProto, view: _View) -> list[NodeProto] | None:
    """The product (N, 1, L) @ (N, L, W) in place of a sum over L of products (N, L, W) * (N, L, 1); None for another node."""
    product = view.producers.get(total.input[0]) if total.op_type == "ReduceSum" else None
    if product is None or product.op_type != "Mul" or view.consumers[product.output[0]] != 1:
        return None
    if view.ints(total, 1) not in ([1], [-2]) or not view.floats >= set(product.input):
        return None
    rows, weights = sorted(product.input, key=lambda name: view.shapes[name][-1:] == (1,))
    shapes = view.shapes[rows], view.shapes[weights]
    # two lengths that are not known are one, or torch would have fixed the one that is repeated at 1
    if any(len(shape) != 3 or shape[1] == 1 for shape in shapes) or shapes[0][2] < 2 or shapes[1][2] != 1:
        return None
    kept = next((a.i for a in total.attribute if a.name == "keepdims"), 1)
    name = _free(total.name.replace("ReduceSum", "MatMul"), view)
    turned, made = f"{total.output[0]}/weights", total.output[0] if kept else f"{total.output[0]}/product"
    nodes = [
        helper.make_node("Transpose", [weights], [turned], name=f"{name}/Transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", [turned, rows], [made], name=name),
    ]
    if not kept:
        nodes.append(helper.make_node("Squeeze", [made, total.input[1]], list(total.output), name=f"{name}/Squeeze"))
    return nodes


def _free(name: str, view: _View) -> str:
    """A node name not taken yet."""
    return name if name not in view.taken else _free(f"{name}_", view)
