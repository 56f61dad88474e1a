"""The axes of a page: each keeps one unit throughout, the one in which the untouched model reads best, so columns compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.axes import AXES
from equipoise.records import Evaluation
from equipoise.units import SCALES, show

BETTER = {
    **{axis.key: axis.better for axis in AXES.values()},
    "train_s": ("shorter", "longer"),
    "train_cost": ("cheaper", "dearer"),
    "loss": ("lower", "higher"),
}
"""Key of an axis -> the words for better and worse; smaller and larger where none are given."""

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis in the unit that the whole page uses for it. `factor` base units make one written unit."""

    key: str
    word: str
    label: str
    unit: str
    factor: float
    larger_is_better: bool

    def figure(self, value: float | None) -> str:
        """Print a value in base units as a bare figure of this axis."""
        if value is None:
            return MISSING
        if self.key in ("drop", "quality", "regret"):
            return f"{value / self.factor:.2f}"
        return f"{value:.4g}" if self.key.endswith("loss") else figure(value / self.factor)

    def text(self, value: float | None) -> str:
        """Print a value in base units with the unit."""
        return self.figure(value) + (f" {self.unit}" if self.unit and value is not None else "")

    @property
    def heading(self) -> str:
        """Label with unit, for a column."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


def figure(value: float) -> str:
    """Print a bare number with three figures."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def times(key: str, ratio: float) -> str:
    """Say that something is `ratio` times better on the axis `key`."""
    better, worse = BETTER.get(key, ("smaller", "larger"))
    if f"{ratio:.2f}" == "1.00":
        return "unchanged"
    return f"{ratio:.2f}× {better}" if ratio > 1 else f"{1 / ratio:.2f}× {worse}"


def held(figure: str) -> str:
    """Keep a written figure on the line of its unit."""
    return figure.replace(" ", "\u00a0")


def power(value: float) -> str:
    """Print a count that is too large for a prefix, such as training FLOPs: ``1.2×10¹⁵``."""
    digits, exponent = f"{value:.1e}".split("e")
    ten = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ten if digits == "1.0" else f"{digits.removesuffix('.0')}×{ten}"


def in_unit(key: str, *, word: str, label: str, base: str, value: float, larger: bool = False) -> Axis:
    """Return the axis in the written unit in which `value`, in `base` units, reads best."""
    text = show(value, base)
    written = text.rpartition(" ")[2] if " " in text else ""
    unit = base if base in ("points", "$") else written
    return Axis(key, word, label, unit, SCALES[base].get(written, 1.0), larger)


def axes_of(study: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[Axis]:
    """Return the axes that at least one evaluation has a value on, each with its unit for this page."""
    reference = sorted((e for e in evaluations if e.ok), key=lambda e: e.key != study.get("baseline"))
    maximize = bool((study["header"].get("metric") or {}).get("maximize", True))
    out = []
    for word, axis in AXES.items():
        value = next((e.axis(axis.key).value for e in reference if e.axis(axis.key).known), None)
        if value is None:
            continue
        larger = maximize if axis.smaller is None else not axis.smaller
        out.append(in_unit(axis.key, word=word, label=axis.label, base=axis.unit, value=value, larger=larger))
    return out
