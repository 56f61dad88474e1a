"""Coupled channel groups as records: which layers' axes a group owns, and what each layer keeps when the group is cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from equipoise.compress.cut import AXES, Axis, Keep, axis_size
from equipoise.errors import must_be


@dataclass(frozen=True)
class Cut:
    """One axis of one layer that a group owns; `positions[c]` are the places of the group's channel `c` on it.

    Of a whole number that code remembers (see `cut.Axis`), the channel's places are its share of the number. A layer `beside`
    the others writes something for each channel that is not the channel itself: a bias of the scores, for each head.
    """

    layer: str
    axis: Axis
    positions: tuple[tuple[int, ...], ...]
    beside: bool = False


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
    def places(self) -> int:
        """Return the fewest places that one channel takes in a layer: those of a head, where heads are the channels."""
        own = (cut for cut in self.cuts if cut.axis in AXES and not cut.beside)
        return min((len(spots) for cut in own for spots in cut.positions), default=1)

    def multiple(self, places: int) -> int:
        """Return how many channels are kept at a time where a layer likes multiples of `places`."""
        return max(1, places // self.places)

    @property
    def coupled(self) -> bool:
        """Return whether several layers write the same channels, as the blocks of a residual stream do."""
        return len(self.producers) > 1


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
