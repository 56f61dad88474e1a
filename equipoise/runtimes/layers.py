"""Whose weights a node of an exported file uses: the file's names, read back as the model's.

An exported file keeps the names of parameters, and names nodes ``module/operator`` after the modules whose code made them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import GraphProto, NodeProto, load_from_string

from equipoise.runtimes.simplify import selects

if TYPE_CHECKING:
    from torch import nn

TRANSPOSED = ".T"
"""Suffix of the initializer that holds a parameter transposed: ``fc.weight.T``."""

WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
"""Operators with weights worth quantizing -> which input the weights are."""


def layer_nodes(content: bytes) -> dict[str, tuple[str, ...]]:
    """Return module name -> names of the nodes that use its weights.

    Args:
        content: An ONNX file of `Exporter.onnx`.

    Limits:
        Convolutions, matrix products and embeddings only; a layer whose weights were rearranged (GRU, LSTM) is not in the map.
    """
    graph = load_from_string(content).graph
    initializers = {initializer.name for initializer in graph.initializer}
    layers: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        index = WEIGHT_INPUT.get(node.op_type, -1)
        if index >= 0 and node.input[index] in initializers and not selects(node):
            module, dot, last = parameter_of(node.input[index]).rpartition(".")
            if dot or last == "weight":  # otherwise a constant of the graph, not a parameter
                layers[module] = (*layers.get(module, ()), node.name)
    for node, _ in tied(graph):
        if scope := scope_of(node):
            layers[scope] = (*layers.get(scope, ()), node.name)
    return layers


def tied(graph: GraphProto) -> list[tuple[NodeProto, str]]:
    """Return each product with weights that another layer holds, turned as the product reads them, and their name there."""
    held = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in held}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in turned]
    return [(node, turned[node.input[1]]) for node in products]


def scoped_nodes(content: bytes) -> dict[str, tuple[str, ...]]:
    """Return module name -> names of the products in its own code whose weights are computed (standardised, attention).

    Args:
        content: An ONNX file of `Exporter.onnx`.
    """
    graph = load_from_string(content).graph
    named = {name for nodes in layer_nodes(content).values() for name in nodes}
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        scope = scope_of(node)
        if node.op_type in WEIGHT_INPUT and node.name not in named and scope and not selects(node):
            found[scope] = (*found.get(scope, ()), node.name)
    return found


def fixed_nodes(content: bytes, model: nn.Module | None) -> frozenset[str]:
    """Return the names of products with a matrix that is a buffer of the model, and of what is made of these before a layer.

    A Fourier transform, say, and the logarithm of its squares: no weights, so nothing learned or was chosen to bear their
    rounding, and what is between spans many powers of ten.

    Args:
        content: An ONNX file of `Exporter.onnx`.
        model: That it was made of; None where only the file is there, which does not tell buffers from weights.
    """
    if model is None:
        return frozenset()
    graph = load_from_string(content).graph
    buffers = {name for name, value in model.named_buffers() if value.is_floating_point() and value.ndim > 1}
    held = {initializer.name for initializer in graph.initializer}
    matrices = {name for name in held if parameter_of(name) in buffers}
    found, made = set[str](), set[str]()
    for node in graph.node:  # a graph is sorted
        computed = set(node.input) - held - {""}
        after = bool(computed) and computed <= made and not (node.op_type in WEIGHT_INPUT and held & set(node.input))
        if after or (node.op_type in WEIGHT_INPUT and matrices & set(node.input)):
            found.add(node.name)
            made |= set(node.output)
    return frozenset(found)


def scope_of(node: NodeProto) -> str:
    """Return the dotted name of the module that a node was named after; empty for the model itself."""
    return node.name.rpartition("/")[0]


def parameter_of(initializer: str) -> str:
    """Return the dotted name of the parameter that an initializer holds, as it is or transposed."""
    return initializer.removesuffix(TRANSPOSED)
