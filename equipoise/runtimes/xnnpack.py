"""Graphs made ready for XNNPACK inside ExecuTorch: lowered to a file, and rounded to int8 before."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from equipoise.runtimes.between import between
from equipoise.runtimes.single import Single, owner, scopes, weighs

ROUNDED = ("conv", "linear")
"""Beginnings of the names of operators whose weights the quantizer rounds."""
OWN = ("linear",)
"""Of those that can round what they read in each sample's own range, and give floats."""
ATTENTION = ("softmax", "_softmax", "scaled_dot_product", "layer_norm")
"""Of those that leave int8: where one lies between layers, only layers are rounded."""
NO_INT8 = "XNNPACK's quantizer has no int8 for it"


@dataclass(frozen=True)
class Roles:
    """What int8 is for in a graph, by names of nodes.

    Attributes:
        weighted: Operators with weights that may be rounded.
        static: All that is rounded in ranges from calibration.
        own: Layers that round what they read in each sample's own range.
    """

    weighted: set[str]
    static: set[str]
    own: set[str]


def lowered(exported: ExportedProgram) -> bytes:
    """Return the file of a graph, float or with its rounding written out."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad():
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def quantized(
    one: Single, samples: Sequence[tuple[NDArray[Any], ...]], float_layers: frozenset[str]
) -> tuple[ExportedProgram, dict[str, str]]:
    """Return the graph with its rounding written out, and why layers other than `float_layers` had to be left float.

    Args:
        samples: What ranges are read from, each the inputs of one sample.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import ComposableQuantizer

    graph: Any = one.exported.module()
    roles = roles_of(graph.graph, dict(one.model.named_buffers()), float_layers)
    exported = one.exported
    if roles.static or roles.own:
        with torch.no_grad():
            both = ComposableQuantizer([_quantizer(roles.static, dynamic=False), _quantizer(roles.own, dynamic=True)])
            prepared = prepare_pt2e(graph, both)
            for sample in samples:
                prepared(*map(torch.from_numpy, sample))
            graph = convert_pt2e(prepared)
            exported = torch.export.export(graph, one.given)
    floats = {owner(node) for node in graph.graph.nodes if node.name in roles.weighted and not _reads_integers(node)}
    return exported, dict.fromkeys(sorted(floats - {""}), NO_INT8)


def _quantizer(nodes: Container[str], *, dynamic: bool) -> Any:
    """One that rounds these operators alone; it asks about their weights too."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    how = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    return XNNPACKQuantizer().set_global(how).set_filter_function(lambda x: x.op != "call_function" or x.name in nodes)


def _reads_integers(node: Any) -> bool:
    """Whether the weights of an operator are integers."""
    return any(given.name.startswith("dequantize") and given.args[0].op == "get_attr" for given in node.all_input_nodes)


def roles_of(graph: Any, buffers: Container[str], float_layers: frozenset[str]) -> Roles:
    """Return what is to be rounded, and how.

    A product with a buffer (a Fourier transform, say) learned to bear no rounding, nor has what is made of it before a layer:
    see `layers.fixed_nodes`. A rectifier is one with the layer before it.
    """
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    held = {node.name: node.target in buffers for node in graph.nodes if node.op == "get_attr"}
    fixed, weighted = set[str](), set[str]()
    for node in nodes:
        computed = {given.name for given in node.all_input_nodes} - held.keys()
        weights = [held[given.name] for given in node.all_input_nodes[:2] if given.name in held] if weighs(node) else []
        if any(weights) or (not weights and computed and computed <= fixed):
            fixed.add(node.name)
        elif weights and not any(f"{scope}.".startswith(f"{name}.") for scope in scopes(node) for name in float_layers):
            weighted.add(node.name)
    kinds = {node.name: getattr(node.target, "__name__", "") for node in nodes}
    layers = {name for name in weighted if kinds[name].startswith(ROUNDED)}
    middle, ends = between([(n.name, [given.name for given in n.all_input_nodes], [n.name]) for n in nodes], layers)
    attention = any(kinds[name].startswith(ATTENTION) for name in middle)
    own = {name for name in (layers if attention else ends) if kinds[name].startswith(OWN)}
    static = (layers if attention else layers | middle) - fixed - own
    static |= {n.name for n in nodes if kinds[n.name].startswith("relu") and n.all_input_nodes[0].name in static}
    return Roles(weighted, static, own)
