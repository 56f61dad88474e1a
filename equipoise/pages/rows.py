"""Readings in rows: one below the other with their provenance, or side by side with a numbered reason for each unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise.axes import LABELS
from equipoise.pages.axes import Axis, in_unit, power
from equipoise.pages.facts import how
from equipoise.pages.schema import demand, reading
from equipoise.records import Reading
from equipoise.units import show

FIGURES = {
    "params": LABELS["params"],
    "macs": LABELS["macs"],
    "flops_per_sample": "Forward FLOPs a sample",
    "quality": LABELS["quality"],
    "loss": "Loss",
    "regret": "Regret",
    "compute": "Training FLOPs",
    "samples": "Samples seen",
    "train_s": "Training time",
    "train_cost": "Training cost",
    "train_energy_j": "Training energy",
    "train_memory_bytes": "Training memory",
    "latency_s": LABELS["latency_s"],
    "size_bytes": LABELS["size_bytes"],
    "peak_memory_bytes": LABELS["peak_memory_bytes"],
    "energy_j": "Energy a request",
    "price_per_million": LABELS["price_per_million"],
}
"""What a row may hold -> what the page calls it; the order is that of the tables."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model with what it reaches and costs; `breaks` names the limits that it does not keep."""

    name: str
    readings: Mapping[str, Reading]
    breaks: tuple[str, ...] = ()
    note: str = ""

    def value(self, key: str) -> float | None:
        """Return a reading's value in base units, or None where there is none."""
        found = self.readings.get(key)
        return None if found is None else found.value


def row_of(data: Any, where: str) -> Row:
    """Return the row that a summary describes.

    Args:
        data: ``label`` or ``scale``, ``breaks``, ``note``, and readings by the names of `FIGURES`; each may be left out.
        where: Its place in the summary, for the error.
    Raises:
        InputError: A field that no row has, or a figure that is no reading.
    """
    demand(data, where, needs=(), takes=[*FIGURES, "label", "scale", "breaks", "note"])
    readings = {key: reading(data[key], f"{where}.{key}") for key in FIGURES if data.get(key) is not None}
    return Row(called(data), readings, tuple(map(str, data.get("breaks") or ())), str(data.get("note") or ""))


def called(data: Mapping[str, Any]) -> str:
    """Return what an entry is called: its scale in words, its label, or ``width 32, depth 20 (label)``."""
    scale, label = data.get("scale") or {}, str(data.get("label") or "")
    words = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in scale.items())
    return f"{words} ({label})" if words and label else words or label


def written(key: str, value: float, unit: str) -> str:
    """Print the value of a figure with its unit."""
    if key == "compute":
        return power(value)
    if key == "regret":
        return f"{100 * value:.2f} %"
    return f"{value:.4g}" if key.endswith("loss") else show(value, unit)


def lines(row: Row, *, call: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Return the figures of a row one below the other: label, value, interval, provenance, and how it was read or why not."""
    return [line(key, found, (call or {}).get(key) or FIGURES.get(key) or key) for key, found in row.readings.items()]


def line(key: str, found: Reading, label: str) -> dict[str, str]:
    """Return one figure in words."""
    return {
        "label": label,
        "value": written(key, found.value, found.unit) if found.value is not None else "",
        "interval": interval(key, found),
        "provenance": found.provenance,
        "note": how(key, found),
    }


def interval(key: str, found: Reading) -> str:
    """Print the interval of a reading, or "" where it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"{written(key, found.low, found.unit)} to {written(key, found.high, found.unit)}"


@dataclass(frozen=True)
class Table:
    """Rows side by side, each column in one unit; `reasons` are what the numbers beside the missing figures refer to."""

    axes: Sequence[Axis]
    rows: Sequence[Mapping[str, Any]]
    reasons: Sequence[str] = field(default_factory=tuple)


def table(rows: Sequence[Row], *, call: Mapping[str, str] | None = None, without: Collection[str] = ()) -> Table:
    """Return rows as a table with a column for each figure that any of them was meant to have."""
    keys = [key for key in FIGURES if key not in without and any(key in row.readings for row in rows)]
    axes = [_axis(key, [row.readings[key] for row in rows if key in row.readings], call or {}) for key in keys]
    reasons = list(dict.fromkeys(r.note for row in rows for key in keys if (r := row.readings.get(key)) and r.value is None))
    return Table(
        axes,
        [
            {
                "name": row.name,
                "cells": [_cell(axis, row.readings.get(axis.key), reasons) for axis in axes],
                "breaks": row.breaks,
                "note": row.note,
            }
            for row in rows
        ],
        reasons,
    )


def _axis(key: str, readings: Iterable[Reading], call: Mapping[str, str]) -> Axis:
    """The column of a figure, in the unit in which its middle value reads best."""
    readings = list(readings)
    values = sorted(r.value for r in readings if r.value is not None)
    label, base = call.get(key) or FIGURES[key], readings[0].unit
    if key == "regret":
        return Axis(key, key, label, "%", 0.01, False)
    if key == "compute" or not values:
        return Axis(key, key, label, "", 1.0, False)
    return in_unit(key, word=key, label=label, base=base, value=values[len(values) // 2])


def _cell(axis: Axis, found: Reading | None, reasons: Sequence[str]) -> dict[str, Any]:
    """One figure of a table: an unknown one says so and points at its reason."""
    if found is None:
        return {"text": "", "value": None, "spread": "", "why": 0}
    if found.value is None:
        return {"text": "unavailable", "value": None, "spread": "", "why": reasons.index(found.note) + 1}
    text = power(found.value) if axis.key == "compute" else axis.figure(found.value)
    known = found.low is not None and found.high is not None
    return {
        "text": f"≈ {text}" if found.provenance == "estimated" else text,
        "value": found.value,
        "spread": f"{axis.figure(found.low)} to {axis.figure(found.high)}" if known else "",
        "why": 0,
    }
