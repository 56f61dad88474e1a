"""Predict the loss of a plan and how far to trust that: the calibrated tables, plus what evaluated plans taught.

A Gaussian process models only the *logarithmic residual* of the calibrated sum, so with no evaluations the prediction is the
tables' own. Its kernel has two parts: a Matérn 5/2 over a short summary of the plan, for what depends on how hard it is cut
and where; and a linear one over the shares that single choices have in the sum, which is what a wrong table entry looks like.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.search.space import Genomes
from equipoise.search.tables import EPSILON, Calibration, LossTable, calibrate

Floats = NDArray[np.float64]

FEWEST = 6
"""Below this many plans the residual is not modeled and the spread is the prior's."""


@dataclass(frozen=True)
class LossModel:
    """Predicts log(loss + `tables.EPSILON`) of genomes with its standard deviation.

    Attributes:
        table, calibration: The mean.
        residual: What the evaluated plans taught beyond it; None below `FEWEST`.
    """

    table: LossTable
    calibration: Calibration
    residual: GaussianProcess | None = None

    def log(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Return mean and standard deviation, `(n,)` each, of log(loss + `tables.EPSILON`)."""
        mean = self.calibration.log(self.table.sums(genomes))
        if self.residual is None:
            return mean, np.full(len(mean), self.calibration.sd)
        shift, sd = self.residual.predict(summary(self.table, genomes), self.table.shares(genomes))
        return mean + shift, sd

    def losses(self, genomes: Genomes) -> Floats:
        """Return the median predicted loss `(n,)` in nats, never negative."""
        return np.asarray(np.maximum(np.exp(self.log(genomes)[0]) - EPSILON, 0.0))


def fit_loss(table: LossTable, genomes: Genomes, losses: Floats) -> LossModel:
    """Calibrate the table on evaluated plans and model what is left.

    Args:
        genomes: `(n, knobs)`, any n; the untouched plan may be among them.
        losses: Their real losses `(n,)` in nats.
    Raises:
        InputError: As `tables.calibrate`.
    """
    sums = table.sums(genomes)
    line = calibrate(sums, losses)
    changed = sums > 0
    if int(changed.sum()) < FEWEST:
        return LossModel(table, line)
    residual = np.log(np.maximum(losses, 0.0) + EPSILON) - line.log(sums)
    rows = genomes[changed]
    return LossModel(table, line, fit_gp(summary(table, rows), table.shares(rows), residual[changed]))


def summary(table: LossTable, genomes: Genomes) -> Floats:
    """Return what the smooth part of the residual may depend on, `(n, features)`.

    The mean level (0 untouched, 1 the last of the menu) of each kind and stage, or of each kind where those are more than 8,
    and a fifth of the log of the added loss.
    """
    space = table.space
    names = [(k.kind, k.place.partition(".")[0]) for k in space.knobs]
    if len(set(names)) > 8:
        names = [(kind, "") for kind, _ in names]
    rows = space.canonical(genomes)
    level = rows / np.maximum(space.sizes - 1, 1)
    means = [level[:, [i for i, n in enumerate(names) if n == name]].mean(axis=1) for name in dict.fromkeys(names)]
    return np.stack([*means, np.log(table.sums(rows) + EPSILON) / 5.0], axis=1)


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted residual.

    Attributes:
        scales: Length scale of each smooth feature, in standard deviations of the training features, 1 or more.
        smooth, linear, noise: Standard deviations of the three parts.
        median_factor: exp of the median absolute error when each plan is left out in turn.
    """

    x: Floats
    shares: Floats
    unit: Floats
    scales: Floats
    smooth: float
    linear: float
    noise: float
    inverse: Floats
    weights: Floats
    median_factor: float

    def predict(self, x: Floats, shares: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation (noise included), `(n,)` each, at features `(n, ...)`."""
        cross = (
            self.smooth**2 * _matern(x / self.unit, self.x / self.unit, self.scales) + self.linear**2 * shares @ self.shares.T
        )
        own = self.smooth**2 + self.linear**2 * np.sum(shares**2, axis=1) + self.noise**2
        variance = own - np.einsum("ij,jk,ik->i", cross, self.inverse, cross, optimize=True)
        return cross @ self.weights, np.sqrt(np.maximum(variance, self.noise**2))


def fit_gp(x: Floats, shares: Floats, y: Floats) -> GaussianProcess:
    """Fit by the largest posterior over a grid: first one length scale for all features, then each in turn.

    Args:
        x: Smooth features `(n, features)`.
        shares: Linear features `(n, choices)`.
        y: Residuals `(n,)`, prior mean 0.
    Raises:
        InputError: No rows, or shapes that do not fit.
    References:
        Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, equations 2.23-2.30, 4.17 and 5.12.
    """
    if not len(y) or len(x) != len(y) or len(shares) != len(y):
        raise must_be(
            "x, shares and y", "of the same length, 1 or more", (len(x), len(shares), len(y)), "Evaluate plans first."
        )
    unit = np.maximum(x.std(axis=0), 0.05)
    scaled = x / unit
    gram = shares @ shares.T
    one = np.ones(x.shape[1])

    def score(scales: Floats, smooth: float, linear: float, noise: float) -> float:
        prior = 0.5 * float(np.sum((np.log(scales / 2.0)) ** 2)) + 0.5 * (math.log(noise / 0.1)) ** 2
        return _log_likelihood(smooth**2 * _matern(scaled, scaled, scales) + linear**2 * gram, noise, y) - prior

    grid = itertools.product((1.0, 2.0, 4.0), (0.1, 0.2, 0.4), (0.0, 0.2, 0.4, 0.8), (0.03, 0.06, 0.12, 0.25))
    length, smooth, linear, noise = max(grid, key=lambda g: score(one * g[0], *g[1:]))
    scales = one * length
    for k in range(len(scales)):
        options = [np.where(np.arange(len(scales)) == k, value, scales) for value in (1.0, 2.0, 4.0, 16.0)]
        scales = max(options, key=lambda s: score(s, smooth, linear, noise))
    kernel = smooth**2 * _matern(scaled, scaled, scales) + linear**2 * gram + noise**2 * np.eye(len(y))
    inverse = np.asarray(np.linalg.inv(kernel), dtype=float)
    weights = inverse @ y
    factor = math.exp(float(np.median(np.abs(weights / np.diag(inverse)))))
    return GaussianProcess(x, shares, unit, scales, smooth, linear, noise, inverse, weights, factor)


def _matern(a: Floats, b: Floats, scales: Floats) -> Floats:
    """Matérn 5/2 correlations `(n, m)` between rows of `a` and `b`."""
    gap = (a[:, None, :] - b[None, :, :]) / scales
    distance = math.sqrt(5.0) * np.sqrt(np.sum(gap**2, axis=2))
    return np.asarray((1.0 + distance + distance**2 / 3.0) * np.exp(-distance))


def _log_likelihood(kernel: Floats, noise: float, y: Floats) -> float:
    """Log density of `y` under a zero-mean Gaussian with this kernel and independent noise."""
    factor = np.linalg.cholesky(kernel + noise**2 * np.eye(len(y)))
    white = np.linalg.solve(factor, y)
    return float(-0.5 * white @ white - np.sum(np.log(np.diag(factor))))
