"""Scale migration: a product reads channels of unlike sizes on one scale, so what is large in them moves into its weights.

A few channels of what a normalization hands on are many times the others, and the step of 256 levels is as coarse as they
ask. Channel j is divided by s_j and the rows of the weights that read it are multiplied by s_j: the function is the same, the
channels are more alike, and the weights, which have a scale for each output, less so. Where products alone read the
normalization, 1 / s goes into its own scale and shift; where a sum reads it too, the products get a copy that is multiplied.

How far is measured: of some exponents a, ``s_j = max |x_j|^a / max |w_j|^(1 - a)`` whose rounded product errs least on what the
layers read. A tensor for which none errs clearly less stays as it is.

On a MiniLM the tensors between normalizations and products hold what can be mended: with those that the attention's output
(0.36 to 0.73 of its own error) and the second feed-forward layer (0.30 to 1) read migrated too, the answers are no nearer.
OpenVINO's quantizer migrates scales itself, as `openvino` tells it that a graph with attention is a transformer.

References:
    Xiao et al. 2023, *SmoothQuant*, equations 3 and 4; there one exponent serves all layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from equipoise.runtimes import rounding
from equipoise.runtimes.ranges import RULES, rounded
from equipoise.runtimes.seen import Reading, Seen
from equipoise.runtimes.simplify import readers_of

Array = NDArray[Any]

EXPONENTS = (0.3, 0.45, 0.6, 0.75, 0.9)
CLEARLY = 0.7
"""Share of the error before that is the most for a migration to be made."""
PLACES = 192
"""Places at which the error is measured."""
LEAST = 1e-6
"""For channels that are never anything but zero."""


@dataclass(frozen=True)
class Link:
    """A tensor that a normalization hands on to products with constant weights; `alone`: to nothing else."""

    tensor: str
    norm: NodeProto
    readers: tuple[NodeProto, ...]
    alone: bool


def links(model: ModelProto, layers: Collection[str]) -> list[Link]:
    """Return the tensors that can be migrated, of those that these products (names of nodes) read."""
    uses = readers_of(model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    found = []
    for norm in model.graph.node:
        if norm.op_type != "LayerNormalization" or norm.output[0] in outputs:
            continue
        after = uses.get(norm.output[0], [])
        readers = tuple(node for node in after if node.name in layers and node.op_type in ("MatMul", "Gemm"))
        owned = all(name in constants and len(uses[name]) == 1 for name in norm.input[1:])
        if readers:
            found.append(Link(norm.output[0], norm, readers, owned and len(readers) == len(after)))
    return found


def gains(seen: Seen, columns: Array, weights: Sequence[Array], *, levels: int, rule: str) -> Array | None:
    """Return what each channel is divided by (K,), or None where no migration errs clearly less.

    Args:
        seen: What the tensor held on the calibration inputs.
        columns: What its readers read (K, P).
        weights: Theirs, each (O, K).
        levels: Largest integer that a weight is rounded to.
        rule: How the range of the tensor is found, a name of `ranges.RULES`.
    """
    reach, rows = np.maximum(np.abs(seen.low), np.abs(seen.high)), np.concatenate(weights)
    if len(reach) != rows.shape[1]:
        return None
    columns, sample, wanted = columns[:, :PLACES], seen.sample, rows @ columns[:, :PLACES]

    def error(by: Array) -> float:
        low, high = min(0.0, float((seen.low / by).min())), max(0.0, float((seen.high / by).max()))
        bounds = RULES[rule](low, high, (sample / by[:, None]).ravel())
        held = rows * by
        scale = rounding.scales(held, levels)
        found = rounding.nearest(held, scale, levels) @ rounded(columns / by[:, None], *bounds)
        return float(np.square(found * scale[:, None] - wanted).sum())

    largest = np.abs(rows).max(0)
    ways = [np.maximum(reach, LEAST) ** a / np.maximum(largest, LEAST) ** (1 - a) for a in EXPONENTS]
    ways = [(way / np.exp(np.log(way).mean())).astype(np.float32) for way in ways]
    errors = [error(way) for way in ways]
    best = int(np.argmin(errors))
    return ways[best] if errors[best] <= CLEARLY * error(np.ones_like(ways[best])) else None


def migrated(
    model: ModelProto, reading: Reading, layers: Mapping[str, NodeProto], *, levels: int, rule: str
) -> tuple[ModelProto, dict[str, Array]]:
    """Return a copy of a float graph with scales migrated, and tensor -> what it is multiplied by (K,) where any was.

    A tensor keeps its name, with its new values: where others read the old ones, these have another.

    Args:
        model: Not changed.
        reading: What its tensors held and its layers read.
        layers: The products that are to be rounded, by name.
        levels, rule: As of `gains`.
    """
    made = ModelProto()
    made.CopyFrom(model)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    done = {}
    for link in links(made, layers):
        rows = [_rows(node, numpy_helper.to_array(held[node.input[1]])) for node in link.readers]
        by = gains(reading.tensors[link.tensor], reading.columns[link.readers[0].name][0], rows, levels=levels, rule=rule)
        if by is None:
            continue
        done[link.tensor] = 1 / by
        for node, value in zip(link.readers, rows, strict=True):
            _set(held, node.input[1], _rows(node, value * by))
        if link.alone:
            for name in link.norm.input[1:]:
                _set(held, name, numpy_helper.to_array(held[name]) / by)
        else:
            _multiply(made, link, 1 / by)
    return made, done


def _multiply(made: ModelProto, link: Link, by: Array) -> None:
    """Let the readers of a link read it times `by` (in place), under its old name."""
    whole, factor = f"{link.tensor}/whole", f"{link.tensor}/by"
    ours = {reader.name for reader in link.readers}
    for node in made.graph.node:
        for at, name in enumerate(node.input):
            if name == link.tensor and node.name not in ours:
                node.input[at] = whole
    place = list(made.graph.node).index(link.norm)
    link.norm.output[0] = whole
    made.graph.initializer.append(numpy_helper.from_array(by.astype(np.float32), factor))
    made.graph.node.insert(place + 1, helper.make_node("Mul", [whole, factor], [link.tensor], name=f"{link.tensor}/migrated"))


def _rows(node: NodeProto, value: Array) -> Array:
    """Turn weights as a product stores them into (O, K), or back."""
    stored = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
    return value if node.op_type == "Gemm" and stored else value.T


def _set(held: Mapping[str, Any], name: str, value: Array) -> None:
    held[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
