"""What a model offers to a search, as plain data: its knobs, what they act on, and its layers as operators.

All that the road decides by is here, so it decides without the model, and a study can be walked again on a machine without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise.errors import must_be
from equipoise.ops import Op, op_from
from equipoise.records import Choice, Knob, Plan
from equipoise.search import Space
from equipoise.study.header import Offered

FEW = 8
"""Knobs that act on more layers than this (a block, the whole model) are not chosen together with each of them."""
TARGET = "target"
"""The knob that says where a plan runs."""


@dataclass(frozen=True, slots=True)
class Act:
    """What one knob makes of one layer.

    Attributes:
        menu: All its choices, the one that changes nothing first.
        ops: The operators under each choice alone; none where the layer is gone.
        given: Name and menu of knobs under which its share of the weights is another than alone: where few channels are left, a
            step between two widths is a larger part of them.
        factors: Its share over its share alone, for each choice of the knobs of `given` and of its own; the last runs fastest.
    """

    knob: str
    menu: tuple[Choice, ...]
    ops: tuple[tuple[Op, ...], ...]
    given: tuple[tuple[str, tuple[Choice, ...]], ...] = ()
    factors: tuple[float, ...] = ()

    def of(self, choice: Choice) -> tuple[Op, ...]:
        """Return the operators under one choice."""
        return self.ops[self.menu.index(choice)]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with weights, or what a choice puts before the model: no parameters, and gone under the other choices.

    Attributes:
        op: As it is in the untouched model.
        params: Its parameters there.
        acts: Of the knobs that change its shape or take it away.
        bits: The knob of its precision; empty where it has none.
        calls: How many times a request runs it, of which `op` is one: once for each word of what is written.
    """

    name: str
    op: Op
    params: int
    acts: tuple[Act, ...] = ()
    bits: str = ""
    calls: int = 1


@dataclass(frozen=True)
class Facts:
    """Knobs, layers, and what was left whole and why.

    Attributes:
        offered: Every knob of the space, in its order.
        moot: (knob, choice, knobs that do nothing under it).
        left_whole: Place -> reason.
        untrained: Knobs and choices whose models are new: they are trained, not searched.
        absent: (target, knob, choices that it cannot compute in).
        classes: Among how many the model chooses; 0 where its answers are no class scores.
    """

    offered: tuple[Offered, ...]
    layers: tuple[Layer, ...]
    moot: tuple[tuple[str, Choice, tuple[str, ...]], ...] = ()
    left_whole: Mapping[str, str] = field(default_factory=dict)
    untrained: tuple[tuple[str, Choice], ...] = ()
    absent: tuple[tuple[str, str, tuple[Choice, ...]], ...] = ()
    classes: int = 0

    @property
    def space(self) -> Space:
        """All plans."""
        knobs, moot = tuple(row.knob for row in self.offered), {(name, choice): gone for name, choice, gone in self.moot}
        absent: dict[tuple[str, Choice], dict[str, tuple[Choice, ...]]] = {}
        for target, name, choices in self.absent:
            absent.setdefault((TARGET, target), {})[name] = choices
        return Space(knobs, moot, {row.knob.name: row.layers for row in self.offered if len(row.layers) <= FEW}, absent)

    @property
    def searched(self) -> Space:
        """The plans whose models keep weights of the untouched one, so that tables and one-shot losses tell of them."""
        menus = {row.knob.name: row.knob.menu for row in self.offered}
        cut = dict.fromkeys(name for name, _ in self.untrained)
        return self.space.restrict({name: [c for c in menus[name] if (name, c) not in self.untrained] for name in cut})

    def narrowed(self, only: Sequence[str]) -> Space:
        """Return the searched plans that leave all untouched but what the named techniques change; none names all.

        Raises:
            InputError: None of them has anything to change here.
        """
        kinds = dict.fromkeys(row.knob.kind for row in self.offered if row.knob.name != TARGET)
        if not only:
            return self.searched
        if not set(only) & kinds.keys():
            raise must_be("only", "something that this model offers", ", ".join(only), f"It offers {', '.join(kinds)}.")
        held = {k.name: k.menu[:1] for k in self.searched.knobs if k.name != TARGET and k.kind not in only}
        return self.searched.restrict(held)

    @property
    def fresh(self) -> list[Plan]:
        """The plans of new models, in order."""
        return [self.space.untouched.but({name: choice}) for name, choice in self.untrained]

    def acted_on(self, knob: str) -> tuple[str, ...]:
        """Return the layers that a knob acts on."""
        return next((row.layers for row in self.offered if row.knob.name == knob), ())


def facts_from(data: Mapping[str, Any]) -> Facts:
    """Rebuild `Facts` from `records.as_data`."""
    offered = tuple(
        Offered(Knob(row["knob"]["name"], tuple(row["knob"]["menu"])), tuple(row["layers"])) for row in data["offered"]
    )
    layers = tuple(
        Layer(
            row["name"], op_from(row["op"]), row["params"], tuple(map(_act_from, row["acts"])), row["bits"], row.get("calls", 1)
        )
        for row in data["layers"]
    )
    moot = tuple((name, choice, tuple(gone)) for name, choice, gone in data["moot"])
    untrained = tuple((name, choice) for name, choice in data.get("untrained", ()))  # records of earlier releases have none
    absent = tuple((target, name, tuple(choices)) for target, name, choices in data.get("absent", ()))
    return Facts(offered, layers, moot, data["left_whole"], untrained, absent, data.get("classes", 0))


def _act_from(data: Mapping[str, Any]) -> Act:
    ops = tuple(tuple(map(op_from, ops)) for ops in data["ops"])
    given = tuple((name, tuple(menu)) for name, menu in data["given"])
    return Act(data["knob"], tuple(data["menu"]), ops, given, tuple(data["factors"]))
