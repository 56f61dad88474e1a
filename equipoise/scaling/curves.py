"""Where a learning curve is going, whether a run is worth finishing, and what more data or a larger model would bring.

An ensemble of falling curves is fitted to the log of what is left to gain; each curve votes with how well it foretold the last
quarter of what was already seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.errors import must_be
from equipoise.scaling.fit import between
from equipoise.scaling.runs import Floats
from equipoise.scaling.solve import Model, Noise, Posterior, Prior, posterior
from equipoise.stats import Interval

BINS = 24
"""A curve is averaged into at most this many bins, even in log step, so that neighboring points carry independent noise."""

FEWEST = 6
"""Points below which no learning curve is extrapolated."""

KILL = 0.05
"""A run is stopped when the probability that it ends better than the incumbent is below this."""


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """A curve continued.

    Attributes:
        at: Step (or data, or size) foretold.
        value: What is foretold there, with the interval of a new observation.
        draws: Equally likely values there, noise included, `(k,)`.
        gain: How much better than at the last observed point the *curve* (without noise) will be; positive is better.
        weights: Curve -> its share of the votes.
        noise: Standard deviation of the log of what is left to gain.
    """

    at: float
    value: Interval
    draws: Floats
    gain: Interval
    weights: dict[str, float]
    noise: float


def extrapolate(
    steps: Sequence[float],
    values: Sequence[float],
    at: float,
    *,
    best: float = 0.0,
    seed: int,
    draws: int = 200,
    level: float = 0.9,
    noise: Noise | None = None,
) -> Extrapolation:
    """Continue a curve that approaches `best` from one side to `at`.

    Args:
        steps: Steps, samples or sizes at which `values` were seen, above 0; the first twentieth of a long curve is left out.
        values: Losses (with `best` 0), or a metric that rises towards `best` (100 for accuracy in points).
        at: Where to, at or beyond the last step.
        best: The value that nothing can pass; it is a bound, not where the curve ends.
        noise: What is believed of the noise of the log of what is left to gain, before any residual. None: 2 %, worth one.
    Limits:
        A curve knows nothing of a learning rate that will come down: compare runs at the same point of the same schedule, or
        foretell only annealed points. A second descent is in none of the curves.
    Raises:
        InputError: Fewer than 3 points, lengths that differ, values on both sides of `best`, or `at` before the last step.
    References:
        Domhan et al. 2015 (IJCAI), table 1, for the curves; Viering and Loog 2022 (arXiv 2103.10948) for which hold up.
    """
    x, y, sign = _checked(steps, values, at, best)
    unit = float(x[-1])
    x, log_left = _binned(x / unit, np.log(sign * (y - best)))
    belief = noise or Noise(0.02, 1.0)
    rng = np.random.default_rng(seed)
    curves = {name: curve for name, curve in CURVES.items() if len(x) >= curve.fewest}
    fits, scores = {}, {}
    for name, curve in curves.items():
        fits[name] = _fit(curve, x, log_left, belief, rng, draws)
        scores[name] = _foretold(curve, x, log_left, belief, rng)
    top = max(scores.values())
    raw = {name: math.exp(max(score - top, -30.0)) for name, score in scores.items()}
    weights = {name: value / sum(raw.values()) for name, value in raw.items()}
    edges = [0, *np.round(draws * np.cumsum(list(weights.values()))).astype(int).tolist()]
    rows = {name: slice(*edges[i : i + 2]) for i, name in enumerate(weights)}
    there, here, noisy, value, last, sd = [], [], [], 0.0, 0.0, 0.0
    for name, found in fits.items():
        drawn = curves[name].value(found.draws[rows[name]], np.array([at / unit, 1.0]))[0]
        there.append(drawn[:, 0])
        here.append(drawn[:, 1])
        noisy.append(drawn[:, 0] + found.noises[rows[name]] * rng.standard_normal(len(drawn)))
        middle = curves[name].value(found.best[None], np.array([at / unit, 1.0]))[0][0]
        value, last, sd = value + weights[name] * middle[0], last + weights[name] * middle[1], sd + weights[name] * found.noise
    ends = best + sign * np.exp(np.concatenate(noisy))
    gains = np.exp(np.concatenate(here)) - np.exp(np.concatenate(there))
    return Extrapolation(
        at,
        between(ends, best + sign * math.exp(value), level, len(x)),
        ends,
        between(gains, math.exp(last) - math.exp(value), level, len(x)),
        weights,
        sd,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to stop a run.

    Attributes:
        stop: True only where `probability` is below the threshold.
        probability: That its final value is better than the incumbent's; None where the curve is too short to say.
        final: The final value foretold, or None.
        reason: In one sentence.
    """

    stop: bool
    probability: float | None
    final: Interval | None
    reason: str


