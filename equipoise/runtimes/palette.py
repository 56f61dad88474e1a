"""Shared weights in an ONNX file: a byte, or half of one, for each weight, and the values they stand for.

What a tensor shares is read off the tensor. A runtime gathers the values when it loads the file (constant folding), so that
what runs is the float program: as quick, and the same to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE = 256
NIBBLE = 16
PAIRS = "equipoise.palette.pairs"
"""Name of the table, one for the file, of the two codes in each byte."""
LEAST = 512
"""Bytes of a tensor below which the nodes that unpack it would cost more than they save."""


def palettized(content: bytes) -> bytes:
    """Return an ONNX file that holds every float tensor of at most 256 distinct values as codes and a codebook.

    Args:
        content: A serialized model whose weights lie inside. Tensors of more values stay as they are.
    """
    import onnx

    model = onnx.load_from_string(content)
    graph, nodes, pairs = model.graph, [], False
    for tensor in list(graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or 4 * int(np.prod(tensor.dims)) < LEAST:
            continue
        weight = onnx.numpy_helper.to_array(tensor)
        values, codes = np.unique(weight, return_inverse=True)
        if len(values) > BYTE or 2 * len(values) > weight.size:
            continue
        packed = len(values) <= NIBBLE and weight.size % 2 == 0
        graph.initializer.remove(tensor)
        graph.initializer.extend(_tables(tensor.name, values, codes.reshape(-1), weight.shape, packed=packed))
        nodes += _unpacking(tensor.name, packed=packed)
        pairs |= packed
    if pairs:
        both = np.stack(np.divmod(np.arange(BYTE, dtype=np.int32), NIBBLE), axis=1)
        graph.initializer.append(onnx.numpy_helper.from_array(both, PAIRS))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return bytes(model.SerializeToString())


def _tables(name: str, values: NDArray[Any], codes: NDArray[Any], shape: tuple[int, ...], *, packed: bool) -> list[Any]:
    from onnx.numpy_helper import from_array

    if packed:
        values = np.concatenate([values, np.zeros(NIBBLE - len(values), values.dtype)])
        codes = codes[0::2] * NIBBLE + codes[1::2]
    tables = [from_array(values.astype(np.float32), f"{name}.values"), from_array(codes.astype(np.uint8), f"{name}.codes")]
    return [*tables, from_array(np.array(shape, np.int64), f"{name}.shape")]


def _unpacking(name: str, *, packed: bool) -> list[Any]:
    """Nodes that give the tensor: values[codes], of two codes a byte values[pairs][codes]."""
    from onnx import TensorProto, helper

    made = [helper.make_node("Cast", [f"{name}.codes"], [f"{name}.index"], to=TensorProto.INT32, name=f"{name}.cast")]
    table = f"{name}.values"
    if packed:
        made.append(helper.make_node("Gather", [table, PAIRS], [f"{name}.twos"], name=f"{name}.twos_of"))
        table = f"{name}.twos"
    made.append(helper.make_node("Gather", [table, f"{name}.index"], [f"{name}.flat"], name=f"{name}.gather"))
    made.append(helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name], name=f"{name}.reshape"))
    return made
