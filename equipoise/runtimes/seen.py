"""What the tensors of a graph hold on calibration inputs, and what its layers read: one pass, two samples at a time.

Few samples at a time keep every tensor in the cache: 64 photographs through MobileNetV2 with all of its tensors kept took 1.3
seconds in twos and 2.8 in sixteens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from equipoise.batch import Inputs, parts, size
from equipoise.runtimes.base import feeds
from equipoise.runtimes.sessions import session

Array = NDArray[Any]

CONVOLUTIONS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization")
LAST = ("MatMul", "Gemm", "LayerNormalization")
"""Operators whose channels are the second axis, and those whose are the last."""
ALIKE = ("Relu", "Clip", "Add", "Sigmoid", "Mul", "HardSwish", "HardSigmoid", "Gelu")
"""Operators that leave the channels where they are."""
AT_ONCE = 2
"""Samples in one call."""
EVERY = 2
"""What the layers read is kept of every second call."""
VALUES = 2**16
"""Values kept of a tensor, about."""
COLUMN_VALUES, FEWEST_COLUMNS, MOST_COLUMNS = 2**20, 256, 1536
"""Of what a layer reads: values kept, about, and bounds on the places (columns) that they are of."""


@dataclass(frozen=True)
class Seen:
    """What one tensor held.

    Attributes:
        low, high: Least and largest value of each channel (C,).
        kept: A sample of the values (C, P), at random places.
    """

    low: Array
    high: Array
    kept: Sequence[Array]

    @property
    def sample(self) -> Array:
        """The values kept, in one array (C, P)."""
        return np.concatenate(self.kept, 1)


@dataclass(frozen=True)
class Reading:
    """What every tensor held, and what every layer read.

    Attributes:
        tensors: Tensor -> what it held.
        columns: Layer (a node's name) -> what it read (G, K, P): of each group, the K values that one output is a product of,
            at P random places.
    """

    tensors: Mapping[str, Seen]
    columns: Mapping[str, Array]


def read(
    model: ModelProto, names: Sequence[str], layers: Mapping[str, tuple[NodeProto, tuple[int, ...]]], inputs: Inputs
) -> Reading:
    """Run `inputs` through a float graph and keep what the named tensors hold and the layers read.

    Args:
        model: Float, with the shapes of its tensors inferred or not; it is not changed.
        names: Tensors of floats.
        layers: Name -> node and shape of its weights, which are constant: Conv, Gemm or MatMul.
        inputs: (N, ...), one array or several by name.
    """
    tensors: dict[str, Seen] = {}
    rows: dict[str, list[Array]] = {name: [] for name in layers}
    generator, batches = np.random.default_rng(0), -(-size(inputs) // AT_ONCE)
    wanted = list(dict.fromkeys([*names, *(node.input[0] for node, _ in layers.values())]))
    looks, images = -(-batches // EVERY), _images(model)
    for number, held in enumerate(runs(model, wanted, inputs)):
        for name in names:
            axis = 1 if name in images and held[name].ndim > 1 else -1
            _keep(tensors, name, np.moveaxis(held[name], axis, 0) if held[name].ndim else held[name][None], generator, batches)
        if number % EVERY:
            continue
        for name, (node, shape) in layers.items():
            most = COLUMN_VALUES // _width(node, shape)
            places = -(-min(MOST_COLUMNS, max(FEWEST_COLUMNS, most)) // looks)
            rows[name].append(columns(held[node.input[0]], node, shape, places, generator))
    return Reading(tensors, {name: np.concatenate(found, 2) for name, found in rows.items()})


def runs(model: ModelProto, names: Sequence[str], inputs: Inputs, *, at_once: int = AT_ONCE) -> Iterator[dict[str, Array]]:
    """Yield the values of the named tensors of floats for a few samples at a time."""
    shown = ModelProto()
    shown.CopyFrom(model)
    defaults = {tensor.name for tensor in shown.graph.initializer}
    given = [value.name for value in shown.graph.input if value.name not in defaults]
    made = [name for name in names if name not in given]
    own = {value.name for value in shown.graph.output}
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made if name not in own)
    loaded = session(shown.SerializeToString())
    for few in parts(inputs, at_once):
        fed = feeds(few, given)
        yield {**fed, **dict(zip(made, loaded.run(made, fed) if made else (), strict=True))}


def _images(model: ModelProto) -> set[str]:
    """Return the tensors whose channels are their second axis: those of convolutions, and what is made of them by value."""
    known = {name for node in model.graph.node if node.op_type in CONVOLUTIONS for name in (node.input[0], *node.output)}
    last = {name for node in model.graph.node if node.op_type in LAST for name in (node.input[0], *node.output)}
    for node in model.graph.node:
        if node.op_type in ALIKE and node.input[0] in known:
            known |= set(node.output)
    return known - last


def _keep(found: dict[str, Seen], name: str, value: Array, generator: np.random.Generator, batches: int) -> None:
    """Add what a tensor held in one call, its channels first; one of which their number changes is taken as one channel."""
    rows = value.reshape(len(value), -1)
    old = found.get(name)
    if old is not None and len(old.low) != len(rows):
        rows, whole = rows.reshape(1, -1), [kept.reshape(1, -1) for kept in old.kept]
        old = Seen(old.low.min()[None], old.high.max()[None], whole)
    low, high = rows.min(1), rows.max(1)
    places = max(1, VALUES // (len(rows) * batches))
    drawn = rows[:, generator.integers(rows.shape[1], size=min(places, rows.shape[1]))]
    if old is not None:
        low, high = np.minimum(old.low, low), np.maximum(old.high, high)
    found[name] = Seen(low, high, [drawn] if old is None else [*old.kept, drawn])


def columns(value: Array, node: NodeProto, shape: tuple[int, ...], places: int, generator: np.random.Generator) -> Array:
    """Return what a layer reads for `places` of its outputs, drawn at random: (G, K, P) for weights (O, K) in G groups.

    Args:
        value: Its input, (N, C, ...) of a convolution, (..., K) of a product.
        node, shape: The layer and the shape of its weights.
        places: P, at most; all places where there are no more.
    """
    if node.op_type != "Conv":
        rows = value.reshape(-1, value.shape[-1])
        return rows[_drawn(len(rows), places, generator)].T[None]
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes, groups = len(shape) - 2, told.get("group", 1)
    strides, spread = (told.get(name) or [1] * axes for name in ("strides", "dilations"))
    pads = told.get("pads") or [0] * (2 * axes)
    edges = [(0, 0), (0, 0), *((pads[axis], pads[axes + axis]) for axis in range(axes))]
    window = [(side - 1) * by + 1 for side, by in zip(shape[2:], spread, strict=True)]
    seen = sliding_window_view(np.pad(value, edges), window, axis=tuple(range(2, 2 + axes)))  # (N, C, ..., kernel...)
    seen = seen[(slice(None), slice(None), *(slice(None, None, by) for by in (*strides, *spread)))]
    extents = (len(value), *seen.shape[2 : 2 + axes])
    drawn = np.unravel_index(_drawn(int(np.prod(extents)), places, generator), extents)
    picked = np.moveaxis(seen, 1, axes + 1)[drawn]  # (P, C, kernel...)
    return np.moveaxis(picked.reshape(len(picked), groups, -1), 0, 2)


def _drawn(count: int, most: int, generator: np.random.Generator) -> Array:
    return np.arange(count) if count <= most else generator.integers(count, size=most)


def _width(node: NodeProto, shape: tuple[int, ...]) -> int:
    """Values that a layer reads for one place."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return int(np.prod(shape[1:])) * groups if node.op_type == "Conv" else max(shape)
