"""Clients of different scale: a weak client holds the first channels of every group that can be cut, as a plan says.

The groups are those that `compress` traces and proves. What a client's tensors are of the server's is read off a cut of a model
whose every weight is its own place, so that no kind of layer needs a rule of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.cut import sliced
from equipoise.compress.graph import Group, groups, keeping
from equipoise.errors import must_be
from equipoise.federated.state import VARIANCES, Tensors, numbers
from equipoise.records import Plan

STATISTICS = ("running_mean", VARIANCES)
"""Of a channel that fewer channels feed they are others: the clients of the largest scale alone are heard."""


@dataclass(frozen=True)
class Cut:
    """What a client of one scale holds.

    Attributes:
        plan: Group of channels -> how many it keeps, as a study records it; empty for the whole model.
        model: Of that scale.
        places: Tensor -> the places (int64, in the server's flattened tensor) of its numbers; empty for the whole model.
    """

    plan: Plan
    model: nn.Module
    places: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, weights: Mapping[str, Tensor]) -> Tensors:
        """Return the part of the server's tensors that the client holds."""
        if not self.places:
            return dict(weights)
        return {name: value.flatten()[self.places[name]] for name, value in weights.items()}


def cuts_of(model: nn.Module, example: Inputs, ratios: tuple[float, ...]) -> dict[float, Cut]:
    """Return the cut of each ratio above 0, of the server's model; the largest ratio is the server's own.

    Args:
        model: The whole model, of which ratio 1 keeps everything.
        example: A small batch (N, ...) that it accepts.
        ratios: Fractions of every prunable group's channels that are kept, at least one channel.
    Raises:
        InputError: A ratio below 1 of a model with no group that can be cut.
    """
    wanted = sorted({ratio for ratio in ratios if ratio > 0}, reverse=True)
    if wanted == [1.0]:
        return {1.0: Cut(Plan({}), model)}
    free = [group for group in groups(model, example) if group.prunable]
    if not free:
        raise must_be("scales", "1 for a model without channels that can be cut", ratios, "Take another family.")
    numbered, own, found = _numbered(model), Tensors(), dict[float, Cut]()
    for ratio in wanted:
        kept = {group.name: range(_width(group, ratio)) for group in free}
        keep = keeping(model, free, kept)
        indices = {name: value.long() for name, value in numbers(sliced(numbered, keep)).items()}
        own = own or indices
        places = {} if ratio == wanted[0] else {name: _among(own[name], value) for name, value in indices.items()}
        plan = Plan({f"width.{name}": len(channels) for name, channels in kept.items()})
        found[ratio] = Cut(plan, sliced(model, keep), places)
    return found


def averaged_by(places: Mapping[str, Tensor], name: str) -> bool:
    """Return whether a client that holds only `places` is heard on the tensor `name`."""
    return not places or not name.endswith(STATISTICS)


def _width(group: Group, ratio: float) -> int:
    """How many channels of a group a ratio keeps."""
    return max(1, min(group.size, int(group.size * ratio + 0.5)))


def _among(all_of: Tensor, some: Tensor) -> Tensor:
    """Return where in the flattened `all_of` each of `some` stands."""
    where = torch.empty(int(all_of.max()) + 1, dtype=torch.int64)
    where[all_of.flatten()] = torch.arange(all_of.numel())
    return where[some]


def _numbered(model: nn.Module) -> nn.Module:
    """Return a copy in float64 in which each number of each tensor is its own place in it."""
    found = copy.deepcopy(model).double()
    with torch.no_grad():
        for value in found.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.arange(value.numel(), dtype=torch.float64).view(value.shape))
    return found