def should_stop(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    final_step: float,
    incumbent: float,
    best: float = 0.0,
    seed: int,
    threshold: float = KILL,
) -> Verdict:
    """Say whether a run is all but certain to end worse than the incumbent.

    Args:
        incumbent: The final value of the best run so far.
        final_step: Where this run would end.
        best: As in `extrapolate`; a smaller distance to it is better.
    """
    if len(steps) < FEWEST:
        return Verdict(False, None, None, f"{len(steps)} points are too few to foretell the end; {FEWEST} or more are needed.")
    found = extrapolate(steps, values, final_step, best=best, seed=seed)
    better = float(np.mean(np.abs(found.draws - best) < abs(incumbent - best)))
    stop = better < threshold
    reason = (
        f"foretold {found.value.value:.4g} [{found.value.low:.4g}, {found.value.high:.4g}] at {final_step:g} against "
        f"{incumbent:.4g}: better with probability {better:.0%}, {'below' if stop else 'not below'} {threshold:.0%}"
    )
    return Verdict(stop, better, found.value, reason)


def grow(
    amounts: Sequence[float], values: Sequence[float], factor: float, *, best: float = 0.0, seed: int, level: float = 0.9
) -> Extrapolation:
    """Say what `factor` times the largest amount of data, or model size, would bring.

    Args:
        amounts: Distinct samples, or sizes, of runs that are otherwise alike; 3 or more.
        values: What each run reached.
        factor: Above 1; beyond 4 the interval is the prior's more than the runs'.
    Returns:
        `gain` is the answer: how much better, positive for better.
    Raises:
        InputError: As `extrapolate`, or a factor that is not above 1.
    """
    if not factor > 1:
        raise must_be("factor", "above 1", factor, "Write 2 for twice as much.")
    order = np.argsort(np.asarray(amounts, dtype=float), kind="stable")
    x, y = np.asarray(amounts, dtype=float)[order], np.asarray(values, dtype=float)[order]
    return extrapolate(x.tolist(), y.tolist(), factor * float(x[-1]), best=best, seed=seed, level=level, noise=Noise(0.01, 1.0))


@dataclass(frozen=True, eq=False)
class _Curve:
    """A falling curve: log value and derivatives at x (1 = the last point seen), with the prior of its parameters."""

    value: Callable[[Floats, Floats], tuple[Floats, Floats]]
    center: tuple[float, ...]
    sd: tuple[float, ...]
    fewest: int

    def prior(self, log_last: float) -> Prior:
        """The prior, its first two parameters (floor, amplitude) relative to the last value seen."""
        center = np.array(self.center)
        center[:2] += log_last
        sd = np.array(self.sd)
        low, high = center - 8.0, center + 8.0
        high[0] = log_last + 0.05
        return Prior(center, sd, low, high)


