"""Which widths can change together: coupled channel groups, each proven on a copy before it is called prunable.

Torch-Pruning finds the candidates; this file is the only one that knows it. Its graph is a guess on hard models (zero-padded
shortcuts, reshapes, code that remembers a width), so every group is cut for real and compared with the same model in which
the readers of the removed channels read zeros. The two agree exactly when the group is right.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.compress.cut import Axis, Keep, axis_size, refusal, sliced
from equipoise.compress.fold import shared_parameters
from equipoise.compress.trace import RUN_ERRORS, WEIGHTED, record
from equipoise.errors import must_be


@dataclass(frozen=True)
class Cut:
    """One axis of one layer that a group owns; `positions[c]` are the places of the group's channel `c` on it."""

    layer: str
    axis: Axis
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels that must be kept or removed together, named after the first layer that produces them.

    `size` is the number of channels, `producers` the layers that write them, `consumers` those that read them. A group
    that is not `prunable` says why in `reason` and is left whole.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool
    reason: str = ""
    cuts: tuple[Cut, ...] = field(default=(), repr=False)

    @property
    def coupled(self) -> bool:
        """Return whether several layers write the same channels, as the blocks of a residual stream do."""
        return len(self.producers) > 1


def groups(model: nn.Module, example: Tensor) -> tuple[Group, ...]:
    """Return the channel groups of `model` in execution order, prunable or with the reason why not.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts, N >= 1.

    Returns:
        Every group found. When the model cannot be traced at all, one group named "" that is not prunable and says why.

    Limits:
        Attention heads, recurrent layers, GroupNorm and grouped convolutions are left whole, with all that is tied to them.
    """
    subject = copy.deepcopy(model).eval()
    for parameter in subject.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        found = list(_candidates(subject, example))
        tape = record(subject, example)
    except RUN_ERRORS as error:
        reason = f"the dependency graph could not be built: {type(error).__name__}: {_first_line(error)}"
        return (Group("", 0, (), (), False, reason),)
    places: dict[str, int] = {}
    for place, call in enumerate(tape.calls):
        places.setdefault(call.layer, place)
    shared = {name for name, _ in _sharing(subject)}
    with torch.no_grad():
        reference = subject(example)
    result = []
    for cuts, reason in found:
        group = _describe(cuts, places, subject)
        if not reason:
            reason = _static_reason(group, subject, shared) or _probe(subject, example, group, reference)
        result.append(Group(group.name, group.size, group.producers, group.consumers, not reason, reason, group.cuts))
    return tuple(sorted(result, key=lambda group: places.get(group.name, len(places))))


def keeping(model: nn.Module, chosen: Iterable[Group], kept: Mapping[str, Sequence[int]]) -> Keep:
    """Return what every layer axis of `model` keeps when the named groups keep the given channel indices.

    Raises:
        InputError: indices repeat, are out of range, or none is left.
    """
    removed: dict[tuple[str, Axis], set[int]] = {}
    for group in chosen:
        if group.name not in kept:
            continue
        stay = set(kept[group.name])
        if not stay or len(stay) != len(kept[group.name]) or not stay <= set(range(group.size)):
            raise must_be(
                f"kept[{group.name!r}]",
                f"distinct channel indices in [0, {group.size})",
                list(kept[group.name]),
                "Pass the indices to keep, at least one.",
            )
        for cut in group.cuts:
            gone = removed.setdefault((cut.layer, cut.axis), set())
            gone.update(p for channel, spots in enumerate(cut.positions) if channel not in stay for p in spots)
    return {
        (layer, axis): torch.tensor([p for p in range(axis_size(model.get_submodule(layer), axis)) if p not in gone])
        for (layer, axis), gone in removed.items()
        if gone
    }


def _candidates(model: nn.Module, example: Tensor) -> Iterable[tuple[tuple[Cut, ...], str]]:
    """Ask Torch-Pruning for its groups, translated to cuts by layer name; a reason comes with what has no name."""
    import torch_pruning

    names = {id(module): name for name, module in model.named_modules()}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, example_inputs=(example,), verbose=False)
        for found in graph.get_all_groups():
            cuts, reason = [], ""
            for item in found:
                target = item.dep.target.module
                if isinstance(target, nn.Parameter):
                    reason = "it holds a bare parameter of the model"
                elif type(target).__name__ == "_OutputOp":
                    reason = "it feeds the model's output"
                if id(target) in names and not isinstance(target, nn.Parameter):
                    axis: Axis = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
                    cuts.append(Cut(names[id(target)], axis, _positions(item.idxs, item.root_idxs)))
            yield tuple(cuts), reason


