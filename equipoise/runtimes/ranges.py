"""Which range of a tensor its 256 levels are spread over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEVELS = 255
STEPS = 40
"""Ranges that are tried between a fifth of minimum and maximum, and all of it."""
LEFT_OUT = 1e-4
"""Share of the values that a percentile leaves out at each end."""


def minmax(low: float, high: float, values: Array) -> tuple[float, float]:
    """Return the whole range; `values` do not count."""
    return low, high


def percentile(low: float, high: float, values: Array) -> tuple[float, float]:
    """Return the range without the outermost 0.01 % of the values at each end."""
    least, most = np.quantile(values, (LEFT_OUT, 1 - LEFT_OUT))
    return min(0.0, float(least)), max(0.0, float(most))


def least_error(low: float, high: float, values: Array) -> tuple[float, float]:
    """Return the range, of those that shrink minimum and maximum alike, with the least squared rounding error of `values`."""
    shares = np.linspace(0.2, 1.0, STEPS)[::-1]
    errors = [float(np.square(rounded(values, low * share, high * share) - values).mean()) for share in shares]
    best = float(shares[int(np.argmin(errors))])
    return low * best, high * best


RULES: Mapping[str, Callable[[float, float, Array], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": least_error,
}
"""Name -> ``(low, high, values) -> (low, high)``: low is at most 0 and high at least 0, before and after."""


def rounded(values: Array, low: float, high: float) -> Array:
    """Return `values` on the 256 levels of a range, of which one is exactly zero."""
    scale = (high - low) / LEVELS
    if scale <= 0:
        return np.zeros_like(values)
    zero = np.round(-low / scale)
    whole = np.clip(np.round(values / scale) + zero, 0, LEVELS) - zero
    return np.asarray(whole * scale, values.dtype)
