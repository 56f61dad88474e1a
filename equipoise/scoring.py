"""How much worse one set of answers is than another on the same samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from equipoise.records import Reading, measured
from equipoise.stats import paired_drop

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.workloads import Metric


def drop_reading(metric: Metric, base: Tensor, new: Tensor, targets: Tensor, *, confidence: float = 0.95) -> Reading:
    """Return the drop from outputs `base` to `new` in points of `metric`, larger is worse, paired by sample where it can be.

    A metric that is a mean over samples gives an interval; another one only the difference of the two scores.

    Args:
        metric: Quality and its direction.
        base, new: Outputs (N, ...) of the two models on the same samples.
        targets: Targets (N, ...).
        confidence: Of the interval.
    """
    before = metric.score(base, targets)
    whole = metric.drop(before, metric.score(new, targets))
    each = metric.per_sample(base, targets), metric.per_sample(new, targets)
    if each[0] is None or each[1] is None:
        return measured(whole, "points", n=len(targets), note=f"{metric.name} of the whole split: no interval")
    sign = 1.0 if metric.maximize else -1.0
    found = paired_drop((sign * each[0]).tolist(), (sign * each[1]).tolist(), confidence=confidence)
    mean = float(each[0].double().mean())
    scale = before / (100 * mean) if mean else 1.0  # points of the metric in a point of the mean: 1 for accuracy, 0.01 for mse
    if not math.isclose(found.value * scale, whole, rel_tol=1e-3, abs_tol=1e-6) or not found.bounded:
        return measured(whole, "points", n=len(targets), note=f"{metric.name} is no mean over samples: no interval")
    low, high = found.low * scale, found.high * scale
    return measured(whole, "points", low=low, high=high, n=found.n, note="paired")