def _positions(indices: Sequence[int], roots: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Bucket the places on one axis by the channel that they belong to."""
    buckets: dict[int, list[int]] = {}
    for index, root in zip(indices, roots, strict=True):
        buckets.setdefault(int(root), []).append(int(index))
    return tuple(tuple(sorted(buckets[root])) for root in sorted(buckets))


def _describe(cuts: tuple[Cut, ...], places: Mapping[str, int], model: nn.Module) -> Group:
    """Name the group and list its writers and readers in execution order."""
    ordered = sorted(cuts, key=lambda cut: places.get(cut.layer, len(places)))
    weighted = [cut for cut in ordered if isinstance(model.get_submodule(cut.layer), (*WEIGHTED, nn.Embedding))]
    producers = tuple(cut.layer for cut in weighted if cut.axis == "out")
    consumers = tuple(cut.layer for cut in weighted if cut.axis == "in")
    return Group(producers[0], len(cuts[0].positions), producers, consumers, True, "", tuple(ordered))


def _static_reason(group: Group, model: nn.Module, shared: set[str]) -> str:
    """Return why the group must stay whole, as far as the layers themselves tell."""
    for cut in group.cuts:
        if why := refusal(model.get_submodule(cut.layer)):
            return f"{cut.layer} is {why}, which is not sliced"
        if cut.layer in shared:
            return f"{cut.layer} shares its weight with another layer"
        if len(cut.positions) != group.size:
            return f"{cut.layer} holds only some of the channels"
        if len({len(spots) for spots in cut.positions}) > 1:
            return f"its channels take unequal numbers of places in {cut.layer}"
    if not group.consumers:
        return "it feeds the model's output"
    return "it has a single channel" if group.size < 2 else ""


def _sharing(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Yield the modules that hold a parameter which another module holds too."""
    shared = shared_parameters(model)
    for name, module in model.named_modules():
        if any(id(parameter) in shared for parameter in module.parameters(recurse=False)):
            yield name, module


@torch.no_grad()
def _probe(model: nn.Module, example: Tensor, group: Group, reference: Any) -> str:
    """Cut every other channel for real; return what breaks, or "" when the result is what it must be."""
    keep = keeping(model, (group,), {group.name: range(0, group.size, 2)})
    try:
        smaller = sliced(model, keep)(example)
    except RUN_ERRORS as error:
        return f"the forward pass breaks when it is cut: {_first_line(error)}"
    if not isinstance(reference, Tensor) or not isinstance(smaller, Tensor):
        return "the model's output is not one tensor, so a cut cannot be checked"
    if smaller.shape != reference.shape:
        return f"cutting it changes the output's shape from {tuple(reference.shape)} to {tuple(smaller.shape)}"
    if any(isinstance(model.get_submodule(cut.layer), nn.LayerNorm) for cut in group.cuts):
        return ""  # the norm averages over the channels, so removing is not the same as silencing; the shape is all we have
    silent = copy.deepcopy(model)
    for cut in group.cuts:
        if cut.axis == "in":
            _silence(silent.get_submodule(cut.layer), keep[cut.layer, "in"])
    expected = silent(example)
    scale = float(expected.abs().max())
    if not torch.allclose(smaller, expected, rtol=0.0, atol=1e-4 * scale + 1e-7):
        return "removing its channels is not the same as silencing them: something else depends on their places"
    return ""


def _silence(layer: Any, kept: Tensor) -> None:
    """Zero the weights that read the channels which are not kept."""
    axis = 0 if getattr(layer, "transposed", False) else 1
    mask = torch.zeros(layer.weight.shape[axis])
    mask[kept] = 1.0
    along = [1] * layer.weight.dim()
    along[axis] = -1
    layer.weight.data = layer.weight.data * mask.view(along)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
