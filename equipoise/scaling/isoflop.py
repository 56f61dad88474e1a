"""The cross-check: a parabola through the losses of each compute level (approach 2), and how its minimum moves.

It assumes no law between levels, so it disagrees where the law is wrong; it uses less of what the runs know, so its intervals
are wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.scaling.fit import between
from equipoise.scaling.runs import Floats, Run, Size, columns
from equipoise.stats import Interval

SAME_LEVEL = 0.25
"""Runs whose log compute lies this close belong to one level."""


@dataclass(frozen=True, slots=True)
class Level:
    """One compute level.

    Attributes:
        flops: Geometric mean of its runs' training FLOPs.
        size, loss: Where its parabola is least, and how low.
        curvature: Of log loss in log size: twice the size costs `curvature` × log(2)² of the loss.
        runs: How many runs it holds.
    """

    flops: float
    size: Interval
    loss: Interval
    curvature: float
    runs: int


@dataclass(frozen=True, slots=True)
class IsoFlop:
    """The minima of the levels and the line through them.

    Attributes:
        levels: Those whose parabola has a minimum near its runs, by compute.
        exponent: N_opt ~ C**exponent; None with fewer than two such levels.
        line: (offset, slope) of log N_opt in log C; None likewise.
        trend: (offset, slope) of the log of the least loss in log C; None likewise.
        skipped: Levels that have no minimum near their runs, by compute.
    """

    levels: tuple[Level, ...]
    exponent: Interval | None
    line: tuple[float, float] | None
    trend: tuple[float, float] | None
    skipped: tuple[float, ...]

    def size(self, flops: float) -> float | None:
        """Return the size that the line gives for `flops`."""
        return None if self.line is None else math.exp(self.line[0] + self.line[1] * math.log(flops))

    def loss(self, flops: float) -> float | None:
        """Return the loss at the best size for `flops` by a pure power of compute (it has no floor)."""
        return None if self.trend is None else math.exp(self.trend[0] + self.trend[1] * math.log(flops))


def isoflop(runs: Sequence[Run], *, size: Size = "params", seed: int, draws: int = 400, level: float = 0.9) -> IsoFlop:
    """Fit a parabola to every compute level with three sizes or more, and a line to their minima.

    Args:
        draws: Refits with fresh noise, its level taken from all parabolas' residuals together, behind the intervals.
    References:
        Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2 (approach 2).
    """
    seen = [run.samples if run.unique is None else run.unique for run in runs]
    fewer = [u < 0.9 * min(run.samples, max(seen)) for run, u in zip(runs, seen, strict=True)]  # a part of the data, repeated
    at = columns([run for run, part in zip(runs, fewer, strict=True) if run.annealed and not part])
    x, y, flops = np.log(at.size(size)), np.log(at.loss), at.flops
    parts = [g for g in groups(np.log(flops)) if len({round(v, 2) for v in x[g]}) >= 3]
    rng = np.random.default_rng(seed)
    residuals = [y[g] - np.polyval(np.polyfit(x[g] - x[g].mean(), y[g], 2), x[g] - x[g].mean()) for g in parts]
    dof = sum(max(len(g) - 3, 0) for g in parts) + 1.0
    sd = math.sqrt((0.004**2 + sum(float(r @ r) for r in residuals)) / dof)  # one observation's worth of belief, as in `fit`
    sds = sd * np.sqrt(dof / rng.chisquare(dof, size=(draws, 1)))
    levels, skipped, sizes, losses = [], [], [], []
    for g in parts:
        middle = float(np.exp(np.log(flops[g]).mean()))
        values = np.vstack([y[g], y[g] + sds * rng.standard_normal((draws, len(g)))])
        minima, lows, bends = _minima(x[g], values)
        near = (minima > x[g].min() - math.log(2)) & (minima < x[g].max() + math.log(2)) & (bends > 0)
        if not near[0] or near.mean() < 0.8:
            skipped.append(middle)
            continue
        minima, lows = np.where(near, minima, minima[0]), np.where(near, lows, lows[0])
        n = len(g)
        levels.append(
            Level(
                middle,
                between(np.exp(minima[1:]), math.exp(minima[0]), level, n),
                between(np.exp(lows[1:]), math.exp(lows[0]), level, n),
                float(bends[0]),
                n,
            )
        )
        sizes.append(minima)
        losses.append(lows)
    if len(levels) < 2:
        return IsoFlop(tuple(levels), None, None, None, tuple(skipped))
    log_flops = np.log([entry.flops for entry in levels])
    slopes, offsets = np.polyfit(log_flops, np.stack(sizes), 1)
    trend_slopes, trend_offsets = np.polyfit(log_flops, np.stack(losses), 1)
    return IsoFlop(
        tuple(levels),
        between(slopes[1:], float(slopes[0]), level, len(levels)),
        (float(offsets[0]), float(slopes[0])),
        (float(trend_offsets[0]), float(trend_slopes[0])),
        tuple(skipped),
    )


def overlap(a: Interval, b: Interval) -> bool:
    """Return whether two intervals share a point."""
    return a.low <= b.high and b.low <= a.high


def groups(log_flops: Floats) -> list[list[int]]:
    """Return the indices of the runs of each compute level, lowest first."""
    out: list[list[int]] = []
    for i in np.argsort(log_flops, kind="stable"):
        if out and log_flops[i] - log_flops[out[-1][0]] <= SAME_LEVEL:
            out[-1].append(int(i))
        else:
            out.append([int(i)])
    return out


def _minima(x: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Where the parabola of each row of `values` `(rows, n)` is least, its least value, and its curvature."""
    middle = x.mean()
    bend, slope, offset = np.polyfit(x - middle, values.T, 2)
    safe = np.where(np.abs(bend) > 1e-12, bend, 1e-12)
    return middle - slope / (2 * safe), offset - slope**2 / (4 * safe), bend
