"""Least squares that outliers and signs cannot spoil."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def huber_weights(residual: Floats, *, least: float) -> Floats:
    """Return weights of 1 up to 1.345 robust standard deviations, falling as 1/distance beyond.

    Args:
        residual: `(n,)`.
        least: The smallest standard deviation to believe, in the unit of `residual`.
    """
    scale = max(1.4826 * float(np.median(np.abs(residual))), least)
    return np.asarray(np.minimum(1.0, 1.345 * scale / np.maximum(np.abs(residual), 1e-300)))


def nonnegative_least_squares(a: Floats, b: Floats) -> Floats:
    """Return x >= 0 with the least ``|a x - b|``, by active sets.

    Args:
        a: `(n, m)`.
        b: `(n,)`.
    References:
        Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23.
    """
    m = a.shape[1]
    x = np.zeros(m)
    free = np.zeros(m, dtype=bool)
    tiny = 1e-12 * (1.0 + float(np.abs(a.T @ b).max(initial=0.0)))
    for _ in range(3 * m + 10):
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        if not np.any(gradient > tiny):
            break
        free[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros(m)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            if bool(np.all(trial[free] > 0)):
                break
            sinking = free & (trial <= 0)
            step = float(np.min(x[sinking] / np.maximum(x[sinking] - trial[sinking], 1e-300)))
            x = x + step * (trial - x)
            free &= x > 1e-300
            if not np.any(free):
                trial = np.zeros(m)
                break
        x = trial
    return x
