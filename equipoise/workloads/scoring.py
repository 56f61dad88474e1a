"""A quality and a drop with their intervals, whatever the metric is made of.

Where the score is a mean over samples, a paired comparison of the samples' own values gives the interval. Any other score (F1,
AUC, R squared, a function of the user's own) is computed again on resamples of the split: the bootstrap, paired for a drop.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.records import Reading, measured
from equipoise.stats import paired_drop, quantile
from equipoise.workloads.metrics import Metric, Scores

Array = np.ndarray[Any, Any]

RESAMPLES = 400
FEWEST = 16
"""Resamples that an interval needs; with fewer the reading has none and says so."""
SECONDS = 0.5
"""Time for the resamples of one reading; a slow metric gets fewer of them, though `FEWEST` where five times as long will do."""
CONFIDENCE = 0.95


def drop_reading(
    metric: Metric, base: Array, new: Array, targets: Tensor, *, seconds: float = SECONDS, seed: int = 0
) -> Reading:
    """Return by how many points outputs `new` are worse than `base` on the same samples, with a paired 95 % interval.

    Args:
        base, new: Outputs (N, ...).
        seconds: Time for the bootstrap, where one is needed.
        seed: Of its resamples; told in the note.
    """
    one, other = torch.from_numpy(np.asarray(base)), torch.from_numpy(np.asarray(new))
    before, after = (_oriented(metric, metric.read(outputs, targets)) for outputs in (one, other))
    if before is not None and after is not None and len(before) == len(after):
        return paired_drop(before, after).reading("points", note="paired")

    def drop(rows: Tensor | None) -> float:
        if rows is None:
            return metric.drop(_defined(metric, one, targets), _defined(metric, other, targets))
        wanted = targets[rows]
        return metric.drop(metric.score(one[rows], wanted), metric.score(other[rows], wanted))

    return _bootstrapped(drop, len(targets), _least(metric, targets), "paired", seconds, seed)


def quality_reading(
    metric: Metric, outputs: Array, targets: Tensor, *, note: str = "", seconds: float = SECONDS, seed: int = 0
) -> Reading:
    """Return the metric in points with its 95 % interval over the samples; arguments as `drop_reading`'s."""
    found = torch.from_numpy(np.asarray(outputs))
    scores = metric.read(found, targets)
    if (each := _oriented(metric, scores)) is not None:
        low, high = of_mean(each, scores.value)
        return measured(scores.value, "points", low=low, high=high, n=len(targets), note=note)

    def score(rows: Tensor | None) -> float:
        return _defined(metric, found, targets) if rows is None else metric.score(found[rows], targets[rows])

    return _bootstrapped(score, len(targets), _least(metric, targets), note, seconds, seed)


def _defined(metric: Metric, outputs: Tensor, targets: Tensor) -> float:
    """Return the score of a whole split; a number that is none would be an unknown that looks like a measurement."""
    value = metric.score(outputs, targets)
    if not math.isfinite(value):
        remedy = "It must be defined whenever it is called: look for divisions by zero and for what it keeps between calls."
        raise must_be(f"metric {metric.name}", f"finite on {len(targets)} samples", value, remedy)
    return value


def _oriented(metric: Metric, scores: Scores) -> list[float] | None:
    """Return values whose mean, times 100, is the score with more being better; None where there are none, or no numbers."""
    if scores.each is None or not math.isfinite(scores.value):
        return None
    parts = scores.each.double() / (100 if metric.maximize else -100)
    return [float(value) for value in parts]


def of_mean(each: list[float], value: float) -> tuple[float | None, float | None]:
    """Return the interval of a mean, of Wilson for shares, else by its standard error; None for one value.

    Args:
        each: Values (N,), of which `value` is 100 times the mean; so are the bounds.
    """
    n, z = len(each), NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    if n < 2:
        return None, None
    if all(v in (0.0, 1.0) for v in each):
        p = sum(each) / n
        middle, half = (
            (p + z * z / (2 * n)) / (1 + z * z / n),
            z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
        )
        return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
    mean = math.fsum(each) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in each) / (n - 1))
    margin = 100 * _student(n) * deviation / math.sqrt(n)
    return value - margin, value + margin


def _least(metric: Metric, targets: Tensor) -> float:
    """Points by which one sample more could have changed a score of 100: "nothing changed" on few samples is no certainty.

    Only labels can all stay as they are by chance: of values (targets that are not whole) every difference is seen.
    """
    n = len(targets)
    values = metric.labels is False or (targets.is_floating_point() and not bool((targets == targets.round()).all()))
    of_hundred = metric.unit == "points" and (metric.labels is True or (metric.scale == 100 and not values))
    return 100 * NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) / n if of_hundred and n else 0.0


def _bootstrapped(
    statistic: Callable[[Tensor | None], float], n: int, least: float, note: str, seconds: float, seed: int
) -> Reading:
    """Return a statistic of `n` samples with its percentile interval, widened as few samples ask for.

    Args:
        statistic: Of the rows of a resample; of all samples where it is given None.
        least: Half-width where every resample gives the same.

    References:
        Efron & Tibshirani 1993, "An introduction to the bootstrap", chapter 13. Hesterberg 2015, "What teachers should know
        about the bootstrap", section 4.4: percentile intervals are too narrow by sqrt((n - 1) / n) and by normal for t.
    """
    value = statistic(None)
    label = f"{note}, " if note else ""
    if n < 2:
        return measured(value, "points", n=n, note=f"{label}one sample has no spread")
    generator, began, drawn, tried = torch.Generator().manual_seed(seed), time.monotonic(), list[float](), 0
    while tried < RESAMPLES:
        spent = time.monotonic() - began
        if spent > (seconds if len(drawn) >= FEWEST else 5 * seconds):
            break
        tried += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the user's function; it had its say on the whole split
                found = statistic(torch.randint(n, (n,), generator=generator))
        except Exception:  # noqa: BLE001 - the user's function, undefined on this resample (one class alone, say): not counted
            continue
        if math.isfinite(found):
            drawn.append(found)
    if len(drawn) < FEWEST or 2 * len(drawn) < tried:
        why = "is undefined on most resamples" if 2 * len(drawn) < tried else "is too slow to be resampled"
        return measured(value, "points", n=n, note=f"{label}no interval: the metric {why}")
    wider = _student(n) / NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(n / (n - 1))
    tail = (1 - CONFIDENCE) / 2
    low, high = (value + wider * (quantile(drawn, q) - value) for q in (tail, 1 - tail))
    low, high = min(low, value), max(high, value)
    if high == low:
        low, high = value - least, value + least
    return measured(value, "points", low=low, high=high, n=n, note=f"{label}bootstrap of {len(drawn)} resamples, seed {seed}")


def _student(n: int) -> float:
    """Quantile of Student's t at n - 1 degrees of freedom, by Cornish and Fisher's expansion (within 2 % from n = 4 on)."""
    z, v = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), max(1, n - 1)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
