"""A budget in the user's units, parsed once: ``"latency<=2ms, size<=500KB, drop<=1"``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.axes import AXES, Axis
from equipoise.errors import InputError, must_be, unknown
from equipoise.records import Evaluation
from equipoise.units import parse, show

_CONSTRAINT = re.compile(r"^\s*([a-z_]+)\s*(<=|>=|==|<|>|=)\s*([^<>=\s].*?)\s*$")


@dataclass(frozen=True, slots=True)
class Constraint:
    """One bound. `upper` True means ``axis <= bound``."""

    word: str
    axis: str
    unit: str
    bound: float
    upper: bool

    def excess(self, value: float) -> float:
        """Return by how much `value` breaks the bound, relative to it; 0 when it holds.

        A bound of 0 is compared on its own scale (1 base unit), so the excess stays finite.
        """
        over = value - self.bound if self.upper else self.bound - value
        return max(0.0, over) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.word}{'<=' if self.upper else '>='}{show(self.bound, self.unit)}"


@dataclass(frozen=True, slots=True)
class Budget:
    """All bounds of a run; an empty one asks for the knee."""

    constraints: tuple[Constraint, ...] = ()
    text: str = ""

    def excesses(self, evaluation: Evaluation) -> dict[str, float]:
        """Return word -> relative excess for each bound that `evaluation` breaks.

        An axis that was not measured can never meet a bound: its excess is infinite.
        """
        out: dict[str, float] = {}
        for c in self.constraints:
            reading = evaluation.axis(c.axis)
            over = c.excess(reading.value) if reading.value is not None else float("inf")
            if over > 0:
                out[c.word] = over
        return out

    def met_by(self, evaluation: Evaluation) -> bool:
        """Whether every bound holds."""
        return evaluation.ok and not self.excesses(evaluation)

    def bound(self, word: str) -> float | None:
        """Return the bound of `word`, or None when the budget does not name it."""
        return next((c.bound for c in self.constraints if c.word == word), None)


def parse_budget(text: str | None, *, axes: Mapping[str, Axis] = AXES) -> Budget:
    """Read a budget; every mistake in it is reported together.

    Args:
        text: Bounds separated by commas; None or empty for none.
        axes: The words it may use.
    Raises:
        InputError: Commas alone, an unknown word, a wrong direction or an unreadable quantity.
    """
    if not isinstance(text, str | None):
        raise must_be("budget", "text, or None", text, 'Write for example "latency<=1ms, drop<=1".')
    found: dict[str, Constraint] = {}
    mistakes: list[str] = []
    parts = [part for part in (text or "").split(",") if part.strip()]
    if text and text.strip() and not parts:
        raise must_be("budget", "bounds separated by commas", text, 'Write for example "latency<=1ms, drop<=1".')
    for part in parts:
        try:
            constraint = _parse_one(part, axes)
            if constraint.word in found:
                raise must_be("budget", "one bound for each axis", part.strip(), f"Remove the second {constraint.word}.")
            found[constraint.word] = constraint
        except InputError as error:
            mistakes.append(str(error))
    if mistakes:
        raise InputError("\n".join(mistakes))
    return Budget(tuple(found.values()), ", ".join(p.strip() for p in parts))


def _parse_one(part: str, axes: Mapping[str, Axis]) -> Constraint:
    match = _CONSTRAINT.match(part)
    if match is None:
        raise must_be("budget", "written as axis<=quantity", part.strip(), 'Write for example "latency<=1ms, drop<=1".')
    word, relation, quantity = match.groups()
    if word not in axes:
        raise unknown("budget axis", word, axes)
    axis = axes[word]
    upper = relation in ("<=", "<") if axis.smaller is None else axis.smaller
    if relation not in (("<=", "<") if upper else (">=", ">")):
        raise must_be(f"budget {word}", f"a bound with {'<=' if upper else '>='}", part.strip(), "Turn the relation round.")
    bound = parse(quantity, axis.unit, name=f"budget {word}")
    if bound < 0 or (bound == 0 and word not in ("drop", "quality")):
        raise must_be(f"budget {word}", "positive", quantity, "Give the most that you can accept.")
    return Constraint(word, axis.key, axis.unit, bound, upper)
