"""The axes of a page: each keeps one unit throughout, the one in which the untouched model reads best, so columns compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.budget import AXES
from equipoise.records import Evaluation
from equipoise.units import SCALES, show

LABELS = {
    "latency_s": "Latency",
    "size_bytes": "File size",
    "params": "Params",
    "macs": "MACs",
    "peak_memory_bytes": "Peak memory",
    "energy_j": "Energy",
    "throughput_per_s": "Throughput",
    "price_per_million": "Price per million",
    "drop": "Drop",
    "quality": "Quality",
}
"""Axis -> what the page calls it; the order is the order of columns and of the chart's menu."""

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
        return f"{value:.2f}" if self.key in ("drop", "quality") else figure(value / self.factor)

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


def axes_of(study: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[Axis]:
    """Return the axes that at least one evaluation has a value on, each with its unit for this page."""
    reference = sorted((e for e in evaluations if e.ok), key=lambda e: e.key != study.get("baseline"))
    words = {axis: (word, unit) for word, (axis, unit) in AXES.items()}
    maximize = bool((study["header"].get("metric") or {}).get("maximize", True))
    out = []
    for key, label in LABELS.items():
        value = next((e.axis(key).value for e in reference if e.axis(key).known), None)
        if value is None:
            continue
        word, base = words[key]
        written = show(value, base).rpartition(" ")[2] if " " in show(value, base) else ""
        unit = "points" if base == "points" else "$" if base == "$" else written
        larger = key == "throughput_per_s" or (key == "quality" and maximize)
        out.append(Axis(key, word, label, unit, SCALES[base].get(written, 1.0), larger))
    return out
