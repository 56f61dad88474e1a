"""Which axes of cost can be read here, and how one follows from another: price from latency, carbon from energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from equipoise.axes import ALWAYS, AXES
from equipoise.budget import Budget
from equipoise.errors import InputError, must_be
from equipoise.measure import energy
from equipoise.records import Reading, unavailable

JOULES_PER_KWH = 3.6e6


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
        if word == "price" and self.price_per_hour is None:
            return "the price of this machine is not known. Give --price-per-hour (price_per_hour=)."
        if word in ("energy", "carbon") and (access := energy.rapl()).meter is None:
            return f"{access.reason}. Leave the bound out, or run where an energy counter can be read."
        if word == "carbon" and self.grid is None:
            return "the carbon intensity of the grid is not known. Give --grid (grid=) in grams of CO2e for a kWh."
        return ""

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
