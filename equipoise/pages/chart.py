"""Charts that need no script: rulers, series and zones become percentages, and one template draws them.

Each chart comes with its figures as a table. The script only reads that table back beside the point under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Look = Literal["line", "dashed", "run", "held", "best", "pick", "spot"]

GLYPHS = {
    "line": "M-8 0H8",
    "dashed": "M-8 0H8",
    "run": "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",
    "held": "M-4-4h8v8h-8z",
    "best": "M0-6 6 0 0 6-6 0z",
    "pick": "M0-9 2.4-2.9 8.6-2.8 3.7 1.2 5.4 7.5 0 3.9-5.4 7.5-3.7 1.2-8.6-2.8-2.4-2.9z",
    "spot": "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
}
"""Look of a series -> the shape of its marks around their place, in pixels; a line's marks are spots."""

TONES = 5
"""Steps of the ramp from faint to strong that ordered series share."""

GRID = 1000
"""Units to a side of the square that the paths are drawn in, before the page stretches it."""

SPREAD = 0.35
"""Share of the span of what a chart is about, beyond which its bands are cut off."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """One axis: its name, its ends, and how a value on it is written."""

    label: str
    low: float
    high: float
    write: Callable[[float], str]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high end, beyond them outside."""
        if self.log and value <= 0:
            return -math.inf
        at, low, high = (math.log(v) if self.log else v for v in (value, self.low, self.high))
        return (at - low) / (high - low)

    def inside(self, value: float) -> bool:
        """Whether a value lies on the ruler."""
        return -1e-9 <= self.place(value) <= 1 + 1e-9

    def nearest(self, value: float) -> float:
        """Return the place on the ruler that is nearest to a value's."""
        return min(1.0, max(0.0, self.place(value)))

    def ticks(self) -> list[float]:
        """Return the round values to mark, four to ten or so."""
        if self.log:
            first, last = (math.floor(math.log10(v)) for v in (self.low, self.high))
            for within in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
                found = [m * 10.0**k for k in range(first, last + 1) for m in within if self.low <= m * 10.0**k <= self.high]
                if len(found) >= 4:
                    return found[:: 1 + len(found) // 10]
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def ruler(
    label: str, values: Iterable[float], *, write: Callable[[float], str], log: bool = False, reach: Iterable[float] = ()
) -> Ruler:
    """Return a ruler that holds all `values`, with a margin.

    Args:
        label: What is measured, with its unit where `write` leaves it out.
        values: Finite; on a logarithmic ruler those not above 0 are left out.
        write: A value as text.
        log: Equal ratios instead of equal differences.
        reach: Further values (the ends of bands), held as far as `SPREAD` of the span beyond `values`.
    """

    def along(some: Iterable[float]) -> list[float]:
        return [math.log(v) if log else v for v in some if v > 0 or not log]

    held = along(values) or [0.0, 1.0]
    low, high = min(held), max(held)
    span = high - low or (0.7 if log else abs(high) / 5 or 1.0)
    further = [min(high + SPREAD * span, max(low - SPREAD * span, v)) for v in along(reach)]
    low, high = min([low, *further]), max([high, *further])
    pad = 0.05 * span if high > low else 0.5 * span
    ends = [math.exp(v) if log else v for v in (low - pad, high + pad)]
    return Ruler(label, ends[0], ends[1], write, log)


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of a chart, with its interval up (`low`, `high`) or across (`left`, `right`) where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together. On a line their intervals are a band; else each is a bar through its mark.

    Attributes:
        name: What it is, in the table and beside its points.
        tone: Step of the ramp, 0 to ``TONES - 1``, or a named color: ``ink``, ``soft``, ``pick``.
        key: What the legend says, or "" to leave it out; series that say the same share one entry.
        end: What stands at the right end of a line, or "".
    """

    name: str
    look: Look
    points: Sequence[Point]
    tone: int | str = TONES - 2
    key: str = ""
    end: str = ""


@dataclass(frozen=True, slots=True)
class Zone:
    """A stretch of the x axis that is tinted (``range``) or hatched (``beyond``); None: to the chart's edge."""

    name: str
    look: Literal["range", "beyond"]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of y against x.

    Attributes:
        name: Its id on the page.
        says: What it shows, in a sentence, for whoever does not see it.
    """

    name: str
    says: str
    x: Ruler
    y: Ruler
    series: Sequence[Series]
    zones: Sequence[Zone] = ()


def drawing(chart: Chart) -> dict[str, Any]:
    """Return what the template draws: places in percent, paths in `GRID` units, and the table of all figures."""
    rows = [(series, point) for series in chart.series for point in series.points]
    columns, cells = _figures(chart, rows)
    return {
        "name": chart.name,
        "says": chart.says,
        "x": chart.x.label,
        "y": chart.y.label,
        "x_ticks": _ticks(chart.x),
        "y_ticks": [{**t, "at": _percent(1 - t["place"])} for t in _ticks(chart.y)],
        "zones": [_zone(chart.x, zone) for zone in chart.zones],
        "paths": [path for series in chart.series if _joined(series) for path in _paths(chart, series)],
        "ends": _ends(chart),
        "bars": [bar for series, point in rows for bar in _bars(chart, series, point)],
        "marks": [m for number, (series, point) in enumerate(rows) for m in _marks(chart, series, point, number)],
        "legend": _legend(chart),
        "columns": columns,
        "rows": cells,
    }


def _joined(series: Series) -> bool:
    return series.look in ("line", "dashed")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _ticks(along: Ruler) -> list[dict[str, Any]]:
    """Every second tick of a crowded ruler is minor: it gives way where the page is narrow."""
    values = along.ticks()
    crowded = len(values) > 5
    return [
        {"place": along.place(v), "at": _percent(along.place(v)), "text": along.write(v), "minor": crowded and i % 2 == 1}
        for i, v in enumerate(values)
        if along.inside(v)
    ]


def _zone(x: Ruler, zone: Zone) -> dict[str, Any]:
    ends = ((zone.low, 0.0), (zone.high, 1.0))
    low, high = (edge if value is None else x.nearest(value) for value, edge in ends)
    return {"at": _percent(low), "width": _percent(max(0.0, high - low)), "look": zone.look, "name": zone.name}


def _paths(chart: Chart, series: Series) -> Iterator[dict[str, Any]]:
    """The band of a line, where every point has an interval, and the line."""

    def at(x: float, y: float) -> str:
        up = max(-9.0, min(10.0, chart.y.place(y)))  # what lies far outside is cut off by the frame
        return f"{GRID * chart.x.place(x):.1f} {GRID * (1 - up):.1f}"

    points = [p for p in series.points if math.isfinite(chart.x.place(p.x))]
    if len(points) < 2:
        return
    upper = [at(p.x, p.high) for p in points if p.high is not None]
    lower = [at(p.x, p.low) for p in points if p.low is not None]
    if len(upper) == len(lower) == len(points):
        yield {"d": "M" + "L".join([*upper, *reversed(lower)]) + "Z", "look": "band", "tone": series.tone}
    yield {"d": "M" + "L".join(at(p.x, p.y) for p in points), "look": series.look, "tone": series.tone}


def _bars(chart: Chart, series: Series, point: Point) -> Iterator[dict[str, Any]]:
    """The intervals of a mark that is no part of a line, kept inside the frame."""
    if _joined(series) or not _inside(chart, point):
        return
    x, y = _percent(chart.x.place(point.x)), _percent(1 - chart.y.place(point.y))
    if point.low is not None and point.high is not None:
        ends = [_percent(1 - chart.y.nearest(end)) for end in (point.low, point.high)]
        yield {"x1": x, "x2": x, "y1": ends[0], "y2": ends[1], "tone": series.tone}
    if point.left is not None and point.right is not None:
        ends = [_percent(chart.x.nearest(end)) for end in (point.left, point.right)]
        yield {"x1": ends[0], "x2": ends[1], "y1": y, "y2": y, "tone": series.tone}


def _marks(chart: Chart, series: Series, point: Point, row: int) -> Iterator[dict[str, Any]]:
    if _inside(chart, point):
        look = "spot" if _joined(series) else series.look
        place = {"x": _percent(chart.x.place(point.x)), "y": _percent(1 - chart.y.place(point.y))}
        yield {**place, "look": look, "d": GLYPHS[look], "tone": series.tone, "row": row}


def _inside(chart: Chart, point: Point) -> bool:
    return chart.x.inside(point.x) and chart.y.inside(point.y)


def _ends(chart: Chart) -> list[dict[str, Any]]:
    """The words at the right ends of the lines, moved apart so that each can be read."""
    apart = 0.055
    named = [(s, s.points[-1]) for s in chart.series if s.end and s.points and _inside(chart, s.points[-1])]
    out: list[dict[str, Any]] = []
    last = -1.0
    for series, point in sorted(named, key=lambda pair: -pair[1].y):
        last = max(1 - chart.y.place(point.y), last + apart)
        out.append({"x": _percent(chart.x.place(point.x)), "y": _percent(last), "text": series.end, "tone": series.tone})
    return out


def _legend(chart: Chart) -> list[dict[str, Any]]:
    first = {s.key: s for s in reversed(chart.series) if s.key}
    entries = [{"name": key, "look": s.look, "d": GLYPHS[s.look], "tone": s.tone} for key, s in reversed(first.items())]
    return [*entries, *({"name": z.name, "look": z.look, "d": "M-8-6h16v12h-16z", "tone": ""} for z in chart.zones)]


def _figures(chart: Chart, rows: Sequence[tuple[Series, Point]]) -> tuple[list[str], list[list[str]]]:
    """Every figure of the chart as a table; what no point has is no column."""

    def spread(point: Point) -> str:
        ends = [(chart.y, point.low, point.high), (chart.x, point.left, point.right)]
        return ", ".join(f"{a.write(low)} to {a.write(high)}" for a, low, high in ends if low is not None and high is not None)

    cells = [[s.name, chart.x.write(p.x), chart.y.write(p.y), spread(p), p.note] for s, p in rows]
    heads = ["What", chart.x.label, chart.y.label, "Interval", "Note"]
    filled = [i for i in range(len(heads)) if i < 3 or any(row[i] for row in cells)]
    return [heads[i] for i in filled], [[row[i] for i in filled] for row in cells]
