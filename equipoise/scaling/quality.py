"""From loss to the user's own metric, and error as a bounded power of compute or data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from equipoise.errors import must_be
from equipoise.scaling.fit import between
from equipoise.scaling.laws import ErrorLaw
from equipoise.scaling.runs import Floats, Run
from equipoise.scaling.solve import Noise, Prior, posterior
from equipoise.stats import Interval

EDGE = 1e-4
"""How close to its bounds a quality is taken to be, as a share of their distance, where it is on one."""


@dataclass(frozen=True, eq=False)
class Link:
    """Quality as a function of loss: a line in log loss, of the log-odds where the metric is bounded.

    Attributes:
        offset, slope: Of the most probable line; `draws` `(k, 2)` equally likely ones.
        noise: Standard deviation around it, `noises` `(k,)` of each draw.
        bounds: Of the metric, or None.
        n: Runs it was fitted to.
    """

    offset: float
    slope: float
    draws: Floats
    noise: float
    noises: Floats
    bounds: tuple[float, float] | None
    n: int

    def quality(self, loss: float) -> float:
        """Return the quality that goes with a loss."""
        return float(self._back(np.array(self.offset + self.slope * math.log(loss))))

    def predict(self, losses: Floats, value: float, *, level: float = 0.9) -> Interval:
        """Return the quality with its interval.

        Args:
            losses: Draws of the loss `(k, ...)`, row i from draw i of the law (`fit.spread`).
            value: The loss itself.
        """
        rows = len(self.draws)
        logs = np.log(losses.reshape(len(losses), -1))
        pick = np.arange(len(logs)) % rows
        count = logs.shape[1]
        order = (np.arange(count) * 5 + 2) % count  # not in the order of the loss's own noise
        around = np.array([NormalDist().inv_cdf((2 * i + 1) / (2 * count)) for i in order])
        lines = self.draws[pick, :1] + self.draws[pick, 1:] * logs + self.noises[pick, None] * around
        return between(self._back(lines), self.quality(value), level, self.n)

    def _back(self, line: Floats) -> Floats:
        if self.bounds is None:
            return line
        low, high = self.bounds
        return np.asarray(low + (high - low) / (1.0 + np.exp(-line)))


def link(runs: Sequence[Run], *, bounds: tuple[float, float] | None, seed: int, draws: int = 200) -> Link | None:
    """Fit quality to loss over the runs that have both; None with fewer than 4 of them.

    Args:
        bounds: (0, 100) for accuracy in points. None: a metric without bounds, taken as linear in log loss.
    Raises:
        InputError: A quality outside the bounds.
    """
    known = [run for run in runs if run.annealed and run.quality is not None]
    if len(known) < 4:
        return None
    quality = np.array([run.quality for run in known], dtype=float)
    if bounds is not None:
        low, high = bounds
        if not (low < high and np.all((quality >= low) & (quality <= high))):
            raise must_be(
                "quality", f"between the bounds {low:g} and {high:g}", quality.tolist(), "Give the bounds of your metric."
            )
        share = np.clip((quality - low) / (high - low), EDGE, 1.0 - EDGE)
        quality = np.log(share / (1.0 - share))
    x = np.log([run.loss for run in known])
    middle, spread = float(quality.mean()), float(quality.std()) + 1e-9
    reach = float(x.std()) + 1e-9
    design = np.stack([np.ones_like(x), x], axis=1)
    start = np.polyfit(x, quality, 1)[::-1]
    prior = Prior(np.asarray(start), np.array([50.0 * spread * (1 + abs(x.mean()) / reach), 50.0 * spread / reach]), *_open(2))
    found = posterior(
        lambda theta: (theta @ design.T, np.broadcast_to(design, (len(theta), *design.shape))),
        quality,
        prior,
        noise=Noise(0.05 * spread + 1e-6 * abs(middle) + 1e-9, 1.0),
        rng=np.random.default_rng(seed),
        starts=1,
        draws=draws,
    )
    return Link(float(found.best[0]), float(found.best[1]), found.draws, found.noise, found.noises, bounds, len(known))


@dataclass(frozen=True, eq=False)
class ErrorFit:
    """A fitted error law with its draws (constants `(k, 1)`) and the noise of log error."""

    law: ErrorLaw
    draws: ErrorLaw
    noise: float
    noises: Floats
    n: int

    def predict(self, x: float, *, level: float = 0.9, seed: int = 0) -> Interval:
        """Return the error of a new run at `x` with its interval."""
        shocks = np.random.default_rng(seed).standard_normal((len(self.noises), 9))
        draws = np.asarray(self.draws.error(x)) * np.exp(self.noises[:, None] * shocks)
        return between(draws, float(self.law.error(x)), level, self.n)


def fit_error(x: Sequence[float], error: Sequence[float], *, seed: int, draws: int = 200, starts: int = 60) -> ErrorFit:
    """Fit error = c + a (x + d)**-b, for an error rate against compute, data or size.

    Args:
        x: Training FLOPs, samples or params, above 0; 4 points or more.
        error: In (0, 1], or in points, above 0.
    Raises:
        InputError: Fewer than 4 points, different lengths, or a value that is not finite and above 0.
    """
    at, y = np.asarray(x, dtype=float), np.asarray(error, dtype=float)
    if at.shape != y.shape or at.ndim != 1 or len(y) < 4 or not np.all(np.isfinite(at * y) & (at > 0) & (y > 0)):
        raise must_be("x, error", "equally long, 4 points or more, finite and above 0", (at.tolist(), y.tolist()), "Run more.")
    unit = float(np.exp(np.log(at).mean()))
    least, usual = float(y.min()), float(np.median(y))
    center = np.log([0.4 * least, 0.6 * usual, 0.4, 0.02 * at.min() / unit])
    sd = np.array([0.8, 1.2, 0.6, 2.0])
    low = np.log([1e-4 * least, 1e-4 * usual, 0.03, 1e-6 * at.min() / unit])
    high = np.log([1.02 * least, 1e4 * usual, 2.0, 10.0 * at.max() / unit])
    scaled = at / unit

    def model(theta: Floats) -> tuple[Floats, Floats]:
        c, a, b, d = (np.exp(theta[:, i : i + 1]) for i in range(4))
        term = a * (scaled + d) ** -b
        total = c + term
        part = term / total
        slope = np.stack([c / total, part, -part * b * np.log(scaled + d), -part * b * d / (scaled + d)], axis=-1)
        return np.log(total), slope

    prior = Prior(center, sd, low, high)
    rng = np.random.default_rng(seed)
    found = posterior(model, np.log(y), prior, noise=Noise(0.02, 1.0), rng=rng, starts=starts, draws=draws)

    def law(theta: Floats) -> ErrorLaw:
        columns = np.exp(theta).T[..., None] if theta.ndim == 2 else np.exp(theta)
        c, a, b, d = columns
        values = (c, a * unit**b, b, d * unit)
        return ErrorLaw(*(float(v) if np.ndim(v) == 0 else v for v in values))

    return ErrorFit(law(found.best), law(found.draws), found.noise, found.noises, len(y))


def _open(n: int) -> tuple[Floats, Floats]:
    return np.full(n, -1e9), np.full(n, 1e9)
