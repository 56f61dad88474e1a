"""The charts of a scale page: loss against size, one curve for each compute; loss against compute; the search's progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from equipoise.pages.axes import power
from equipoise.pages.chart import TONES, Chart, Point, Ruler, Series, Zone, ruler
from equipoise.pages.rows import FIGURES, written
from equipoise.pages.scale_summary import Curve, Figures, ScaleSummary, Trained
from equipoise.units import show

SAME = 1.6
"""Runs whose compute is within this factor of a curve's are drawn in its color."""

WIDE = 4.0
"""Losses that span more than this factor are drawn on a logarithmic ruler."""


def size_chart(found: ScaleSummary) -> Chart | None:
    """Return loss against size, one curve per compute with its band, or None where there is nothing to draw."""
    key = found.size
    curves = [c for c in found.curves if c.points]
    tones = [round(i * (TONES - 1) / max(1, len(curves) - 1)) for i in range(len(curves))]
    series = [_curve(c, tone) for c, tone in zip(curves, tones, strict=True)]
    series += [s for c, tone in zip(curves, tones, strict=True) for s in _optimum(c, tone)]
    series += _runs(found.runs, key, lambda run: _tone(run, curves, tones))
    series += _recommended(found, key)
    if not any(s.points for s in series):
        return None
    x, y = _rulers(series, FIGURES[key], lambda v: show(v, "1"))
    zones = []
    if found.answer.range:
        zones.append(Zone("recommended range", "range", *found.answer.range))
    zones += _beyond(found.runs, key, x.high)
    return Chart("size", _says_size(found, curves), x, y, series, zones)


def compute_chart(found: ScaleSummary) -> Chart | None:
    """Return loss against training compute: the predicted frontier, the runs, and where it is extrapolated."""
    line = [Point(*_four(p, "compute")) for p in found.frontier]
    series = [Series("least loss, predicted", "line", line, key="least loss that a compute buys, predicted")] if line else []
    series += _runs(found.runs, "compute", lambda run: TONES - 2)
    series += _recommended(found, "compute")
    if not any(s.points for s in series):
        return None
    x, y = _rulers(series, "Training FLOPs", power)
    says = "Loss against training compute."
    if line:
        first, last = line[0], line[-1]
        says += f" Predicted: {first.y:.4g} at {power(first.x)} FLOPs, {last.y:.4g} at {power(last.x)}."
    return Chart("compute", says, x, y, series, _beyond(found.runs, "compute", x.high))


def progress_charts(found: ScaleSummary) -> list[Chart]:
    """Return the best loss and the hypervolume against the search's rounds, each where it was recorded."""
    charts = []
    for key, label in (("loss", "Best loss"), ("hypervolume", "Hypervolume")):
        seen = [(p["round"], p.get(key), _effort(p)) for p in found.progress]
        points = [Point(at, value, note=effort) for at, value, effort in seen if at is not None and value is not None]
        if len(points) > 1:
            x = ruler("Round", [p.x for p in points], write=lambda v: f"{v:g}")
            y = ruler(label, [p.y for p in points], write=lambda v: f"{v:.4g}")
            says = f"{label} against rounds: {points[0].y:.4g} at first, {points[-1].y:.4g} in the end."
            charts.append(Chart(f"progress-{key}", says, x, y, [Series(label, "line", points)]))
    return charts


def _effort(entry: Figures) -> str:
    words = [f"{entry[key]:g} {key}" for key in ("proposed", "trained") if entry.get(key) is not None]
    seconds = entry.get("seconds")
    return ", ".join([*words, *([show(seconds, "s")] if seconds is not None else [])])


def _four(point: Figures, x: str) -> tuple[float, float, float | None, float | None]:
    """x, loss and the ends of its interval; the caller has left out points without the first two."""
    return point[x] or 0.0, point["loss"] or 0.0, point["low"], point["high"]


