"""Which channels may belong together, by Torch-Pruning's dependency graph: a guess, to be proven by `group_proof`.

This file is the only one that knows Torch-Pruning. Of it the graph alone is used. The walk over the graph is our own: an index
that was seen is not followed again, where Torch-Pruning's walk multiplies the indices at every reshape and does not come back
from a transformer in which blocks of convolutions are mixed; and a node whose indices it cannot work out (it divides by zero
on ShuffleNet) spoils the groups that reach it, not all.
"""

from __future__ import annotations

import contextlib
import copy
import io
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.coupling import Cut
from equipoise.compress.cut import AXES, axis_size, refusal
from equipoise.compress.group_proof import said
from equipoise.compress.trace import WEIGHTED, tensors

FARTHEST = 4
"""A group is given up when its channels take this many times more places than the widest layer has: the graph goes astray."""


def candidates(model: nn.Module, example: Inputs) -> Iterator[tuple[tuple[Cut, ...], str]]:
    """Yield the cuts of each group that the graph shows, and why it must stay whole where that shows already.

    A layer from which no way can be found becomes a group of its own that says so; the others are still found.
    """
    names = {id(module): name for name, module in model.named_modules()}
    seen: set[str] = set()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph, broken = _graph(model, example)
        most = FARTHEST * max(
            (axis_size(m, axis) for m in model.modules() if isinstance(m, WEIGHTED) for axis in AXES), default=1
        )
        for root in list(graph.module2node):
            name = names.get(id(root), "")
            pruner = graph.get_pruner_of_module(root) if isinstance(root, WEIGHTED) else None
            if pruner is None or not name or name in seen or pruner.get_out_channels(root) is None:
                continue
            width = int(pruner.get_out_channels(root))
            try:
                cuts, reason = _translated(model, graph, _reached(graph, root, width, broken, most))
            except Exception as error:  # noqa: BLE001 - any failure of the builder means: left whole, because
                cuts = (Cut(name, "out", tuple((channel,) for channel in range(width))),)
                reason = f"its dependencies could not be found: {said(error)}"
            seen.update(cut.layer for cut in cuts if cut.axis == "out")
            yield cuts, reason


def _graph(model: nn.Module, example: Inputs) -> tuple[Any, dict[Any, Exception]]:
    """Return the dependency graph and, by node, what went wrong where indices are mapped from one layer to the next."""
    import torch_pruning
    from torch_pruning.dependency.index_mapping import update_index_mapping

    graph = torch_pruning.DependencyGraph()
    try:
        graph.build_dependency(model, example, forward_fn=_answers, verbose=False)
    except Exception as error:
        if "update_index_mapping" not in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            raise
    broken = {}
    for module, node in graph.module2node.items():
        alone = copy.copy(graph)
        alone.module2node = {module: node}
        try:
            update_index_mapping(alone)
        except Exception as error:  # noqa: BLE001 - told of every group that reaches this node
            broken[node] = error
    return graph, broken


def _answers(model: nn.Module, example: Inputs) -> list[Tensor]:
    return list(tensors(call(model, example)))


def _reached(
    graph: Any, root: nn.Module, width: int, broken: Mapping[Any, Exception], most: int
) -> dict[tuple[Any, Any], set[Any]]:
    """Return, by node and pruning function, the places that the root's channels take there."""
    from torch_pruning._helpers import _HybridIndex

    found: dict[tuple[Any, Any], set[Any]] = {}
    start = {_HybridIndex(idx=channel, root_idx=channel) for channel in range(width)}
    waiting = [(graph.module2node[root], graph.get_pruner_of_module(root).prune_out_channels, start)]
    while waiting:
        node, action, places = waiting.pop()
        if node in broken:
            raise broken[node]
        known = found.setdefault((node, action), set())
        fresh = places - known
        if not fresh:
            continue
        known |= fresh
        if len(known) > most:
            raise OverflowError("its channels take more places than any layer has")
        for edge in node.dependencies:
            if edge.is_triggered_by(action):
                moved = list(fresh)
                for mapping in edge.index_mapping:
                    moved = moved if mapping is None else mapping(moved)
                waiting.append((edge.target, edge.handler, set(moved)))
    return found


def _translated(model: nn.Module, graph: Any, found: Mapping[tuple[Any, Any], set[Any]]) -> tuple[tuple[Cut, ...], str]:
    """Return the cuts by layer name, and why the group must stay whole where that shows already."""
    cuts, reason = [], ""
    names = {id(module): name for name, module in model.named_modules()}
    tensors = {id(parameter): name for name, parameter in model.named_parameters()}
    axes = {id(parameter): axis for parameter, axis in graph.unwrapped_parameters}
    for (node, action), places in found.items():
        if not places:
            continue
        if isinstance(node.module, nn.Parameter):
            owner, _, held = tensors.get(id(node.module), "").rpartition(".")
            if not refusal(model.get_submodule(owner)):  # a norm that the graph does not know
                cuts.append(Cut(owner, "out", _positions(places)))
            elif (along := _along(node.module, axes[id(node.module)], places)) is not None:
                cuts.append(Cut(owner, f"{held}:{along}", _positions(places)))
        elif type(node.module).__name__ == "_OutputOp":
            reason = "it feeds the model's output"
        elif id(node.module) in names:
            axis = "out" if graph.is_out_channel_pruning_fn(action) else "in"
            cuts.append(Cut(names[id(node.module)], axis, _positions(places)))
    return tuple(cuts), reason


def _along(parameter: nn.Parameter, axis: int, places: set[Any]) -> int | None:
    """Return the axis of a parameter that the places fill, the graph's guess before another; None where there is none.

    Then it meets the channels along another axis, such as a weight for each word of a text: it stays, and the proof tells.
    """
    count = len({int(place.idx) for place in places})
    return next((at for at in (axis, *range(parameter.dim())) if parameter.shape[at] == count), None)


def _positions(places: set[Any]) -> tuple[tuple[int, ...], ...]:
    """Bucket the places on one axis by the channel that they belong to."""
    buckets: dict[int, list[int]] = {}
    for place in places:
        buckets.setdefault(int(place.root_idx), []).append(int(place.idx))
    return tuple(tuple(sorted(buckets[channel])) for channel in sorted(buckets))
