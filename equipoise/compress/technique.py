"""What a technique of compression is: it offers choices, applies them to a draft, and says what becomes of each layer.

The search, the tables, the reports and the export work on offers alone and know no technique by name.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

from torch import nn

from equipoise.compress.cut import Keep
from equipoise.compress.subject import Subject
from equipoise.ops import Op
from equipoise.records import Choice
from equipoise.techniques import TECHNIQUES


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be chosen at one place.

    Attributes:
        place: A layer, a group or a block, by its name in the model; empty for the whole model.
        menu: The choices, the untouched one first.
        layers: Names of the layers that it acts on.
        removes: Choice -> the layers that are gone under it; knobs that act on these alone then do nothing.
        needs: Choice -> the scheme that the runtime must have, see `schemes.SCHEMES`.
        adds: Choice -> the operators that it puts before the model, to be timed as the layers are.
        untrained: Choices whose model has weights that were drawn: what it costs can be measured, and nothing is lost or kept
            before it is trained.
        refused: Why nothing can be chosen here, where that is so; the menu then holds the untouched choice alone.
    """

    place: str
    menu: tuple[Choice, ...]
    layers: tuple[str, ...]
    removes: Mapping[Choice, tuple[str, ...]] = field(default_factory=dict)
    needs: Mapping[Choice, Choice] = field(default_factory=dict)
    adds: Mapping[Choice, tuple[Op, ...]] = field(default_factory=dict)
    untrained: tuple[Choice, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A model on its way through the techniques.

    Attributes:
        model: As it is by now.
        damaged: Whether it computes something else than it did, so that repair has something to mend.
        keep: (layer, axis) -> the places that it kept, int64, where it lost some.
        renamed: Layer -> the one inside it that now gives its answer.
        request: Layer -> scheme that the runtime is asked to hold and compute it in, where not floats.
        hold: Layers whose zero weights are meant: repair and training keep them.
        drawn: Of a new model, whose weights are not the subject's: itself as it was drawn, nothing folded; else None.
    """

    model: nn.Module
    damaged: bool = False
    keep: Keep = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    request: Mapping[str, Choice] = field(default_factory=dict)
    hold: frozenset[str] = frozenset()
    drawn: nn.Module | None = None


@runtime_checkable
class Technique(Protocol):
    """Three members, checked by `equipoise.testing.techniques.check_technique`; a technique holds no state."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield what may be chosen, and what must be left whole and why, in the order of the model."""
        ...

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Return the draft with `chosen` (place -> choice, none of them untouched) applied; neither draft nor subject changes.

        Raises:
            InputError: A place that is not offered, or a choice that cannot be built.
        """
        ...

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the operators that `subject.ops[layer]` becomes under one choice; empty where the layer is gone."""
        ...


def technique(kind: str) -> Technique:
    """Return the technique of a kind of knob, importing it now."""
    return cast(Technique, pkgutil.resolve_name(TECHNIQUES[kind].maker)())
