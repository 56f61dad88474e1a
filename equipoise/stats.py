"""Intervals, paired tests and verdicts: what may be said of numbers that were measured.

Pure Python and deterministic, no random numbers: intervals of quantiles are exact (binomial order statistics), those of
repeated measurements say where the next one falls. Raw samples stay the record; everything here is a view of them.

References:
    Hahn & Meeker, *Statistical Intervals* (1991), section 5.2: distribution-free intervals of a quantile.
    Agresti & Min, *Statistics in Medicine* 24 (2005): half a pair added to each discordant cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Literal

from equipoise.errors import must_be
from equipoise.records import Reading, measured

__all__ = [
    "Interval",
    "Verdict",
    "carried",
    "median",
    "paired_drop",
    "quantile",
    "quantile_interval",
    "repeat_interval",
    "student_t",
    "verdict",
]

Verdict = Literal["faster", "slower", "cannot tell"]

TRIM = 0.2
"""Share of repeated measurements that is left out at either end."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided interval.

    Attributes:
        value: The point estimate.
        low, high: Bounds; infinite on a side that the samples cannot bound (0 and inf for a ratio).
        n: Independent samples behind it: loads or processes for a ratio, cases for a drop.
        confidence: Nominal coverage. Intervals by order statistics cover at least this much.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    @property
    def bounded(self) -> bool:
        """Whether the samples sufficed to bound the value above and below."""
        return self.n > 0 and math.isfinite(self.high) and math.isfinite(self.low)

    @property
    def half_width(self) -> float:
        """Half the width in the units of `value`; inf where unbounded."""
        return (self.high - self.low) / 2

    def within(self, precision: float) -> bool:
        """Return whether the value is known to ± this fraction of it."""
        return self.bounded and self.half_width <= precision * abs(self.value)

    def reading(self, unit: str, *, note: str = "") -> Reading:
        """Return it as a measured `Reading` in `unit`; an unbounded interval becomes None, None."""
        low, high = (self.low, self.high) if self.bounded else (None, None)
        return measured(self.value, unit, low=low, high=high, n=self.n, note=note)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the `q` quantile (0..1) of `values`, interpolating linearly between order statistics.

    Raises:
        InputError: No values, or `q` outside 0..1.
    """
    if not 0.0 <= q <= 1.0:
        raise must_be("stats.quantile(q)", "between 0 and 1", q, "Write 0.95 for the 95th percentile.")
    ordered = sorted(_some("stats.quantile(values)", values))
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def quantile_interval(values: Sequence[float], q: float, *, confidence: float = 0.95) -> Interval:
    """Return the `q` quantile with its distribution-free interval between two order statistics.

    Exact for independent samples of any continuous distribution: the number of samples under the true quantile is binomial.
    A side that the samples cannot bound at this confidence is infinite; the median needs 6 samples at 95 %, p95 needs 72.
    """
    value = quantile(values, q)
    ordered = sorted(values)
    n = len(ordered)
    tail = (1.0 - _confidence(confidence)) / 2
    low, high = -math.inf, math.inf
    under = 0.0  # P(fewer than `rank` samples lie under the quantile)
    for rank in range(1, n + 1):
        under += _binomial(n, rank - 1, q)
        if under <= tail:
            low = ordered[rank - 1]
        if high == math.inf and under >= 1.0 - tail:
            high = ordered[rank - 1]
    return Interval(value, low, high, n, confidence)


def repeat_interval(values: Sequence[float], *, between: float = 0.0, confidence: float = 0.95) -> Interval:
    """Return the typical value of repeated measurements, with the interval that the same measurement, made anew, falls in.

    A repetition is whatever varies from one use to the next: a fresh load of a program, a fresh process. The value is the
    geometric mean without the fifth of the repetitions at either end, for now and then one is disturbed; the interval predicts
    the mean of as many new repetitions, so it is ``sqrt(2)`` times as wide as that of the mean itself.

    Args:
        values: One positive figure for each repetition: seconds of a call, or a ratio of two of them.
        between: Relative standard deviation of what all repetitions of one sitting share and another sitting draws anew.
    Returns:
        0 and inf as bounds with a single value: one has no spread.
    Raises:
        InputError: No values, or one that is not positive and finite.
    References:
        Tukey & McLaughlin, *Sankhya* A 25 (1963): error of a trimmed mean by winsorized squares. Hahn & Meeker, *Statistical
        Intervals* (1991), section 4.4: interval for the mean of a second sample.
    """
    for value in _some("stats.repeat_interval(values)", values):
        if not 0.0 < value < math.inf:
            raise must_be("stats.repeat_interval(values)", "positive and finite", value, "Measure it again.")
    logs, n = sorted(math.log(value) for value in values), len(values)
    cut = int(TRIM * n)
    kept = logs[cut : n - cut]
    mean = math.fsum(kept) / len(kept)
    if n < 2:
        return Interval(math.exp(mean), 0.0, math.inf, n, confidence)
    pulled = [min(max(x, kept[0]), kept[-1]) for x in logs]
    middle = math.fsum(pulled) / n
    squares = math.fsum((x - middle) ** 2 for x in pulled)
    error, tail = math.sqrt(squares / (len(kept) * (len(kept) - 1))), 0.5 + _confidence(confidence) / 2
    known = NormalDist().inv_cdf(tail) * between
    margin = math.sqrt(2.0) * math.hypot(student_t(tail, len(kept) - 1) * error, known)
    return Interval(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin), n, confidence)


def carried(ratio: Interval, *, slower: float, elasticity: tuple[float, float]) -> Interval:
    """Return a ratio of times as it would be in another state of the machine.

    Args:
        slower: How many times as long the baseline takes there.
        elasticity: Percent by which the ratio rises where the baseline slows by one, and its standard error.
    """
    shift, (slope, error) = math.log(slower), elasticity
    doubt = NormalDist().inv_cdf(0.5 + ratio.confidence / 2) * error * shift
    value = ratio.value * math.exp(slope * shift)
    low = value / math.exp(math.hypot(math.log(ratio.value / ratio.low), doubt)) if ratio.low > 0 else 0.0
    high = value * math.exp(math.hypot(math.log(ratio.high / ratio.value), doubt))
    return Interval(value, low, high, ratio.n, ratio.confidence)


def student_t(q: float, freedom: int) -> float:
    """Return the `q` quantile of Student's t with a whole number of degrees of freedom, at least 1.

    References:
        Abramowitz & Stegun (1964), 26.7.3 and 26.7.4: the distribution for whole degrees of freedom is a finite sum.
    """
    if freedom > 1000:
        return NormalDist().inv_cdf(q)
    low, high = -1e4, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < q else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, freedom: int) -> float:
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 0.0)
    for k in range(freedom // 2):
        total += term
        term *= cosine * cosine * ((2 * k + 2) / (2 * k + 3) if freedom % 2 else (2 * k + 1) / (2 * k + 2))
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if freedom % 2 else math.sin(angle) * total
    return 0.5 + inside / 2


def verdict(speedup: Interval) -> Verdict:
    """Say what an interval of baseline time / new time allows: faster, slower, or that it cannot tell."""
    if speedup.low > 1.0:
        return "faster"
    return "slower" if speedup.high < 1.0 else "cannot tell"


def paired_drop(base: Sequence[float], new: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return the drop of the mean score from `base` to `new` on the same cases, in points (100 × score).

    Pairing removes what is common to both: with 0/1 correctness only the cases that changed carry noise, and the standard
    error is ``sqrt((n10 + n01) - (n10 - n01)**2 / n) / n``; real scores use the same formula on their differences. For 0/1
    scores half a pair is added to each discordant cell, so that "nothing changed" on few cases is not taken for certainty.

    A one-sided 95 % check "the drop is at most m" is ``paired_drop(..., confidence=0.90).high <= m``.

    Args:
        base, new: Score per case, in the same order; 0/1, bool or real, larger is better.
    Raises:
        InputError: Different lengths, no cases, or a score that is not finite.
    """
    differences = _differences(base, new)
    n = len(differences)
    binary = all(score in (0, 1) for score in (*base, *new))
    total = math.fsum(differences)
    squares = math.fsum(d * d for d in differences) + (1.0 if binary else 0.0)
    value = 100.0 * total / n
    if n < 2:
        return Interval(value, -math.inf, math.inf, n, confidence)
    z = NormalDist().inv_cdf(0.5 + _confidence(confidence) / 2)
    margin = 100.0 * z * math.sqrt(max(0.0, squares - total * total / n)) / n
    return Interval(value, value - margin, value + margin, n, confidence)


def _binomial(n: int, k: int, p: float) -> float:
    """Probability of `k` successes in `n`, through logarithms so that large `n` cannot overflow."""
    if p in (0.0, 1.0):
        return 1.0 if k == n * p else 0.0
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def _confidence(value: float) -> float:
    if not 0.0 < value < 1.0:
        raise must_be("confidence", "between 0 and 1", value, "Write 0.95 for 95 %.")
    return value


def _some(name: str, values: Sequence[float]) -> Sequence[float]:
    if len(values) == 0:
        raise must_be(name, "at least one number", list(values), "Measure something first.")
    return values


def _differences(base: Sequence[float], new: Sequence[float]) -> list[float]:
    """Per-case ``base - new`` after the checks common to paired tests."""
    if len(base) != len(new) or len(base) == 0:
        raise must_be("base, new", "scores of the same cases, at least one", (len(base), len(new)), "Score both on one split.")
    differences = [float(b) - float(c) for b, c in zip(base, new, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise must_be("base, new", "finite scores", "NaN or infinity", "Look at the case that gives no score.")
    return differences
