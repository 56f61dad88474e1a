"""A model cut into consecutive stages."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn
from torch.fx.proxy import TraceError

from equipoise.errors import must_be
from equipoise.training.outputs import switched


def split(model: nn.Module, stages: int, *, cuts: Sequence[str] = ()) -> list[fx.GraphModule]:
    """Return `model` cut into consecutive stages that share its modules, under the same names.

    A weight that several parts of the model use (tied embeddings) is found in several stages.

    Args:
        model: Traceable by torch.fx down to its blocks: a forward without conditions on its data, and one input.
        stages: How many.
        cuts: Names of the modules at which a new stage begins; empty makes the largest stage as small as it can be.
    Raises:
        InputError: The model cannot be cut so.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    try:
        graph, evaluated = _in_both_modes(model, 0 if cuts else total // (4 * stages), cuts)
    except (TraceError, TypeError) as error:
        remedy = f"({error}) Make its forward a plain sequence of modules, or use fsdp."
        raise must_be("model of a pipeline", "traceable by torch.fx", type(model).__name__, remedy) from error
    if str(graph) != str(evaluated):
        remedy = "Use modules for what differs between them (nn.Dropout for F.dropout), or fsdp."
        raise must_be("model of a pipeline", "the same steps in training and evaluation mode", type(model).__name__, remedy)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    places = _places(graph, nodes, model)
    chosen = [_named(places, nodes, cut) for cut in cuts] if cuts else _balanced(places, stages, total)
    positions = [place.position for place in chosen]
    if len(positions) != stages - 1 or positions != sorted(set(positions)):
        raise must_be("pipeline cuts", f"{stages - 1} names in the order of the model", list(cuts), "One stage for each rank.")
    return [_stage(model, graph, nodes, *ends) for ends in zip([None, *chosen], [*chosen, None], strict=True)]


def _in_both_modes(model: nn.Module, most: int, cuts: Sequence[str]) -> tuple[fx.Graph, fx.Graph]:
    """Return the steps of a model in training and in evaluation mode; its modules keep the modes they have."""
    with switched(model, "eval"):
        evaluated = _Tracer(most, cuts).trace(model)
        return _Tracer(most, cuts).trace(model.train()), evaluated


class _Tracer(fx.Tracer):
    """Reads a model no deeper than its blocks (torch offers this choice by a method to override only)."""

    def __init__(self, most: int, cuts: Sequence[str]) -> None:
        super().__init__()
        self.most, self.cuts = most, cuts

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in m.__dict__:  # activations are recomputed here
            return True
        if isinstance(m, (nn.Sequential, nn.ModuleList)):
            return False
        if self.cuts:
            return not any(cut.startswith(f"{module_qualified_name}.") for cut in self.cuts)
        small = sum(parameter.numel() for parameter in m.parameters()) <= self.most
        return small or super().is_leaf_module(m, module_qualified_name)


class _Place(NamedTuple):
    """Where a graph can be cut: after so many nodes, with one value handed on, and so many parameters before."""

    position: int
    value: fx.Node
    before: int


def _places(graph: fx.Graph, nodes: list[fx.Node], model: nn.Module) -> list[_Place]:
    """Return the places where one tensor, and nothing else, is handed on; the end of the model is not among them."""
    numbers = {node: number for number, node in enumerate(nodes, 1)}
    values = [node for node in graph.nodes if node.op not in ("output", "get_attr")]
    last_use = {value: max((numbers.get(user, len(nodes) + 1) for user in value.users), default=0) for value in values}
    found: list[_Place] = []
    seen: set[nn.Parameter] = set()
    for position, node in enumerate(nodes[:-1], 1):
        if node.op == "call_module":
            seen.update(model.get_submodule(str(node.target)).parameters())
        handed_on = [value for value in values if numbers.get(value, 0) <= position < last_use[value]]
        if len(handed_on) == 1 and not any(user.target is operator.getitem for user in handed_on[0].users):
            found.append(_Place(position, handed_on[0], sum(parameter.numel() for parameter in seen)))
    return found


def _balanced(places: list[_Place], stages: int, total: int) -> list[_Place]:
    """Return the cuts that make the largest stage smallest; a stage without weights is none."""
    ends = [*sorted({place.before: place for place in places if 0 < place.before < total}.values()), None]
    sizes = [total if place is None else place.before for place in ends]
    best: list[tuple[float, tuple[int, ...]]] = [(size, ()) for size in sizes]
    for _ in range(stages - 1):
        best = [
            min(((max(best[i][0], size - sizes[i]), (*best[i][1], i)) for i in range(j)), default=(math.inf, ()))
            for j, size in enumerate(sizes)
        ]
    if math.isinf(best[-1][0]):
        remedy = "Use fewer ranks, a plainer sequence of modules, or fsdp."
        raise must_be("model of a pipeline", f"cuttable into {stages} stages with weights", f"{len(ends) - 1} places", remedy)
    return [place for i in best[-1][1] if (place := ends[i]) is not None]


def _named(places: list[_Place], nodes: list[fx.Node], cut: str) -> _Place:
    """Return the place just before the module called `cut`."""
    starts = [i for i, node in enumerate(nodes) if node.op == "call_module" and f"{node.target}.".startswith(f"{cut}.")]
    for place in places:
        if starts and place.position == starts[0]:
            return place
    after = [nodes[place.position] for place in places]
    remedy = f"Use one of {', '.join(str(node.target) for node in after if node.op == 'call_module')}."
    raise must_be("a pipeline cut", "a module that takes one tensor and nothing passes by", cut, remedy)


def _stage(model: nn.Module, graph: fx.Graph, nodes: list[fx.Node], start: _Place | None, end: _Place | None) -> fx.GraphModule:
    """Return the module that runs from one cut to the next."""
    part = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}

    def copy(node: fx.Node) -> fx.Node:
        if node not in known:
            known[node] = part.node_copy(node, copy)
        return known[node]

    if start is not None:
        known[start.value] = part.placeholder("flow")
    else:
        for node in graph.nodes:
            if node.op == "placeholder":
                copy(node)
    for node in nodes[start.position if start else 0 : end.position if end else len(nodes)]:
        copy(node)
    part.output(copy(end.value) if end else fx.map_arg(next(node for node in graph.nodes if node.op == "output").args[0], copy))
    return fx.GraphModule(model, part)
