"""From a study's summary to what the page shows: strings for the template, plain numbers for the script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from equipoise.budget import Budget, parse_budget
from equipoise.errors import must_be
from equipoise.pages.axes import MISSING, Axis, axes_of, figure, times
from equipoise.pages.document import finite
from equipoise.pages.explained import explained, layer_times
from equipoise.pages.facts import facts, provenance
from equipoise.records import SCHEMA, Evaluation, Reading, evaluation_from
from equipoise.techniques import TECHNIQUES
from equipoise.units import show

MAX_ERROR = 1500
"""Characters kept of a failure's traceback; the end says what went wrong."""


def unbroken(sentence: str) -> str:
    """Keep each figure on the line of its word."""
    return sentence.replace("× ", "×\u00a0").replace(" ± ", "\u00a0±\u00a0").replace("drop ", "drop\u00a0")


def page_data(study: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the template's variables: everything that is read without the script; `evaluations` are `evaluations_of` it."""
    header = study["header"]
    axes = axes_of(study, evaluations)
    baseline, pick = (_find(evaluations, study.get(role)) for role in ("baseline", "pick"))
    budget = parse_budget(header.get("budget") or None)
    return {
        "header": {key: str(header.get(key) or "") for key in ("workload", "target")},
        **lead(study),
        "notes": list(study.get("notes") or ()),
        "comparison": comparison(axes, baseline, pick, speed_ups(study, evaluations).get(pick.key if pick else "")),
        "bounds": bounds(budget, pick),
        "choices": [a for a in axes if a.key not in ("drop", "quality")],
        "limits": [a for a in axes if a.key in ("latency_s", "size_bytes", "drop")],
        "layers": layer_rows(study.get("layers") or (), times=layer_times(study)),
        "timed": bool(layer_times(study)),
        "explained": explained(study),
        "told": any(_finite(layer.get("loss")) is not None for layer in study.get("layers") or ()),
        "damage_unit": header.get("damage_unit") or "nats",
        "layer_totals": layer_totals(study.get("layers") or ()),
        "axes": axes,
        "rows": evaluation_rows(study, evaluations, axes),
        "failed": sum(not e.ok for e in evaluations),
        "facts": facts(header, evaluations),
        "provenance": provenance(evaluations, pick or baseline),
        "progress": bool(study.get("progress")),
    }


def lead(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headline and what stands below it: the test figures where `verify` has read them, then those of validation."""
    sentence = unbroken(study.get("sentence") or "No pick yet: the study holds no usable evaluation.")
    found = next((row for row in reversed(study.get("verified") or ()) if row.get("key") == study.get("pick")), None)
    rule = study.get("pick_rule") or ""
    if found is None:
        return {"sentence": sentence, "pick_rule": rule, "validation": "", "tested": ""}
    kept = f"broken: {', '.join(found['broken'])}" if found["broken"] else "no promise is broken"
    open_ = f"; cannot be told: {', '.join(found['cannot_tell'])}" if found["cannot_tell"] else ""
    headline = unbroken(found["headline"])
    return {
        "sentence": headline[:1].upper() + headline[1:],
        "pick_rule": rule,
        "validation": f"On validation, which chose it: {sentence}",
        "tested": f"Checked on the exported file by equipoise verify: {kept}{open_}",
    }


def client_data(study: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return what the script draws from: axes, knobs, points, roles, bounds and progress, in base units."""
    axes = axes_of(study, evaluations)
    knobs = sorted({knob for e in evaluations for knob in e.plan.choices})
    budget = parse_budget(study["header"].get("budget") or None)
    pairs = speed_ups(study, evaluations)
    return {
        "axes": [
            {"key": a.key, "word": a.word, "label": a.label, "unit": a.unit, "factor": a.factor, "up": a.larger_is_better}
            for a in axes
        ],
        "knobs": knobs,
        "nouns": {kind: row.noun for kind, row in TECHNIQUES.items()},
        "damage_unit": study["header"].get("damage_unit") or "nats",
        "points": [_point(e, axes, knobs, pairs.get(e.key)) for e in evaluations],
        **{role: study.get(role) for role in ("baseline", "knee", "pick")},
        "pick_rule": study.get("pick_rule") or "",
        "bounds": {c.axis: c.bound for c in budget.constraints},
        "progress": finite(list(study.get("progress") or ())),
    }


def evaluations_of(study: Mapping[str, Any]) -> list[Evaluation]:
    """Rebuild the evaluations of a summary, in order."""
    if study.get("schema") != SCHEMA:
        raise must_be("study schema", str(SCHEMA), study.get("schema"), "Read it with the version that wrote it.")
    names = {f.name for f in fields(Evaluation)}
    return [evaluation_from({k: v for k, v in data.items() if k in names}) for data in study.get("evaluations") or ()]


def speed_ups(study: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, Mapping[str, Any]]:
    """Return evaluation key -> how many times faster than the original, where the two were timed side by side."""
    rows = zip(evaluations, study.get("evaluations") or (), strict=True)
    return {e.key: data["speed_up"] for e, data in rows if (data.get("speed_up") or {}).get("n")}


def comparison(
    axes: Iterable[Axis], baseline: Evaluation | None, pick: Evaluation | None, speed_up: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return one row per axis: before, after, the interval after, and the change in words.

    `speed_up` is the ratio of latencies timed side by side; it is said in place of the quotient of two separate timings.
    """
    if baseline is None or pick is None:
        return []
    rows = []
    for axis in axes:
        before, after = baseline.axis(axis.key), pick.axis(axis.key)
        if axis.key == "drop" or before.value is None or after.value is None:
            continue
        ratio = before.value / after.value if before.value > 0 and after.value > 0 else 1.0
        paired = speed_up if axis.key == "latency_s" else None
        if axis.larger_is_better:
            ratio = 1 / ratio
        change = _drop_words(pick.drop) if axis.key == "quality" else times(axis.key, paired["value"] if paired else ratio)
        widest = max(before.value, after.value) or 1.0
        rows.append(
            {
                "label": axis.label,
                "before": axis.text(before.value),
                "after": axis.text(after.value),
                "interval": _interval(axis, after),
                "estimated": after.provenance == "estimated",
                "change": change,
                "change_interval": _times_interval(paired),
                "unknown": "",
                "before_share": f"{100 * before.value / widest:.1f}%",
                "after_share": f"{100 * max(0.0, after.value) / widest:.1f}%",
            }
        )
    return rows


def _times_interval(paired: Mapping[str, Any] | None) -> str:
    """Print the interval of a paired ratio, where the samples bound it on both sides."""
    low, high = _number(paired, "low"), _number(paired, "high")
    if paired is None or not low or not high:
        return ""
    return f"[{low:.2f}, {high:.2f}]" if paired["value"] >= 1 else f"[{1 / high:.2f}, {1 / low:.2f}]"


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


def layer_rows(layers: Iterable[Mapping[str, Any]], *, times: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the before/after table of the pick, one row per layer; `times` is what `explained.layer_times` gives."""
    layers = list(layers)
    widest = max((_number(layer["before"], "out") or 0.0 for layer in layers), default=0.0) or 1.0
    rows = []
    for layer in layers:
        before, after = layer["before"], layer.get("after")
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
                "time": (times or {}).get(str(layer["name"]), MISSING),
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
                "fidelity": f"{e.fidelity} {e.leg}" if e.leg else e.fidelity,
                "cells": [_cell(axis, e.axis(axis.key)) for axis in axes],
                "seconds": figure(round(e.seconds, 1)),
                "error": e.error.strip().rpartition("\n")[2],
            }
        )
    return rows


def _cell(axis: Axis, reading: Reading) -> str:
    text = axis.figure(reading.value)
    return f"≈ {text}" if reading.provenance == "estimated" else text


def _point(e: Evaluation, axes: Sequence[Axis], knobs: Sequence[str], paired: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "key": e.key,
        "plan": [e.plan.choices.get(knob) for knob in knobs],
        "fidelity": e.fidelity,
        "values": [_packed(e.axis(axis.key)) for axis in axes],
        "predicted": {k: _round(_finite(v)) for k, v in e.predicted.items()},
        "details": _told(e),
        "seconds": _round(e.seconds),
        "speed_up": [_round(_finite(paired[end])) for end in ("value", "low", "high")] if paired else None,
        "error": e.error.strip()[-MAX_ERROR:],
    }


def _told(e: Evaluation) -> dict[str, Any]:
    """What the panel of a point says beside its figures."""
    told: dict[str, Any] = {} if e.damage is None else {"damage": _round(_finite(e.damage))}
    if e.program is not None:
        told |= {"target": e.program.target, "precision": e.program.precision}
    if e.training is not None:
        told |= {"trained_s": _round(e.training.seconds), "steps": e.training.steps, "rung": e.training.rung}
    return told


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
