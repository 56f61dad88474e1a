"""The space of plans that knobs span.

A *genome* is a row of menu indices, one for each knob in the space's order; a plan is the same thing by name. Genomes are
what the numeric rooms work on, `(n, knobs)` integer matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import InputError, must_be, unknown
from equipoise.records import Choice, Knob, Plan

Genomes = NDArray[np.int64]
"""`(n, knobs)` menu indices; a single genome is `(knobs,)`."""


def distinct(genomes: Genomes) -> Genomes:
    """Return each of `genomes` `(n, knobs)` once, in an order that is theirs alone; quicker than `numpy.unique` of rows."""
    packed = np.ascontiguousarray(genomes, dtype=np.int32)
    rows = packed.view(np.dtype((np.void, packed.itemsize * packed.shape[1]))).ravel()
    return np.asarray(genomes[np.unique(rows, return_index=True)[1]])


@dataclass(frozen=True)
class Space:
    """All plans: one choice for every knob.

    Args:
        knobs: In any order, each name once.
        moot: ``(knob, choice)`` -> knobs that have no effect under that choice (the width inside a dropped block). Such knobs
            are held at their untouched choice, so that one network is never two plans.
        acts: Knob -> names of what it acts on; what knobs of the same thing cost together is not the sum of what each costs.
        absent: ``(knob, choice)`` -> choices of other knobs that do not exist under it (a precision that one target lacks): the
            untouched one stands in their place.
    Raises:
        InputError: No knobs, a name used twice, or `moot` or `absent` naming what does not exist.
    """

    knobs: tuple[Knob, ...]
    moot: Mapping[tuple[str, Choice], tuple[str, ...]] = field(default_factory=dict)
    acts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: Mapping[tuple[str, Choice], Mapping[str, tuple[Choice, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.knobs:
            raise must_be("knobs", "one or more", self.knobs, "A space needs something to change.")
        if len(self.positions) != len(self.knobs):
            raise must_be("knobs", "uniquely named", [k.name for k in self.knobs], "Rename the copies.")
        for (name, choice), others in self.moot.items():
            self._index(name, choice)
            for other in others:
                if other not in self.positions or other == name:
                    raise unknown("moot knob", other, (k for k in self.positions if k != name))
        self._absent_choices  # noqa: B018 - refuses what does not exist

    @cached_property
    def positions(self) -> dict[str, int]:
        """Knob name -> column of a genome."""
        return {k.name: i for i, k in enumerate(self.knobs)}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Menu length of each knob, `(knobs,)`."""
        return np.array([len(k.menu) for k in self.knobs], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of genomes, moot copies included."""
        return math.prod(len(k.menu) for k in self.knobs)

    @property
    def untouched(self) -> Plan:
        """The plan that changes nothing."""
        return Plan({k.name: k.menu[0] for k in self.knobs})

    def check(self, plan: Plan) -> None:
        """Refuse a plan that is not of this space; every mistake is reported together.

        Raises:
            InputError: An unknown or missing knob, or a choice that is not on its menu.
        """
        mistakes: list[str] = []
        for name in self.positions:
            if name not in plan.choices:
                mistakes.append(str(must_be(f"plan {name}", "chosen", None, f"One of {list(self.knob(name).menu)}.")))
        for name, choice in plan.choices.items():
            try:
                self._index(name, choice)
            except InputError as error:
                mistakes.append(str(error))
        if mistakes:
            raise InputError("\n".join(mistakes))

    def holds(self, plan: Plan) -> bool:
        """Whether `plan` is of this space."""
        return plan.choices.keys() == self.positions.keys() and all(plan[k.name] in k.menu for k in self.knobs)

    def nearest(self, choices: Mapping[str, Choice]) -> Plan:
        """Return the plan of this space that is nearest to choices of another: what has no counterpart is left untouched."""
        found = dict(self.untouched.choices)
        for knob in self.knobs:
            wanted = choices.get(knob.name)
            if wanted in knob.menu:
                found[knob.name] = wanted
            elif isinstance(wanted, int) and knob.nested:
                found[knob.name] = min(knob.menu, key=lambda choice: abs(int(choice) - wanted))
        return self.decode(self.encode(Plan(found)))

    def encode(self, plan: Plan) -> Genomes:
        """Return the genome `(knobs,)` of `plan`, moot knobs untouched.

        Raises:
            InputError: As `check`.
        """
        self.check(plan)
        genome = np.array([self._index(k.name, plan[k.name]) for k in self.knobs], dtype=np.int64)
        return np.asarray(self.canonical(genome[None])[0])

    def encode_all(self, plans: Sequence[Plan]) -> Genomes:
        """Return the genomes `(n, knobs)` of `plans`."""
        return np.array([self.encode(p) for p in plans], dtype=np.int64).reshape(len(plans), len(self.knobs))

    def decode(self, genome: Genomes) -> Plan:
        """Return the plan of a genome `(knobs,)`.

        Raises:
            InputError: A wrong length or an index off its menu.
        """
        if genome.shape != self.sizes.shape or bool(np.any((genome < 0) | (genome >= self.sizes))):
            raise must_be("genome", f"{len(self.knobs)} menu indices", genome.tolist(), "Use encode() to make one.")
        return self.decode_all(genome[None])[0]

    def decode_all(self, genomes: Genomes) -> list[Plan]:
        """Return the plans of valid genomes `(n, knobs)`; quicker than one at a time."""
        rows = self.canonical(genomes).tolist()
        return [Plan({k.name: k.menu[i] for k, i in zip(self.knobs, row, strict=True)}) for row in rows]

    def canonical(self, genomes: Genomes) -> Genomes:
        """Return a copy of `genomes` `(n, knobs)` with moot knobs and absent choices at the untouched one."""
        out = np.array(genomes, dtype=np.int64)
        for column, index, lost in self._absent_choices:
            rows = out[:, column] == index
            out[rows] = np.where(lost[out[rows], np.arange(len(self.knobs))], 0, out[rows])
        for column, index, others in self._moot_columns:
            out[np.ix_(out[:, column] == index, others)] = 0
        return out

    @cached_property
    def _moot_columns(self) -> list[tuple[int, int, list[int]]]:
        """`moot` by column and menu index."""
        return [
            (self.positions[name], self._index(name, choice), [self.positions[n] for n in others])
            for (name, choice), others in self.moot.items()
        ]

    @cached_property
    def _absent_choices(self) -> list[tuple[int, int, NDArray[np.bool_]]]:
        """`absent` by column and menu index: which entries `(menu, knobs)` do not exist."""
        found = []
        for (name, choice), others in self.absent.items():
            lost = np.zeros((int(self.sizes.max()), len(self.knobs)), dtype=bool)
            for other, choices in others.items():
                lost[[self._index(other, c) for c in choices], self.positions[other]] = True
            found.append((self.positions[name], self._index(name, choice), lost))
        return found

    def sample(self, rng: np.random.Generator, *, n: int = 1) -> Genomes:
        """Draw `n` genomes `(n, knobs)`, every choice equally likely."""
        return self.canonical(rng.integers(0, self.sizes, size=(n, len(self.knobs))))

    def neighbors(self, plan: Plan) -> Iterator[Plan]:
        """Yield every different plan that changes one knob of `plan`."""
        start = self.decode(self.encode(plan))
        seen = {start}
        for knob in self.knobs:
            for choice in knob.menu:
                other = self.decode(self.encode(start.but({knob.name: choice})))
                if other not in seen:
                    seen.add(other)
                    yield other

    def restrict(self, allowed: Mapping[str, Sequence[Choice]]) -> Space:
        """Return the space with shorter menus, in the old order; the first choice left becomes the untouched one.

        Args:
            allowed: Knob name -> choices to keep; knobs not named keep their whole menu.
        Raises:
            InputError: An unknown knob or choice, or nothing left of a menu.
        """
        for name, choices in allowed.items():
            for choice in choices:
                self._index(name, choice)
            if name not in self.positions:
                raise unknown("knob", name, self.positions)
        knobs = tuple(
            Knob(k.name, tuple(c for c in k.menu if k.name not in allowed or c in allowed[k.name])) for k in self.knobs
        )
        menus = {k.name: k.menu for k in knobs}
        moot = {key: others for key, others in self.moot.items() if key[1] in menus[key[0]]}
        absent = {
            key: {name: tuple(c for c in choices if c in menus[name][1:]) for name, choices in others.items()}
            for key, others in self.absent.items()
            if key[1] in menus[key[0]]
        }
        return Space(knobs, moot, self.acts, absent)

    def knob(self, name: str) -> Knob:
        """Return a knob by its name.

        Raises:
            InputError: There is none.
        """
        if name not in self.positions:
            raise unknown("knob", name, self.positions)
        return self.knobs[self.positions[name]]

    def _index(self, name: str, choice: Choice) -> int:
        knob = self.knob(name)
        if choice not in knob.menu:
            raise must_be(f"plan {name}", f"one of {list(knob.menu)}", choice, "Choose from the menu.")
        return knob.menu.index(choice)
