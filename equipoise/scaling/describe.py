"""A fit as plain data for reports and `--json`: constants, runs, curves, cross-check, published laws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from equipoise.errors import InputError
from equipoise.records import as_data
from equipoise.scaling.decide import REACH
from equipoise.scaling.fit import Fit, spread
from equipoise.scaling.holdout import hold_out
from equipoise.scaling.isoflop import IsoFlop, isoflop, overlap
from equipoise.scaling.laws import PUBLISHED
from equipoise.scaling.runs import columns

POINTS = 41
"""Points of each drawn curve."""


def describe(fitted: Fit, *, seed: int = 0, level: float = 0.9) -> dict[str, Any]:
    """Return what a report needs of a fit, as JSON data.

    Returns:
        ``law`` (constants with intervals, and as text), ``runs`` (each with what the law says of it), ``isoflop`` (per compute
        level: a curve of loss over size with its interval, and the parabola's minimum), ``frontier`` (best size and loss over
        compute, to `REACH` × in size), ``cross_check`` (the exponent of the best size by both ways), ``size`` (what N counts
        and how each kind did on the held-out largest size), ``hold_out`` (the largest size foretold from the others, beside
        simpler rules), ``published`` (laws of the literature), ``notes``.
    """
    parabolas = isoflop(fitted.runs, size=fitted.law.size, seed=seed, level=level)
    return {
        "law": _law(fitted, level),
        "size": {"kind": fitted.law.size, "hold_out": dict(fitted.hold_out), "work": list(fitted.work)},
        "runs": _runs(fitted),
        "hold_out": _hold_out(fitted, seed, level),
        "isoflop": _levels(fitted, parabolas, level),
        "frontier": _frontier(fitted, level),
        "cross_check": _cross_check(fitted, parabolas, level),
        "published": {name: {"constants": _constants(entry.law), "source": entry.source} for name, entry in PUBLISHED.items()},
        "notes": _notes(fitted, parabolas, level),
    }


def _constants(law: Any) -> dict[str, float]:
    return {name: float(getattr(law, name)) for name in ("E", "A", "B", "a", "b", "repetition")}


def _law(fitted: Fit, level: float) -> dict[str, Any]:
    law, name = fitted.law, "N" if fitted.law.size == "params" else "F"
    constants = {c: as_data(fitted.constant(c, level=level)) for c in ("E", "A", "B", "a", "b", "repetition", "exponent")}
    text = f"loss = {law.E:.4g} + {law.A:.4g} / {name}^{law.a:.4g} + {law.B:.4g} / D^{law.b:.4g}"
    return {"constants": constants, "text": text, "noise": fitted.noise, "dof": fitted.dof, "n": len(fitted.runs)}


def _runs(fitted: Fit) -> list[dict[str, Any]]:
    at = columns(fitted.runs)
    said = np.asarray(fitted.law.loss(at.size(fitted.law.size), at.samples, at.unique), dtype=float)
    return [
        {**as_data(run), "flops": run.flops, "size": run.size(fitted.law.size), "predicted": float(loss)}
        for run, loss in zip(fitted.runs, said, strict=True)
    ]


def _hold_out(fitted: Fit, seed: int, level: float) -> list[dict[str, Any]]:
    """The largest size foretold from the others; empty where they are too few."""
    try:
        found = hold_out(fitted.runs, seed=seed, size=fitted.law.size, level=level)
    except InputError:
        return []
    return [{**as_data(each), "covered": each.covered} for each in found]


def _levels(fitted: Fit, parabolas: IsoFlop, level: float) -> list[dict[str, Any]]:
    """Loss over size at each compute level, from a quarter of the smallest run's size to four times the largest's."""
    sizes = columns(fitted.runs).size(fitted.law.size)
    grid = np.geomspace(sizes.min() / REACH, sizes.max() * REACH, POINTS)
    k, g = fitted.work
    out = []
    for entry in parabolas.levels:
        samples = entry.flops / (k * grid**g)
        out.append({**as_data(entry), "curve": _band(fitted, grid, samples, level)})
    return out


def _frontier(fitted: Fit, level: float) -> list[dict[str, float]]:
    at = columns(fitted.runs)
    out = []
    for flops in np.geomspace(at.flops.min(), at.flops.max() * REACH**2, POINTS):
        best = fitted.optimum(float(flops), level=level)
        out.append(
            {"flops": float(flops)}
            | {f"{name}_{end}": float(getattr(best[name], end)) for name in best for end in ("value", "low", "high")}
        )
    return out


def _band(fitted: Fit, sizes: Any, samples: Any, level: float) -> list[dict[str, float]]:
    value = np.asarray(fitted.law.loss(sizes, samples), dtype=float)
    draws = spread(fitted, np.asarray(fitted.draws.loss(sizes, samples), dtype=float), sizes, samples).reshape(-1, len(value))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        {"size": float(s), "loss": float(v), "low": float(min(lo, v)), "high": float(max(hi, v))}
        for s, v, lo, hi in zip(sizes, value, low, high, strict=True)
    ]


def _cross_check(fitted: Fit, parabolas: IsoFlop, level: float) -> Mapping[str, Any]:
    law = fitted.constant("exponent", level=level)
    other = parabolas.exponent
    if other is None:
        return {"law": as_data(law), "parabolas": None, "agree": None}
    return {"law": as_data(law), "parabolas": as_data(other), "agree": overlap(law, other)}


def _notes(fitted: Fit, parabolas: IsoFlop, level: float) -> list[str]:
    """What a reader must know before using the numbers."""
    notes = []
    if fitted.left_out:
        notes.append(f"{fitted.left_out} runs were left out because their learning rate had not come down at the end.")
    if fitted.diagnostics.get("agreed", 1.0) < 0.1:
        notes.append("Few starts of the fit ended in the same minimum: the law is weakly determined.")
    if parabolas.exponent is not None and not overlap(parabolas.exponent, fitted.constant("exponent", level=level)):
        notes.append("The law and the parabolas disagree on how the best size grows: add runs at the level where they differ.")
    if parabolas.skipped:
        shown = ", ".join(f"{c:.2g}" for c in parabolas.skipped)
        notes.append(f"No minimum lies near the sizes run at {shown} FLOPs: add smaller or larger sizes there.")
    at = columns(fitted.runs)
    if math.log(at.size(fitted.law.size).max() / at.size(fitted.law.size).min()) < math.log(4.0):
        notes.append("The sizes run span less than 4×: the exponent of size is held by the prior as much as by the runs.")
    if not np.any(at.samples > 1.5 * at.unique):
        notes.append("No run repeats its data much, so what repetition is worth (R*) is the prior's, median 15 epochs.")
    return notes
