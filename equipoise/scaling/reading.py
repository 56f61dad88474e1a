"""What training curves say in numbers: ends, gap, rises, spikes, each against a threshold in the curves' own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from equipoise.errors import must_be
from equipoise.scaling.runs import Floats

Finding = Literal["under-fit", "over-fit", "data-limited", "optimization trouble", "fine", "cannot tell"]

FEWEST = 8
"""Points below which curves are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """The record of one training run, one entry per point; lists of equal length.

    Attributes:
        step: Ascending, above 0.
        train, validation: Losses; not finite where the run diverged.
        metric: Validation metric, larger is better. None: not kept.
        rate: Learning rate. None: not kept.
        gradient: Norm of the gradient before clipping. None: not kept.
    """

    step: Sequence[float]
    train: Sequence[float]
    validation: Sequence[float]
    metric: Sequence[float] | None = None
    rate: Sequence[float] | None = None
    gradient: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number behind a verdict, what it is compared with (None: nothing), and a sentence that says both."""

    name: str
    value: float
    threshold: float | None
    text: str


@dataclass(frozen=True)
class Reading:
    """What the curves come to.

    Attributes:
        step, train, validation: The finite points; `diverged` is the first step that was not finite, or None.
        chance, floor: Losses of guessing and of the best that can be had; a floor of None is unknown.
        noise, train_noise: Standard deviations between neighboring points.
        train_end, validation_end: Medians of the last tenth.
        lowest: Least training loss; `best` the least validation loss, at `best_step`, where training stood at `train_at_best`.
        falling: How much the validation loss fell within its last third.
    """

    step: Floats
    train: Floats
    validation: Floats
    diverged: float | None
    chance: float
    floor: float | None
    noise: float
    train_noise: float
    train_end: float
    validation_end: float
    lowest: float
    best: float
    best_step: float
    train_at_best: float
    falling: float

    @property
    def bottom(self) -> float:
        """The floor, 0 where it is unknown."""
        return self.floor or 0.0

    @property
    def gap(self) -> float:
        """Validation over training loss at the end."""
        return self.validation_end - self.train_end

    @property
    def excess(self) -> float:
        """Validation loss above the floor at the end."""
        return max(self.validation_end - self.bottom, 1e-12)

    @property
    def room(self) -> float:
        """From guessing down to the floor."""
        return max(self.chance - self.bottom, 1e-12)

    @property
    def still(self) -> float:
        """What a validation loss that no longer falls may seem to fall in its last third."""
        return max(3.0 * self.noise, 0.01 * self.excess)


def read(
    curves: Curves, *, chance: float | None = None, floor: float | None = None, noise: float | None = None
) -> Reading | None:
    """Read the curves; None where fewer than `FEWEST` points are finite.

    Args:
        chance: Loss of guessing. None: the first training loss.
        floor: Loss that nothing can beat. None: unknown.
        noise: Of validation loss between points. None: from its second differences.
    Raises:
        InputError: No points, lists of different lengths, or steps that do not ascend.
    """
    step, train, validation = (np.asarray(v, dtype=float) for v in (curves.step, curves.train, curves.validation))
    lengths = [len(v) for v in (step, train, validation, curves.metric, curves.rate, curves.gradient) if v is not None]
    if not lengths[0] or len(set(lengths)) > 1:
        raise must_be("curves", "lists of equal length, not empty", lengths, "Keep one entry per point.")
    if np.any(np.diff(step) <= 0) or step[0] <= 0:
        raise must_be("curves.step", "ascending and above 0", step.tolist(), "Sort the points by step; start at 1.")
    good = np.isfinite(train) & np.isfinite(validation)
    if good.sum() < FEWEST:
        return None
    x, t, v = step[good], train[good], validation[good]
    smooth, smooth_train = median3(v), median3(t)
    tail = max(3, len(v) // 10)
    third = smooth[-max(4, len(smooth) // 3) :]
    half = len(third) // 2
    at = int(np.argmin(smooth))
    end = float(np.median(v[-tail:]))
    return Reading(
        step=x,
        train=t,
        validation=v,
        diverged=None if good.all() else float(step[~good][0]),
        chance=float(t[0]) if chance is None else chance,
        floor=floor,
        noise=noise_of(v) if noise is None else noise,
        train_noise=noise_of(t),
        train_end=float(np.median(t[-tail:])),
        validation_end=end,
        lowest=float(smooth_train.min()),
        best=min(float(smooth[at]), end),
        best_step=float(x[at]),
        train_at_best=float(smooth_train[at]),
        falling=float(np.median(third[:half]) - np.median(third[half:])),
    )


def median3(values: Floats) -> Floats:
    """Return the running median of three, the ends kept."""
    if len(values) < 3:
        return values
    inner = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    return np.concatenate([values[:1], inner, values[-1:]])


def noise_of(values: Floats) -> float:
    """Return the standard deviation between neighbors in the second half; second differences cancel a smooth trend.

    From their lower quartile, which spikes do not reach (a spike spoils three of them).
    """
    late = values[len(values) // 2 :] if len(values) >= 10 else values
    return float(np.quantile(np.abs(np.diff(late, 2)), 0.25) / 0.3186 / math.sqrt(6.0)) + 1e-12


def trouble(curves: Curves, r: Reading) -> tuple[Evidence, ...]:
    """Return the signs that the optimizer, not the model or the data, is at fault."""
    out: list[Evidence] = []
    if r.diverged is not None:
        out.append(Evidence("first loss not finite", r.diverged, None, f"the loss is not finite at step {r.diverged:g}"))
    learned = (r.chance - r.train_end) / r.room
    if learned < 0.05:
        text = f"training ended at {r.train_end:.4g}, {learned:.1%} of the way down from guessing ({r.chance:.4g}); under 5 %"
        out.append(Evidence("way from guessing", learned, 0.05, text))
    rise, limit = r.train_end - r.lowest, max(5.0 * r.train_noise, 0.1 * max(r.lowest - r.bottom, 0.0), 0.01 * r.room)
    if rise > limit:
        text = f"training loss rose by {rise:.3g} from its lowest, {r.lowest:.4g}; more than {limit:.3g}"
        out.append(Evidence("rise of training loss", rise, limit, text))
    trend = median3(r.train)
    jumps = int(np.sum(r.train - trend > np.maximum(8.0 * r.train_noise, 0.25 * trend)))
    few = max(2.0, 0.03 * len(trend))
    if jumps > few:
        text = f"{jumps} of {len(trend)} points jump by more than a quarter of the loss; {few:.0f} may be chance"
        out.append(Evidence("spikes of training loss", float(jumps), few, text))
    if curves.gradient is not None:
        out += _gradients(np.asarray(curves.gradient, dtype=float), learned)
    return tuple(out)


def _gradients(gradient: Floats, learned: float) -> list[Evidence]:
    """Norms that burst, or that vanish while nearly everything is left to learn."""
    norms = gradient[np.isfinite(gradient)]
    if len(norms) < FEWEST:
        return []
    top = float(np.quantile(norms, 0.98)) / max(float(np.median(norms)), 1e-300)
    if top > 100.0:
        text = f"gradients burst to {top:.0f}× their median; over 100×"
        return [Evidence("gradient norm, 98th percentile over median", top, 100.0, text)]
    part = max(3, len(norms) // 5)
    tail = float(np.median(norms[-part:])) / max(float(np.median(norms[:part])), 1e-300)
    if tail < 1e-3 and learned < 0.3:
        text = f"gradients shrank to {tail:.1e} of what they were, with {learned:.0%} of the loss learned"
        return [Evidence("late over early gradient norm", tail, 1e-3, text)]
    return []


def fitting(r: Reading) -> tuple[Finding, tuple[Evidence, ...]]:
    """Return over-fit, data-limited, under-fit, fine or cannot tell, with the numbers that say so."""
    rise, limit = r.validation_end - r.best, max(4.0 * r.noise, 0.02 * max(r.best - r.bottom, 0.0))
    memorized = r.train_at_best - r.train_end
    gap = _gap(r)
    if rise > limit and memorized > 0:
        text = (
            f"validation loss rose by {rise:.3g} from {r.best:.4g} at step {r.best_step:g} (more than {limit:.3g}) while "
            f"training loss fell by {memorized:.3g}"
        )
        return "over-fit", (Evidence("rise of validation loss", rise, limit, text), gap)
    falls = r.falling > r.still
    text = f"validation loss fell by {r.falling:.3g} in its last third, {'more' if falls else 'no more'} than {r.still:.3g}"
    late = Evidence("late fall of validation loss", r.falling, r.still, text)
    if gap.threshold is not None and gap.value > gap.threshold and (not falls or gap.value > 0.5):
        return "data-limited", (gap, late)
    if falls:
        return "under-fit", (late, gap)
    if r.floor is None:
        text = "flat curves close together: without the floor of the loss, a finished model and one too small look the same"
        return "cannot tell", (late, gap, Evidence("floor of the loss", 0.0, None, text))
    left, far = (r.train_end - r.floor) / r.room, max(0.1, 4.0 * r.noise / r.room)
    text = (
        f"training loss keeps {left:.1%} of the way from the floor ({r.floor:.4g}) to guessing ({r.chance:.4g}), "
        f"{'over' if left > far else 'under'} {far:.0%}"
    )
    rest = Evidence("training loss above the floor", left, far, text)
    return ("under-fit" if left > far else "fine"), (rest, late, gap)


def _gap(r: Reading) -> Evidence:
    share, limit = r.gap / r.excess, max(0.25, 4.0 * r.noise / r.excess, 0.02 * r.room / r.excess)
    text = (
        f"validation loss {r.validation_end:.4g} lies {r.gap:.3g} over training loss {r.train_end:.4g}: {share:.0%} of what is "
        f"above the floor, {'over' if share > limit else 'under'} {limit:.0%}"
    )
    return Evidence("gap over validation loss above the floor", share, limit, text)


def metric_lost(metric: Sequence[float]) -> Evidence:
    """Return whether an over-fit shows in the metric too, or only in the confidence."""
    values = median3(np.asarray(metric, dtype=float))
    lost = float(values.max() - np.median(values[-max(3, len(values) // 10) :]))
    limit = 4.0 * noise_of(np.asarray(metric, dtype=float))
    text = (
        f"the metric lost {lost:.3g} from its best, more than {limit:.3g}: the over-fit shows there too"
        if lost > limit
        else f"the metric lost only {lost:.3g} from its best: the model became overconfident, not wrong; try label smoothing"
    )
    return Evidence("metric lost since its best", lost, limit, text)
