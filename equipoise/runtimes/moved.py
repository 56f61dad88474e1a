"""Constants of a graph into which the exporter has moved a parameter: a table of biases, looked up by places that are known.

The exporter works out what depends on no input, so the table itself is not in the graph. But a parameter of random numbers is
known again wherever its entries went, and what was only moved, turned or repeated can be made of other weights as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor

Array = np.ndarray[Any, Any]

MOST_DIFFERENT = 2**20
"""Larger parameters than this are no tables of biases."""


@dataclass(frozen=True)
class Moved:
    """How a constant is made of a parameter.

    Attributes:
        parameter: Its name.
        shape: Of the constant.
        index: For each axis of the parameter where each entry of the constant lies on it, or, where all of the axis lies along
            one axis of the constant whatever its extent, which one.
    """

    parameter: str
    shape: tuple[int, ...]
    index: tuple[Array | int, ...]

    def of(self, weight: Array) -> Array | None:
        """Return the constant that other numbers of the parameter make; None where its shape does not allow that."""
        shape = list(self.shape)
        for extent, places in zip(weight.shape, self.index, strict=True):
            if isinstance(places, int):
                shape[places] = extent
            elif int(places.max()) >= extent:
                return None
        found = []
        for extent, places in zip(weight.shape, self.index, strict=True):
            along = [1] * len(shape)
            if isinstance(places, int):
                along[places] = extent
                found.append(np.arange(extent).reshape(along))
            else:
                found.append(places)
        return np.broadcast_to(weight[tuple(found)], shape)


@torch.no_grad()
def draw(parameter: Tensor, generator: torch.Generator) -> None:
    """Fill a parameter with random numbers, of which no two are the same where there are not too many of them."""
    parameter.normal_(std=0.1, generator=generator)
    if parameter.numel() > MOST_DIFFERENT or parameter.element_size() < 4:
        return
    flat = parameter.flatten().clone()  # a view of the same memory in another order where one axis is of length 1
    while True:
        ordered, places = flat.sort()
        again = places[1:][ordered[1:] == ordered[:-1]]
        if not len(again):
            parameter.copy_(flat.view(parameter.shape))
            return
        flat[again] = torch.empty(len(again), dtype=flat.dtype).normal_(std=0.1, generator=generator)


def moved(graph: ModelProto, weights: Mapping[str, Array]) -> dict[str, Moved]:
    """Return by name the constants that hold entries of one of the `weights`; those with two equal numbers are left out."""
    entries = {name: np.sort(weight, axis=None) for name, weight in weights.items()}
    entries = {name: ordered for name, ordered in entries.items() if (ordered[1:] > ordered[:-1]).all()}
    found = {}
    for tensor in graph.graph.initializer:
        value = numpy_helper.to_array(tensor)
        for name, weight in weights.items():
            if name not in entries or value.size < 2 or value.dtype != weight.dtype:
                continue
            spots = np.minimum(np.searchsorted(entries[name], value), weight.size - 1)
            if np.array_equal(entries[name][spots], value):
                flat = np.argsort(weight, axis=None)[spots]
                found[tensor.name] = _made(name, weight.shape, np.unravel_index(flat, weight.shape))
    return found


def _made(name: str, extents: tuple[int, ...], index: tuple[Array, ...]) -> Moved:
    """Return how a constant is made of what lies at `index`: axes that lie along one of the constant's are left open."""
    shape, whole = index[0].shape, dict[int, int]()
    for axis, extent in enumerate(extents):
        for along in range(len(shape)):
            turned = np.moveaxis(index[axis], along, -1)
            if shape[along] == extent > 1 and along not in whole.values() and (turned == np.arange(extent)).all():
                whole[axis] = along
                break
    open_axes = tuple(whole.values())
    places: list[Array | int] = []
    for axis in range(len(extents)):
        alike = index[axis]
        for along in open_axes:
            alike = alike.take([0], along)
        same = axis in whole or np.array_equal(np.broadcast_to(alike, shape), index[axis])
        if not same:
            return Moved(name, shape, index)
        places.append(whole.get(axis, alike))
    return Moved(name, shape, tuple(places))
