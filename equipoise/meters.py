"""Which axes of cost can be read here, and how one follows from another: price from latency, carbon from energy."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from equipoise.axes import ALWAYS, AXES
from equipoise.batch import Inputs
from equipoise.budget import Budget
from equipoise.errors import InputError, must_be
from equipoise.records import Reading, unavailable

JOULES_PER_KWH = 3.6e6

TOLD = {
    "price": ("price_per_hour", "the price of this machine is not known. Give --price-per-hour (price_per_hour=)."),
    "carbon": ("grid", "the carbon intensity of the grid is not known. Give --grid (grid=) in grams of CO2e for a kWh."),
}
"""Word -> the field of `Meters` that it follows by, and what there is to do where the user did not tell it."""


class Meter(Protocol):
    """What reads an axis of a program; a row of `axes.AXES` names the class, and an object of it holds no state."""

    def missing(self) -> str:
        """Return why the axis cannot be read on this machine, with the remedy; empty where it can."""
        ...

    def read(self, program: Any, target: Any, rows: Inputs) -> Reading:
        """Return the axis in its base unit, with the interval that another reading falls in; none where it repeats exactly.

        Args:
            program: A `runtimes.Program`.
            target: The `runtimes.Target` that it runs on.
            rows: One request, (N, ...), of the target's batch.
        """
        ...


def meter(word: str) -> Meter:
    """Return the meter of an axis, importing it now."""
    return cast(Meter, pkgutil.resolve_name(AXES[word].meter)())


def read(word: str, program: Any, target: Any, rows: Inputs) -> Reading:
    """Return what the meter of an axis reads; unavailable, with the reason, where it cannot be read here."""
    found = meter(word)
    why = found.missing()
    return unavailable(AXES[word].unit, why) if why else found.read(program, target, rows)


@dataclass(frozen=True, slots=True)
class Meters:
    """What the user told of this machine, and with it what can be read on it.

    Attributes:
        batch: Samples in a request of the first target.
        price_per_hour: Dollars an hour of this machine; None where it is not known.
        grid: Grams of CO2 equivalent for a kilowatt-hour of its electricity; None where it is not known.
    """

    batch: int = 1
    price_per_hour: float | None = None
    grid: float | None = None

    def __post_init__(self) -> None:
        for name in ("price_per_hour", "grid"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise must_be(name, "a finite number above 0", value, "Leave it out where it is not known.")

    def unavailable(self, word: str) -> str:
        """Return why the axis `word` cannot be read here, with the remedy; empty where it can."""
        read = AXES[word].of or word
        return (meter(read).missing() if AXES[read].meter else "") or self.untold(word)

    def untold(self, word: str) -> str:
        """Return what the user must tell of this machine for the axis `word`, where that was not told; else empty."""
        name, remedy = TOLD.get(word, ("", ""))
        return remedy if name and getattr(self, name) is None else ""

    def told(self, words: Iterable[str]) -> dict[str, float]:
        """Return what the user told of this machine, by field, of all that the axes `words` follow by."""
        return {name: getattr(self, name) for name, _ in (TOLD[word] for word in words if word in TOLD)}

    def check(self, budget: Budget) -> None:
        """Raise `InputError` for every bound on an axis that cannot be read here, all of them together."""
        reasons = {c: self.unavailable(c.word) for c in budget.constraints}
        told = [f"budget {c.word} must be measurable here; got {str(c)!r}: {why}" for c, why in reasons.items() if why]
        if told:
            raise InputError("\n".join(told))

    def extra(self, budget: Budget) -> tuple[str, ...]:
        """Return the words of `budget` that are read only because it names them, each after the one that it follows from."""
        named = [c.word for c in budget.constraints if c.word not in ALWAYS]
        before = [AXES[word].of for word in named if AXES[word].of and AXES[word].of not in ALWAYS]
        return tuple(dict.fromkeys([*before, *named]))

    def metered(self, budget: Budget) -> tuple[str, ...]:
        """Return the words of `extra` that a meter reads; the others follow from what was read."""
        return tuple(word for word in self.extra(budget) if AXES[word].meter)

    def following(self, budget: Budget, cost: Mapping[str, Reading]) -> dict[str, Reading]:
        """Return the axes of `budget` that follow from others, as they do from `cost` (axis -> reading)."""
        words = [word for word in self.extra(budget) if AXES[word].of and AXES[AXES[word].of].key in cost]
        return {AXES[word].key: self.follows(word, cost) for word in words if not self.untold(word)}

    def read(
        self, words: Iterable[str], cost: Mapping[str, Reading], program: Any, target: Any, rows: Inputs
    ) -> dict[str, Reading]:
        """Return `cost` (axis -> reading) with the axes `words` beside it, each read by its meter or from what it follows from.

        Args:
            words: Each after the one that it follows from, where `cost` lacks that.
            program, target, rows: As `Meter.read`.
        """
        found = dict(cost)
        for word in words:
            axis = AXES[word]
            found[axis.key] = self.follows(word, found) if axis.of else read(word, program, target, rows)
        return found

    def follows(self, word: str, cost: Mapping[str, Reading]) -> Reading:
        """Return the reading of an axis that follows from another one in `cost` (axis -> reading)."""
        axis, found = AXES[word], cost[AXES[AXES[word].of].key]
        if found.value is None:
            return unavailable(axis.unit, found.note)
        note = f"from the {axis.of} at batch {self.batch}"
        if word == "throughput":
            low, high = (None if end is None else self.batch / end for end in (found.high, found.low))
            return replace(found, value=self.batch / found.value, unit=axis.unit, low=low, high=high, note=note)
        factor = self.factor(word)
        low, high = (None if end is None else end * factor for end in (found.low, found.high))
        return replace(found, value=found.value * factor, unit=axis.unit, low=low, high=high, note=note)

    def factor(self, word: str) -> float:
        """Return how much of `word` one base unit of the axis that it follows from is."""
        if word == "price" and self.price_per_hour is not None:
            return self.price_per_hour / 3600.0 * 1e6 / self.batch
        if word == "carbon" and self.grid is not None:
            return self.grid / JOULES_PER_KWH
        raise InputError(f"{word} does not follow from another axis by a factor here")

    def on_base(self, word: str, bound: float) -> tuple[str, float]:
        """Return a bound on `word` as one on the axis that is read: ``throughput>=100/s`` at batch 1 is ``latency<=10ms``."""
        if not AXES[word].of:
            return word, bound
        if word == "throughput":
            return AXES[word].of, self.batch / bound
        return AXES[word].of, bound / self.factor(word)
