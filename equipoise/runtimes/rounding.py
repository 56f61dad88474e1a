"""Weights as integers: in the order of second moments, and biases that take up the mean error.

Rounding a weight to the nearest level minimizes the error of the weight; what counts is that of the layer's output, on what it
reads. Each column in turn is rounded, and the columns that are left take up the error as well as they can (GPTQ). What is left
of the error has a mean, which goes into the bias.

References:
    Frantar et al. 2022, *GPTQ*, algorithm 1, with the columns in falling order of their second moment.
    Nagel et al. 2019, *Data-free quantization through weight equalization and bias correction*, equation 16: the correction of
    a bias; the mean is over real inputs here, rounded as the layer reads them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DAMP = 0.01
"""Part of the mean second moment that is added to all of them."""
WIDEST = 1200
"""A layer that reads more values for one output is rounded to the nearest: the order would take seconds."""
TINY = 1e-12
"""For a layer that reads nothing but zeros."""
BLOCK = 64
"""Columns whose errors are handed on together."""


def scales(rows: Array, levels: int) -> Array:
    """Return the scale of each row (..., O) of weights (..., O, K): its largest weight is the last level."""
    top = np.abs(rows).max(-1) / levels
    return np.where(top > 0, top, 1.0)


def nearest(rows: Array, scale: Array, levels: int) -> Array:
    """Return the weights (..., O, K) as the nearest integers."""
    return np.clip(np.round(rows / scale[..., None]), -levels, levels)


def ordered(rows: Array, scale: Array, levels: int, moments: Array) -> Array:
    """Return weights (G, O, K) as integers whose product with inputs of these moments (G, K, K) errs least, column by column.

    With ``moments = R R^T``, R upper triangular, the error of a row is ``|e R|^2``: column k adds the square of
    ``e_k R_kk + sum_(i<k) e_i R_ik``, and is rounded so that this is least. These are GPTQ's integers, without an inverse.
    """
    width = rows.shape[2]
    diagonal = np.einsum("gkk->gk", moments)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    damped = moments + ((DAMP * diagonal.mean(1) + TINY)[:, None, None] * np.eye(width)).astype(moments.dtype)
    turned = order[:, ::-1]
    turned_moments = np.take_along_axis(np.take_along_axis(damped, turned[:, :, None], 1), turned[:, None, :], 2)
    upper = np.ascontiguousarray(np.linalg.cholesky(turned_moments)[:, ::-1, ::-1])
    upper /= np.einsum("gkk->gk", upper)[:, None, :].copy()
    exact = np.take_along_axis(rows, order[:, None, :], 2)
    whole, errors = np.empty_like(exact), np.zeros_like(exact)
    for start in range(0, width, BLOCK):
        end = min(width, start + BLOCK)
        owed = errors[..., :start] @ upper[:, :start, start:end]
        for k in range(start, end):
            within = (errors[..., start:k] * upper[:, None, start:k, k]).sum(2)
            wanted = exact[..., k] + owed[..., k - start] + within
            whole[..., k] = np.clip(np.round(wanted / scale), -levels, levels)
            errors[..., k] = exact[..., k] - whole[..., k] * scale
    return np.take_along_axis(whole, np.argsort(order, axis=1)[:, None, :], 2)


def integers(rows: Array, scale: Array, levels: int, columns: Array, *, centred: bool) -> Array:
    """Return weights (G, O, K) as integers for a layer that reads `columns` (G, K, P).

    Args:
        centred: Whether a bias takes up the mean of the error, so that only its spread counts.
    """
    if rows.shape[2] > WIDEST or columns.shape[2] < 2:
        return nearest(rows, scale, levels)
    read = columns - columns.mean(2, keepdims=True) if centred else columns
    return ordered(rows, scale, levels, read @ read.swapaxes(1, 2) / read.shape[2])


def mean_error(rows: Array, columns: Array, whole: Array, scale: Array, rounded: Array) -> Array:
    """Return E[W x] - E[Wq xq] (G, O): what a bias must take up.

    Args:
        rows, columns: Weights (G, O, K) and what they read (G, K, P).
        whole, scale: The integers and their scales (G, O).
        rounded: The columns, rounded as the layer reads them.
    """
    exact = rows @ columns.mean(2, dtype=np.float64)[..., None]
    found = (whole * scale[..., None]) @ rounded.mean(2, dtype=np.float64)[..., None]
    return np.asarray((exact - found)[..., 0])
