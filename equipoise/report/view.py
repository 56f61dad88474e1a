"""From a study's summary to what the page shows: strings for the template, plain numbers for the script.

Each axis keeps one unit through the whole page, the one in which the untouched model reads best, so that columns compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.budget import AXES, Budget, parse_budget
from equipoise.errors import must_be
from equipoise.records import SCHEMA, Evaluation, Reading, evaluation_from, unavailable
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

EXACT = ("size_bytes", "params", "macs")
"""Axes that are counted: one reading of them has no spread to know."""

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


def unbroken(sentence: str) -> str:
    """Keep each figure on the line of its word."""
    return sentence.replace("× ", "×\u00a0").replace(" ± ", "\u00a0±\u00a0").replace("drop ", "drop\u00a0")


def page_data(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's variables: everything that is read without the script."""
    evaluations = evaluations_of(study)
    header = study["header"]
    axes = axes_of(study, evaluations)
    baseline, pick = (_find(evaluations, study.get(role)) for role in ("baseline", "pick"))
    budget = parse_budget(header.get("budget") or None)
    return {
        "header": {key: str(header.get(key) or "") for key in ("workload", "target", "started")},
        "sentence": unbroken(study.get("sentence") or "No pick yet: the study holds no usable evaluation."),
        "pick_rule": study.get("pick_rule") or "",
        "notes": list(study.get("notes") or ()),
        "comparison": comparison(axes, baseline, pick),
        "bounds": bounds(budget, pick),
        "choices": [a for a in axes if a.key not in ("drop", "quality")],
        "limits": [a for a in axes if a.key in ("latency_s", "size_bytes", "drop")],
        "layers": layer_rows(study.get("layers") or (), axes),
        "layer_totals": layer_totals(study.get("layers") or ()),
        "saved_unit": next((a.unit for a in axes if a.key == "latency_s"), "s"),
        "axes": axes,
        "rows": evaluation_rows(study, evaluations, axes),
        "failed": sum(not e.ok for e in evaluations),
        "facts": facts(header, evaluations),
        "provenance": provenance(evaluations, pick or baseline),
        "progress": bool(study.get("progress")),
    }