def _curve(curve: Curve, tone: int) -> Series:
    said = curve.label or f"{power(curve.compute)} FLOPs"
    return Series(f"{said}, predicted", "line", [Point(*_four(p, "sizes")) for p in curve.points], tone, key=said, end=said)


def _optimum(curve: Curve, tone: int) -> Iterator[Series]:
    """The size of least loss at a compute, placed on its curve."""
    if curve.best is None or not curve.best["size"]:
        return
    at = curve.best["size"]
    near = min(curve.points, key=lambda p: abs(math.log((p["sizes"] or at) / at)))
    point = Point(at, near["loss"] or 0.0, left=curve.best["low"], right=curve.best["high"])
    yield Series(f"best size for {power(curve.compute)} FLOPs", "best", [point], tone, key="best size, with its interval")


def _runs(runs: Sequence[Trained], key: str, tone: Callable[[Trained], int | str]) -> list[Series]:
    """The runs as marks; a run without a loss is told of in the tables only."""
    out = []
    for run in runs:
        loss, at = run.row.readings["loss"], run.row.value(key)
        if loss.value is None or at is None:
            continue
        told = "" if key == "compute" else f"{power(run.row.value('compute') or 0.0)} FLOPs"
        point = Point(at, loss.value, loss.low, loss.high, note=", ".join(filter(None, [told, run.row.note])))
        name = f"run {run.row.name}".strip()
        if run.fitted:
            out.append(Series(name, "run", [point], tone(run), key="run, measured"))
        else:
            out.append(Series(name, "held", [point], tone(run), key="run that the law was not fitted to"))
    return out


def _tone(run: Trained, curves: Sequence[Curve], tones: Sequence[int]) -> int | str:
    """The color of the curve whose compute is the run's, or none."""
    compute = run.row.value("compute") or 0.0
    off = [abs(math.log(compute / c.compute)) for c in curves]
    best = min(range(len(off)), key=off.__getitem__, default=None)
    return "soft" if best is None or off[best] > math.log(SAME) else tones[best]


def _recommended(found: ScaleSummary, key: str) -> list[Series]:
    row = found.answer.recommended
    loss, at = (row.readings.get("loss"), row.value(key)) if row else (None, None)
    if row is None or loss is None or loss.value is None or at is None:
        return []
    point = Point(at, loss.value, loss.low, loss.high)
    return [Series(f"recommended: {row.name or written(key, at, '1')}", "pick", [point], "pick", key="recommended")]


def _rulers(series: Sequence[Series], label: str, write: Callable[[float], str]) -> tuple[Ruler, Ruler]:
    """Both rulers of a loss chart: bands and intervals may be cut off, points never are."""
    points = [p for s in series for p in s.points]
    losses = [p.y for p in points]
    log = min(losses) > 0 and max(losses) > WIDE * min(losses)
    reach = [v for p in points for v in (p.low, p.high) if v is not None]
    across = ruler(label, [p.x for p in points], write=write, log=True)
    return across, ruler("Loss", losses, write=lambda v: f"{v:.4g}", log=log, reach=reach)


def _beyond(runs: Iterable[Trained], key: str, end: float) -> list[Zone]:
    """What lies past the largest run that the law was fitted to."""
    fitted = [v for run in runs if run.fitted and run.row.readings["loss"].known and (v := run.row.value(key)) is not None]
    largest = max(fitted, default=end)
    return [Zone("beyond the largest run: extrapolated", "beyond", largest)] if largest < end else []


def _says_size(found: ScaleSummary, curves: Sequence[Curve]) -> str:
    unit = "parameters" if found.size == "params" else "forward FLOPs a sample"
    best = [(power(c.compute), show(c.best["size"] or 0.0, "1")) for c in curves if c.best]
    told = [f"with {compute} training FLOPs the best size is {size} {unit}" for compute, size in best]
    head = f"Loss against size: {len(curves)} predicted curves and {len(found.runs)} runs"
    return f"{head}; {'; '.join(told)}." if told else f"{head}."
