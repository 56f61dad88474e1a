"""A model prepared once, built in many widths and depths: what a search calls for every plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from equipoise.batch import Inputs
from equipoise.compress.criteria import Evidence, compromise, gather, ranking
from equipoise.compress.cut import sliced
from equipoise.compress.depth import drop, droppable
from equipoise.compress.fold import folded
from equipoise.compress.graph import Group, groups, keeping
from equipoise.compress.prune import checked
from equipoise.compress.repair import refit
from equipoise.compress.statistics import Statistics, collect
from equipoise.compress.trace import WEIGHTED
from equipoise.errors import unknown


@dataclass(frozen=True)
class Pruner:
    """All that building a candidate needs and that no candidate changes.

    `teacher` is the folded model, `orders` the channels of each prunable group by importance (the first k are what width
    k keeps, so widths are nested), `blocks` the names that can be dropped, `calibration` the unlabelled inputs `(N, ...)`
    that repair fits to, `left` why each BatchNorm that could not be folded was left, by name, and `notes`, a sentence each,
    which groups could not be ordered as asked.
    """

    teacher: nn.Module
    groups: tuple[Group, ...]
    blocks: tuple[str, ...]
    orders: Mapping[str, tuple[int, ...]]
    statistics: Statistics
    calibration: Inputs
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def prepare(cls, model: nn.Module, example: Inputs, calibration: Inputs, *, criterion: str = "obs") -> Pruner:
        """Fold, trace, and measure `model` once; some seconds for a ResNet-20 and 256 inputs. `model` is not changed.

        Args:
            model: any module.
            example: a small batch `(N, ...)` that the model accepts.
            calibration: unlabelled inputs `(N, ...)`, drawn at random; 192 to 512 are enough.
            criterion: how channels are ordered, see `criteria.CRITERIA`.
        """
        done = folded(model, example, data=calibration)
        teacher = done.model
        found = groups(teacher, example)
        chosen = [group for group in found if group.prunable]
        readers = frozenset(name for group in chosen for name in group.consumers)
        if criterion in ("obs", "activation"):
            statistics = collect(teacher, calibration, moments_of=readers)
            evidence = Evidence(teacher, moments=statistics.moments)
        else:
            statistics = collect(teacher, calibration)
            evidence = gather(teacher, chosen, criterion=criterion, data=calibration)
        orders = {group.name: ranking(group, criterion, evidence) for group in chosen}
        notes = tuple(said for group in chosen if (said := compromise(group, criterion, evidence)))
        return cls(teacher, found, droppable(teacher, example), orders, statistics, calibration, done.left, notes)

    def build(self, widths: Mapping[str, int], drops: Sequence[str] = (), *, repair: bool = True) -> nn.Module:
        """Return the folded model with each named group at its width and each named block gone; deterministic.

        Args:
            widths: channels kept, by group name; groups that are not named stay whole. Taken as given, not rounded.
            drops: names from `blocks`.
            repair: whether to re-solve the weights on the calibration inputs. Without it the model still has the biases that
                repair gives to layers without one, so that stored weights of a repaired model fit it.

        Raises:
            InputError: an unknown group or block, an unprunable group, or a width outside [1, size].
        """
        for name in drops:
            if name not in self.blocks:
                raise unknown("block", name, self.blocks)
        kept = {name: sorted(self.orders[name][:width]) for name, width in checked(self.groups, widths).items()}
        keep = keeping(self.teacher, self.groups, kept)
        student = drop(sliced(self.teacher, keep), drops)
        if not (keep or drops):
            return student
        if not repair:
            return _with_biases(student, self.statistics.targets)
        narrowed = {layer: spots for (layer, axis), spots in keep.items() if axis == "out"}
        return refit(student, self.calibration, targets=self.statistics.targets, kept=narrowed)


def _with_biases(student: nn.Module, names: Iterable[str]) -> nn.Module:
    """Give each named layer of `student` a bias of zeros where it has none (in place); return `student`."""
    layers = dict(student.named_modules())
    for name in names:
        layer = layers.get(name)
        if isinstance(layer, WEIGHTED) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(len(layer.weight), dtype=layer.weight.dtype), layer.weight.requires_grad)
    return student