def _above(floor: Floats, drop: Floats, partials: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Log of floor + drop, both given as logs, and its derivatives: by floor, by amplitude, by what else the drop has."""
    total = np.logaddexp(floor, drop)
    share = np.exp(drop - total)
    slope = np.empty((*total.shape, 2 + len(partials)))
    slope[..., 0], slope[..., 1] = 1.0 - share, share
    for i, partial in enumerate(partials):
        slope[..., 2 + i] = share * partial
    return total, slope


def _pow3(theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    """c + a x**-k: theta = log c, log a, log k."""
    fall = -np.exp(theta[:, 2:3]) * np.log(x)
    return _above(theta[:, 0:1], theta[:, 1:2] + fall, [fall])


def _pow4(theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    """c + a (x + d)**-k: theta = log c, log a, log k, log d."""
    k, d = np.exp(theta[:, 2:3]), np.exp(theta[:, 3:4])
    fall = -k * np.log(x + d)
    return _above(theta[:, 0:1], theta[:, 1:2] + fall, [fall, -k * d / (x + d)])


def _logarithmic(theta: Floats, x: Floats) -> tuple[Floats, Floats]:
    """c + a / (1 + (x / s)**k): theta = log c, log a, log k, log s."""
    k = np.exp(theta[:, 2:3])
    z = k * (np.log(x) - theta[:, 3:4])
    share = 0.5 * (1.0 + np.tanh(0.5 * z))  # of (x / s)**k in 1 + (x / s)**k, without overflow
    return _above(theta[:, 0:1], theta[:, 1:2] - np.logaddexp(0.0, z), [-share * z, share * k])


CURVES = {
    "power": _Curve(_pow3, (math.log(0.5), math.log(0.4), math.log(0.5)), (1.5, 1.2, 0.7), 3),
    "shifted power": _Curve(_pow4, (math.log(0.5), math.log(0.4), math.log(0.5), math.log(0.05)), (1.5, 1.2, 0.7, 1.5), 6),
    "log power": _Curve(_logarithmic, (math.log(0.5), math.log(2.0), math.log(0.8), math.log(0.2)), (1.5, 1.2, 0.7, 1.5), 6),
}
"""Name -> curve of what is left to gain. The power law alone is fitted to fewer than 6 points."""


def _checked(steps: Sequence[float], values: Sequence[float], at: float, best: float) -> tuple[Floats, Floats, float]:
    """Arrays and the side of `best` that the values lie on."""
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3 or not np.all(np.isfinite(x) & np.isfinite(y) & (x > 0)):
        raise must_be(
            "steps, values",
            "equally long, 3 points or more, finite, steps above 0",
            (x.tolist(), y.tolist()),
            "Check the record.",
        )
    if np.any(np.diff(x) < 0):
        raise must_be("steps", "in ascending order", x.tolist(), "Sort the record by step.")
    if not at >= x[-1]:
        raise must_be("at", f"at or beyond the last step, {x[-1]:g}", at, "Read the curve where it was observed.")
    sign = 1.0 if y[-1] > best else -1.0
    if np.any(sign * (y - best) <= 0):
        raise must_be("values", f"all on one side of best = {best:g}", y.tolist(), "Give the value that cannot be passed.")
    return x, y, sign


def _binned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Means of at most `BINS` bins, even in log x, the first twentieth left out where that leaves enough."""
    late = x >= 0.05
    if late.sum() >= BINS:
        x, y = x[late], y[late]
    if len(x) <= BINS:
        return x, y
    edges = np.geomspace(x[0], x[-1], BINS + 1)
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, BINS - 1)
    used = np.unique(place)
    return np.array([np.exp(np.log(x[place == i]).mean()) for i in used]), np.array([y[place == i].mean() for i in used])


def _fit(curve: _Curve, x: Floats, y: Floats, noise: Noise, rng: np.random.Generator, draws: int) -> Posterior:
    model: Model = lambda theta: curve.value(theta, x)  # noqa: E731
    return posterior(model, y, curve.prior(float(y[-3:].mean())), noise=noise, rng=rng, starts=12, draws=draws)


def _foretold(curve: _Curve, x: Floats, y: Floats, noise: Noise, rng: np.random.Generator) -> float:
    """Log density that a fit to the first three quarters gave to the last quarter."""
    cut = max(curve.fewest, round(0.75 * len(x)))
    if cut >= len(x):
        return 0.0
    found = _fit(curve, x[:cut], y[:cut], noise, rng, 60)
    guess = curve.value(found.draws, x[cut:])[0]
    spread = np.maximum(found.noises[:, None], 1e-6)
    each = -0.5 * ((y[cut:] - guess) / spread) ** 2 - np.log(spread)
    total = each.mean(axis=1)  # the bins share their errors: they count as one observation
    top = float(total.max())
    return top + math.log(float(np.mean(np.exp(total - top))))
