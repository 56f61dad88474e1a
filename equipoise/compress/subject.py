"""A model made ready to be compressed: folded, traced and measured once; every technique reads it and none changes it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.blocks import Block, droppable
from equipoise.compress.criteria import Evidence, compromise, gather, ranking
from equipoise.compress.fold import folded
from equipoise.compress.graph import Group, groups
from equipoise.compress.operators import operators
from equipoise.compress.statistics import Moments, Statistics, collect
from equipoise.compress.trace import Watched, unwatched
from equipoise.errors import unknown
from equipoise.ops import Op

ALONG = 2**20
"""Moments of no more numbers than this are collected with those of other layers: a pass over the inputs costs seconds."""


@dataclass(frozen=True)
class Subject:
    """All that building a candidate needs and that no candidate changes; make one with `Subject.prepare`.

    Attributes:
        model: The user's model, in evaluation mode, BatchNorm folded; a copy.
        example: A small batch (N, ...) that it accepts.
        ops: Layer -> operator, of the layers with weights that can be timed alone, in the order in which they run.
        groups: Coupled channels; those that must stay whole say why.
        blocks: The residual blocks that can be dropped, by name.
        calibration: Unlabelled inputs (N, ...) that repair fits to; None where only shapes are wanted.
        orders: Group -> its channels by importance; the first k are what width k keeps, so widths are nested.
        statistics: What the layers read and answer on the calibration inputs.
        fitted: The layers that repair fits, and gives a bias where they have none.
        left: Why a BatchNorm could not be folded, by name.
        notes: Which groups could not be ordered as asked, a sentence each.
        likes: Channel counts are kept to multiples of this, where the target is quick.
        exact: Whether the CPU adds 8-bit products without overflow, see `schemes.top`.
        students: Name -> makes a new model for the same inputs and outputs, the same one each time, its weights drawn.
    """

    model: nn.Module
    example: Inputs
    ops: Mapping[str, Op]
    groups: tuple[Group, ...]
    blocks: Mapping[str, Block]
    calibration: Inputs | None = None
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    statistics: Statistics | None = None
    fitted: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    likes: int = 8
    exact: bool = False
    students: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    _moments: dict[str, Moments | None] = field(default_factory=dict, repr=False, compare=False)
    _answers: dict[str, Statistics] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        example: Inputs,
        calibration: Inputs,
        *,
        criterion: str = "obs",
        likes: int = 8,
        exact: bool = False,
        watched: Watched = unwatched,
    ) -> Subject:
        """Fold, trace, and measure `model` once; some seconds for a ResNet-20 and 256 inputs. `model` is not changed.

        Args:
            model: Any module.
            example: A small batch (N, ...) that the model accepts.
            calibration: Unlabelled inputs (N, ...), drawn at random; 192 to 512 are enough.
            criterion: How channels are ordered: 'obs', 'activation', 'l1' or 'l2' (see `criteria.CRITERIA`).
            likes, exact: See the class.
            watched: Entered around each run of a changed model, with the names of what was changed.
        """
        subject = cls._traced(model, example, calibration, likes=likes, exact=exact, watched=watched)
        chosen = [group for group in subject.groups if group.prunable]
        if criterion in ("obs", "activation"):
            readers = frozenset(name for group in chosen for name in group.consumers)
            statistics = collect(subject.model, calibration, moments_of=readers)
            evidence = Evidence(subject.model, moments=statistics.moments)
        else:
            statistics = collect(subject.model, calibration)
            evidence = gather(subject.model, chosen, criterion=criterion, data=calibration)
        orders = {group.name: ranking(group, criterion, evidence) for group in chosen}
        notes = tuple(said for group in chosen if (said := compromise(group, criterion, evidence)))
        return replace(
            subject,
            calibration=calibration,
            orders=orders,
            statistics=statistics,
            fitted=tuple(statistics.targets),
            notes=notes,
        )

    @classmethod
    def of_shapes(
        cls,
        model: nn.Module,
        example: Inputs,
        data: Inputs,
        *,
        likes: int = 8,
        exact: bool = False,
        watched: Watched = unwatched,
    ) -> Subject:
        """Fold and trace `model` alone: enough to rebuild the shapes of a plan, without what its weights are chosen by.

        Args:
            data: A few inputs (N, ...) on which folding is compared.
        """
        subject = cls._traced(model, example, data, likes=likes, exact=exact, watched=watched)
        return replace(subject, fitted=tuple(collect(subject.model, example).targets))

    @classmethod
    def _traced(cls, model: nn.Module, example: Inputs, data: Inputs, *, likes: int, exact: bool, watched: Watched) -> Subject:
        done = folded(model, example, data=data)
        layers, found = operators(done.model, example), groups(done.model, example, watched=watched)
        blocks = droppable(done.model, example, watched=watched)
        return cls(done.model, example, layers, found, blocks, left=done.left, likes=likes, exact=exact)

    def group(self, name: str) -> Group:
        """Return the group of that name.

        Raises:
            InputError: There is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise unknown("group", name, [group.name for group in self.groups if group.prunable])

    def moments(self, layers: Collection[str]) -> dict[str, Moments]:
        """Return what these layers read on the calibration inputs, where that can be collected; small others are read along."""
        known = dict(self.statistics.moments if self.statistics else {})
        if self.calibration is not None and (missing := frozenset(layers) - known.keys() - self._moments.keys()):
            small = {name for name in self.ops if self._numbers(name) <= ALONG} - known.keys() - self._moments.keys()
            found = collect(self.model, self.calibration, moments_of=missing | small, targets=False).moments
            self._moments.update({name: found.get(name) for name in missing | small})
        known.update({name: moments for name, moments in self._moments.items() if moments is not None})
        return {layer: known[layer] for layer in layers if layer in known}

    def _numbers(self, layer: str) -> int:
        """How many numbers the moments of what a layer reads are."""
        weight: Tensor = self.model.get_submodule(layer).weight  # type: ignore[assignment]
        return int(weight[0].numel()) ** 2

    def answers_of(self, scaled: nn.Module, *, key: str) -> Statistics:
        """Return what the layers of the model at another scale answer on the calibration inputs.

        Layers whose answers have no places, such as a classifier's, are to answer as at the model's own scale.

        Args:
            scaled: The model at that scale.
            key: Which scale it is; the answers are collected once for each.
        """
        assert self.statistics is not None, "a subject of shapes alone has no answers"
        assert self.calibration is not None, "a subject of shapes alone has no answers"
        if scaled is self.model:
            return self.statistics
        if key not in self._answers:
            found = collect(scaled, self.calibration).targets
            placeless = [name for name, op in self.ops.items() if op.kind == "linear" and op.height == 1 and name in found]
            own = {name: self.statistics.targets[name] for name in placeless if name in self.statistics.targets}
            self._answers[key] = Statistics(self.statistics.moments, {**found, **own})
        return self._answers[key]

    def order(self, group: Group) -> tuple[int, ...]:
        """Return a group's channels by importance, or as they come where only shapes are wanted."""
        return self.orders.get(group.name) or tuple(range(group.size))
