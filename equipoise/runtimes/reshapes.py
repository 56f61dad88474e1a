"""Reshapes whose widths are left open, so that one graph serves models of several widths.

The exporter writes every extent that it knows into a reshape, (-1, 17, 4, 6) of 4 heads, and asks the tensor for the batch.
But the batch can be copied from the tensor (0), and then the number of heads be asked for: (0, 0, -1, 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, numpy_helper, shape_inference


def opened(model: ModelProto) -> ModelProto:
    """Return `model`, in place, with reshapes that copy what stays and ask for a width; at its own widths it is the same."""
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info)
    }
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in held:
            continue
        given = [int(extent) for extent in numpy_helper.to_array(held[node.input[1]])]
        asked = _asked(shapes.get(node.input[0], ()), given)
        if asked != given:
            name = f"{node.name}/shape"
            graph.initializer.append(numpy_helper.from_array(np.array(asked, dtype=np.int64), name))
            node.input[1] = name
            del node.attribute[:]  # that a zero is an extent of zero: there is none
    return model


def _asked(extents: Sequence[int], given: Sequence[int]) -> list[int]:
    """Return what to ask for in place of the extents `given`: those of the tensor, 0 where one is not known.

    What lies alike at the front is copied. Of the rest the last one is open where it lies alike at the back; otherwise the one
    before it: of heads and their extent, the heads.

    Example:
        >>> _asked((0, 17, 24), (-1, 17, 4, 6)), _asked((0, 17, 4, 6), (-1, 17, 24)), _asked((0, 4, 16, 24), (-1, 16, 24))
        ([0, 0, -1, 6], [0, 0, -1], [-1, 16, 24])
    """
    known, rest = list(extents[1:]), list(given[1:])
    same = bool(extents) and 0 not in (*known, *given) and min(rest, default=1) > 0 and math.prod(known) == math.prod(rest)
    if not same or (given[0] != -1 and given[0] != extents[0]):
        return list(given)
    alike = 1
    while alike < min(len(extents), len(given)) and extents[alike] == given[alike]:
        alike += 1
    left = list(given[alike:])
    if left:
        left[-1 if len(left) == 1 or left[-1] == extents[-1] else -2] = -1
    return [*[0] * alike, *left]
