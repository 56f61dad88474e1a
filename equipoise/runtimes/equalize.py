"""Cross-layer equalization: channels of a tensor between convolutions are brought to one scale, before it is rounded on one.

A tensor has one scale for all of its channels; where some of them are small, the rounding is as large as they are. A rectifier
commutes with a positive gain, so a channel can be multiplied by the rows of the convolution that makes it and divided by the
columns of those that read it, and the function is the same. ReLU6 does not commute: it is left where it is, and a channel is
raised only as far as it never reaches it on the calibration inputs; one that does reach it already fills the range.

How far: what a depthwise convolution reads costs it nothing, as each channel has a scale of its own. In a dense one, a column
that is divided by the gain g is rounded with the rest of its row, and this error grows with g as the other falls:
``noise(g) = (step^2 sum_o w_oc^2) / g^2 + g^2 E[x_c^2] sum_o s_o^2`` (times 1/12) is least at ``g^4 = first / second``.

References:
    Nagel et al. 2019, *Data-free quantization through weight equalization and bias correction*, section 4.1; there weights are
    equalized, which scales per channel have made needless here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, load_from_string, numpy_helper, shape_inference

from equipoise.batch import Inputs, size, take
from equipoise.runtimes.seen import Seen, read, runs
from equipoise.runtimes.simplify import readers_of

Array = NDArray[Any]

MOST = 64.0
"""A channel is raised by this at most."""
RECTIFIERS = ("Relu", "Clip")
PROOF = 8
"""Calibration inputs on which an equalized graph must give what it gave before."""
TOLERANCE = 1e-4
"""Largest difference that equalizing may make, as a fraction of the largest answer: sums in another scale."""


@dataclass(frozen=True)
class Link:
    """A tensor between convolutions: who makes it and who reads it."""

    tensor: str
    maker: NodeProto
    readers: tuple[NodeProto, ...]


def links(model: ModelProto) -> list[Link]:
    """Return the tensors whose channels can be raised: made by one convolution, rectified or not, and read by others alone."""
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    readers = readers_of(model.graph)

    def owns(node: NodeProto) -> bool:
        held = node.input[1:]
        return node.op_type == "Conv" and all(name in constants and len(readers[name]) == 1 for name in held)

    found = []
    for maker in filter(owns, model.graph.node):
        tensor = maker.output[0]
        after = readers.get(tensor, [])
        if len(after) == 1 and after[0].op_type in RECTIFIERS and tensor not in outputs and _from_zero(after[0], model):
            tensor = after[0].output[0]
            after = readers.get(tensor, [])
        fed = all(owns(node) and node.input[0] == tensor for node in after)
        if after and fed and tensor not in outputs:
            found.append(Link(tensor, maker, tuple(after)))
    return found


def gains(link: Link, seen: Seen, weights: Mapping[str, Array], *, levels: int) -> Array:
    """Return by how much each channel of a tensor is raised (C,), 1 or more.

    Args:
        link: The tensor.
        seen: What it held on the calibration inputs.
        weights: Initializer -> value.
        levels: Largest integer that a weight is rounded to.
    """
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high)).astype(np.float64)
    top = reach.max()
    limit = np.divide(top, reach, out=np.ones_like(reach), where=reach > 0)
    dense = [node for node in link.readers if _groups(node) == 1]
    if dense:
        step, power = top / 255, np.square(seen.sample.astype(np.float64)).mean(1)
        held, noise = np.zeros_like(reach), np.zeros_like(reach)
        for node in dense:
            value = weights[node.input[1]].astype(np.float64)  # (O, C, kernel...)
            held += np.square(value).reshape(*value.shape[:2], -1).sum((0, 2))
            scales = np.abs(value.reshape(len(value), -1)).max(1) / levels
            noise += np.square(scales).sum() * np.prod(value.shape[2:])
        ratio = np.divide(step**2 * held, power * noise, out=np.ones_like(reach), where=(power * noise > 0) & (held > 0))
        limit = np.minimum(limit, ratio**0.25)
    if any(_groups(node) not in (1, len(reach)) for node in link.readers):
        return np.ones_like(reach)
    return np.asarray(np.clip(limit, 1.0, MOST))


def equalized(
    model: ModelProto, tensors: Mapping[str, Seen], *, levels: int = 127, left: Collection[str] = ()
) -> tuple[ModelProto, dict[str, Array]]:
    """Return a copy of a float graph with its channels raised, and tensor -> gains (C,) where any was.

    Args:
        model: Not changed.
        tensors: What they held on the calibration inputs; a link whose tensor is not there is left.
        levels: Largest integer that a weight will be rounded to.
        left: Nodes whose weights stay as they are.
    """
    made = ModelProto()
    made.CopyFrom(model)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in held.items()}
    done = {}
    for link in links(made):
        if link.tensor not in tensors or any(node.name in left for node in (link.maker, *link.readers)):
            continue
        gain = gains(link, tensors[link.tensor], weights, levels=levels)
        if len(gain) != len(weights[link.maker.input[1]]) or np.all(gain == 1):
            continue
        for name in link.maker.input[1:]:
            weights[name] = _times(weights[name], gain, 0)
        for node in link.readers:
            weights[node.input[1]] = _times(weights[node.input[1]], 1 / gain, 0 if _groups(node) > 1 else 1)
        done[link.tensor] = gain
    for link in links(made):
        for node in (link.maker, *link.readers):
            for name in node.input[1:]:
                held[name].CopyFrom(numpy_helper.from_array(weights[name], name))
    return made, done


def leveled(content: bytes, calibration: Inputs, left: Collection[str]) -> bytes:
    """Return a float file with its channels raised, for a quantizer that reads files; `left` are nodes that it leaves float."""
    model = shape_inference.infer_shapes(load_from_string(content))
    reading = read(model, [link.tensor for link in links(model)], {}, calibration)
    made, gains = equalized(model, reading.tensors, left=left)
    if not gains or not same(made, model, take(calibration, slice(PROOF))):
        return content
    del made.graph.value_info[:]
    result: bytes = made.SerializeToString(deterministic=True)
    return result


def same(made: ModelProto, model: ModelProto, inputs: Inputs) -> bool:
    """Return whether two graphs answer alike on `inputs`, within `TOLERANCE` of the largest answer."""
    names = [model.graph.output[0].name]
    answers = [next(runs(graph, names, inputs, at_once=size(inputs)))[names[0]] for graph in (made, model)]
    return float(np.abs(answers[0] - answers[1]).max()) <= TOLERANCE * float(np.abs(answers[1]).max())


def _times(value: Array, gain: Array, axis: int) -> Array:
    """Return `value` with each index of an axis multiplied, or each run of indices where there are several to a gain."""
    along = [1] * value.ndim
    along[axis] = -1
    return np.asarray(value * np.repeat(gain, value.shape[axis] // len(gain)).reshape(along), value.dtype)


def _groups(node: NodeProto) -> int:
    return int(next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1))


def _from_zero(node: NodeProto, model: ModelProto) -> bool:
    """Whether a rectifier cuts at zero, and at a constant above it at most."""
    if node.op_type == "Relu":
        return True
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    bounds = [numpy_helper.to_array(held[name]) if name in held else None for name in node.input[1:]]
    return len(bounds) >= 1 and bounds[0] is not None and float(bounds[0]) == 0.0
