"""Predict what a plan costs from features that can be read off it.

Whole-model differences between noisy runs are a lottery, so latency is predicted from features (a constant, sums of isolated
operator times, edges between precisions) with nonnegative weights fitted on a few whole models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.search.robust import huber_weights, nonnegative_least_squares

Floats = NDArray[np.float64]
HELD = 1e3
"""Times the usual, by which a weight is held to its prior where the models cannot tell it from the constant."""


@dataclass(frozen=True, slots=True)
class CostFit:
    """Nonnegative weights of the cost features.

    Attributes:
        weights: `(features,)`, in cost units per feature unit.
        median_error: Median relative error when each whole model is left out in turn; None with fewer than 3.
        n: Whole models it was fitted on.
    """

    weights: Floats
    median_error: float | None
    n: int


MOST_MODELS, MOST_LEFT_OUT = 400, 64
"""Models that a fit is made on, and of these left out one by one to see its error: there are far fewer weights."""


def fit_cost(
    features: Floats, costs: Floats, *, noise: Floats | None = None, prior: Floats | None = None, strength: float = 0.05
) -> CostFit:
    """Fit cost = features @ weights, weights >= 0, in relative error, robustly.

    Args:
        features: `(n, features)`, nonnegative; make the first a constant 1.
        costs: Measured costs `(n,)`, positive.
        noise: Relative standard error of each cost, `(n,)`; those known worse than the median one weigh less. None: all alike.
        prior: Weights believed before any measurement, `(features,)`, where directions that the models do not determine
            stay; None when nothing is believed.
        strength: Weight of the prior against one measurement.
    Raises:
        InputError: Shapes that do not fit, no models, a cost that is not positive, or values that are not finite.
    """
    x, y = np.asarray(features, dtype=float), np.asarray(costs, dtype=float)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y) or not np.all(np.isfinite(x)) or not np.all(np.isfinite(y)):
        raise must_be("features and costs", "finite, (n, features) and (n,)", (x.shape, y.shape), "Measure one model or more.")
    if bool(np.any(y <= 0)):
        raise must_be("costs", "positive", y.tolist(), "Leave out what was not measured.")
    start = np.zeros(x.shape[1]) if prior is None else np.asarray(prior, dtype=float)
    strength = 1e-8 if prior is None else strength
    trust = _trust(np.zeros(len(y)) if noise is None else np.asarray(noise, dtype=float))
    some = _spaced(len(y), MOST_MODELS)
    x, y, trust = x[some], y[some], trust[some]
    weights = _fit_relative(x, y, trust, start, strength)
    left_out = None
    if len(y) >= 3:
        errors = []
        for i in _spaced(len(y), MOST_LEFT_OUT):
            keep = np.arange(len(y)) != i
            errors.append(abs(x[i] @ _fit_relative(x[keep], y[keep], trust[keep], start, strength) / y[i] - 1.0))
        left_out = float(np.median(errors))
    return CostFit(weights, left_out, len(y))


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return the places of so many rows, or of `most` evenly spaced ones where there are more."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)


def _trust(noise: Floats) -> Floats:
    """Weight of each measurement: 1 up to the median noise, and beyond it with the inverse of its square."""
    usual = float(np.median(noise))
    return np.asarray(np.minimum(1.0, (usual / np.maximum(noise, 1e-12)) ** 2)) if usual > 0 else np.ones(len(noise))


def _fit_relative(x: Floats, y: Floats, trust: Floats, prior: Floats, strength: float) -> Floats:
    """Reweighted nonnegative least squares on errors relative to the fit, with rows that pull towards `prior`."""
    shares = (x / y[:, None]).mean(axis=0)
    scale = np.where(shares > 0, shares, 1.0)  # what no model has stays as it is believed to be
    alike = (np.ptp(x, axis=0) == 0) & (np.arange(x.shape[1]) > 0) & (len(y) > 1)  # and what all have alike, but a constant
    pull = np.diag(scale * np.where(alike, HELD, 1.0)) * math.sqrt(strength)
    size, weights, solution = y, np.ones(len(y)), prior
    for _ in range(25):
        root = np.sqrt(weights * trust) / size
        left = np.concatenate([x * root[:, None], pull]) / scale
        before, solution = solution, nonnegative_least_squares(left, np.concatenate([y * root, pull @ prior])) / scale
        fitted = x @ solution
        size = np.where(fitted > 0, fitted, y)
        weights = huber_weights((y - fitted) / size, least=0.005)
        if np.allclose(solution, before, rtol=1e-4, atol=0):
            break
    return np.asarray(solution)