def client_data(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script draws from: axes, knobs, points, roles, bounds and progress, in base units."""
    evaluations = evaluations_of(study)
    axes = axes_of(study, evaluations)
    knobs = sorted({knob for e in evaluations for knob in e.plan.choices})
    budget = parse_budget(study["header"].get("budget") or None)
    return {
        "axes": [
            {"key": a.key, "word": a.word, "label": a.label, "unit": a.unit, "factor": a.factor, "up": a.larger_is_better}
            for a in axes
        ],
        "knobs": knobs,
        "points": [_point(e, axes, knobs) for e in evaluations],
        **{role: study.get(role) for role in ("baseline", "knee", "pick")},
        "pick_rule": study.get("pick_rule") or "",
        "bounds": {c.axis: c.bound for c in budget.constraints},
        "progress": [{k: _finite(v) for k, v in step.items()} for step in study.get("progress") or ()],
    }


def evaluations_of(study: Mapping[str, Any]) -> list[Evaluation]:
    """Rebuild the evaluations of a summary, in order."""
    if study.get("schema") != SCHEMA:
        raise must_be("study schema", str(SCHEMA), study.get("schema"), "Read it with the version that wrote it.")
    return [evaluation_from(data) for data in study.get("evaluations") or ()]


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


def comparison(axes: Iterable[Axis], baseline: Evaluation | None, pick: Evaluation | None) -> list[dict[str, Any]]:
    """Return one row per axis: before, after, the interval after, and the change in words."""
    if baseline is None or pick is None:
        return []
    rows = []
    for axis in axes:
        before, after = baseline.axis(axis.key), pick.axis(axis.key)
        if axis.key == "drop" or before.value is None or after.value is None:
            continue
        quality = axis.key == "quality"
        widest = max(before.value, after.value) or 1.0
        rows.append(
            {
                "label": axis.label,
                "before": axis.text(before.value),
                "after": axis.text(after.value),
                "interval": _interval(axis, after),
                "estimated": after.provenance == "estimated",
                "change": _drop_words(pick.drop) if quality else _ratio_words(axis, before.value, after.value),
                "before_share": f"{100 * before.value / widest:.1f}%",
                "after_share": f"{100 * max(0.0, after.value) / widest:.1f}%",
            }
        )
    return rows


def _ratio_words(axis: Axis, before: float, after: float) -> str:
    """Say how many times better `after` is."""
    words = {"latency_s": ("faster", "slower"), "throughput_per_s": ("more", "less")}.get(axis.key, ("smaller", "larger"))
    ratio = (after / before if axis.larger_is_better else before / after) if before > 0 and after > 0 else 1.0
    if f"{ratio:.2f}" == "1.00":
        return "unchanged"
    return f"{ratio:.2f}× {words[0]}" if ratio > 1 else f"{1 / ratio:.2f}× {words[1]}"


def _drop_words(drop: Reading) -> str:
    if drop.value is None:
        return "drop unavailable"
    spread = f" ± {(drop.high - drop.low) / 2:.2f}" if drop.low is not None and drop.high is not None else ""
    return f"drop {drop.value:.2f}{spread}"


def _interval(axis: Axis, reading: Reading) -> str:
    if reading.low is None or reading.high is None:
        return ""
    return f"[{axis.figure(reading.low)}, {axis.figure(reading.high)}]"


def bounds(budget: Budget, pick: Evaluation | None) -> list[dict[str, Any]]:
    """Return the budget's bounds, each with what the pick reads and whether it holds."""
    broken = budget.excesses(pick) if pick is not None else {}
    return [
        {
            "text": f"{c.word} {'≤' if c.upper else '≥'} {show(c.bound, c.unit)}",
            "holds": pick is not None and c.word not in broken,
            "reads": str(pick.axis(c.axis)) if pick is not None else "nothing measured",
        }
        for c in budget.constraints
    ]


def layer_rows(layers: Iterable[Mapping[str, Any]], axes: Iterable[Axis]) -> list[dict[str, Any]]:
    """Return the before/after table of the pick, one row per layer."""
    latency = next((a for a in axes if a.key == "latency_s"), None)
    layers = list(layers)
    widest = max((_number(layer["before"], "out") or 0.0 for layer in layers), default=0.0) or 1.0
    rows = []
    for layer in layers:
        before, after = layer["before"], layer.get("after")
        saved = _finite(layer.get("saved_s"))
        out = _number(before, "out") or 0.0
        left = _number(after, "out") or 0.0 if after is not None else 0.0
        rows.append(
            {
                "name": str(layer["name"]),
                "kind": str(layer.get("kind", "")),
                "removed": after is None,
                "changed": after is None or any(before.get(k) != after.get(k) for k in ("out", "params", "macs", "bits")),
                **{k: _change(before, after, k) for k in ("out", "params", "macs", "bits")},
                "before_share": f"{100 * out / widest:.1f}%",
                "after_share": f"{100 * left / widest:.1f}%",
                "loss": _small(layer.get("loss")),
                "saved": MISSING if saved is None or latency is None else figure(saved / latency.factor),
                "why": str(layer.get("why", "")),
            }
        )
    return rows


def layer_totals(layers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the sums over the layers, before and after."""
    layers = list(layers)
    sums: dict[str, str] = {}
    for key in ("params", "macs"):
        before = sum(_number(layer["before"], key) or 0.0 for layer in layers)
        after = sum(_number(layer.get("after") or {}, key) or 0.0 for layer in layers)
        sums[key] = f"{show(before, '1')} → {show(after, '1')}"
    return sums


def _change(before: Mapping[str, Any], after: Mapping[str, Any] | None, key: str) -> str:
    old, new = _number(before, key), _number(after or {}, key)
    if old is None:
        return MISSING
    if after is None or new is None or new == old:
        return show(old, "1")
    return f"{show(old, '1')} → {show(new, '1')}"


def evaluation_rows(study: Mapping[str, Any], evaluations: Sequence[Evaluation], axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return the table of all evaluations, as text; the script sorts by the numbers it holds."""
    roles = {role: study.get(role) for role in ("baseline", "knee", "pick")}
    rows = []
    for number, e in enumerate(evaluations, 1):
        rows.append(
            {
                "number": number,
                "key": e.key,
                "roles": [role for role, key in roles.items() if key == e.key],
                "fidelity": e.fidelity,
                "cells": [_cell(axis, e.axis(axis.key)) for axis in axes],
                "seconds": figure(round(e.seconds, 1)),
                "error": e.error,
            }
        )
    return rows


def _cell(axis: Axis, reading: Reading) -> str:
    text = axis.figure(reading.value)
    return f"≈ {text}" if reading.provenance == "estimated" else text


def facts(header: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the titled lists that say where and how the figures were taken."""
    metric = header.get("metric") or {}
    known = {"workload", "target", "budget", "seed", "machine", "metric", "started", "protocol", "versions"}
    study = {
        "workload": header.get("workload"),
        "target": header.get("target"),
        "budget": header.get("budget") or "none: the knee is picked",
        "metric": f"{metric.get('name', MISSING)}, {'larger' if metric.get('maximize', True) else 'smaller'} is better",
        "seed": header.get("seed"),
        "started": header.get("started"),
        "evaluations": len(evaluations),
        "time in evaluations": show(sum(e.seconds for e in evaluations), "s"),
        **{k: v for k, v in header.items() if k not in known},
    }
    machine = dict(header.get("machine") or {})
    versions = {**(machine.pop("versions", None) or {}), **(header.get("versions") or {})}
    groups = [("Study", study), ("Machine", machine), ("Versions", versions), ("Protocol", header.get("protocol") or {})]
    return [{"title": title, "items": list(_flat(group))} for title, group in groups if group]


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in data.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key} ")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(str(v) for v in value) or MISSING
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, MISSING if value is None or value == "" else str(value)


def provenance(evaluations: Sequence[Evaluation], shown: Evaluation | None) -> list[dict[str, str]]:
    """Return for each axis whether it is measured, estimated or unavailable, with the note of the reading shown."""
    if shown is None:
        return []
    rows = []
    for key, label in LABELS.items():
        if key not in ("drop", "quality") and not any(key in e.cost for e in evaluations):
            continue
        reading = (
            shown.axis(key) if key in shown.cost or key in ("drop", "quality") else unavailable("1", "not read for this plan")
        )
        note = reading.note or ("" if reading.n > 1 else "counted" if key in EXACT else "read once, so its spread is not known")
        rows.append({"label": label, "provenance": reading.provenance, "reading": str(reading.n), "note": note})
    return rows


def _point(e: Evaluation, axes: Sequence[Axis], knobs: Sequence[str]) -> dict[str, Any]:
    scalars = {k: v for k, v in e.details.items() if isinstance(v, (str, int, float, bool)) and len(str(v)) <= 80}
    return {
        "key": e.key,
        "plan": [e.plan.choices.get(knob) for knob in knobs],
        "fidelity": e.fidelity,
        "values": [_packed(e.axis(axis.key)) for axis in axes],
        "predicted": {k: _round(_finite(v)) for k, v in e.predicted.items()},
        "details": {k: _finite(v) if isinstance(v, float) else v for k, v in list(scalars.items())[:8]},
        "seconds": _round(e.seconds),
        "error": e.error,
    }


def _packed(reading: Reading) -> list[Any] | None:
    """Return [value, low, high, n, provenance], without the tail that says nothing; the script fills it in again."""
    if reading.value is None:
        return None
    packed = [_round(reading.value), _round(reading.low), _round(reading.high), reading.n, reading.provenance[0]]
    return packed[:1] if packed[1:] == [None, None, 1, "m"] else packed


def _find(evaluations: Iterable[Evaluation], key: str | None) -> Evaluation | None:
    return next((e for e in evaluations if e.key == key), None)


def _number(data: Mapping[str, Any] | None, key: str) -> float | None:
    return _finite((data or {}).get(key))


def _finite(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _round(value: float | None) -> float | None:
    """Keep seven figures: beyond any measurement, and half the bytes."""
    return None if value is None else float(f"{value:.7g}")


def _small(value: Any) -> str:
    number = _finite(value)
    return MISSING if number is None else figure(number)
