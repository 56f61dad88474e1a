"""Non-dominated sorting of matrices, with feasibility first. Minimizes; the pure-python reference is `equipoise.pareto`."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def front_mask(objectives: Floats) -> Bools:
    """Return which rows of `objectives` `(n, axes)` no other row dominates; of equal rows only the first is kept."""
    order = np.lexsort(objectives.T[::-1])  # nothing is dominated by, or copies, what comes after it
    rows = objectives[order]
    out = np.zeros(len(objectives), dtype=bool)
    out[order] = _stairs(rows) if rows.shape[1] == 3 else _peeled(rows)
    return out


def _peeled(rows: Floats) -> Bools:
    """`front_mask` of sorted rows: the row that may dominate the most goes first, and what it dominates is gone."""
    mask = np.zeros(len(rows), dtype=bool)
    places = np.stack([np.unique(column, return_inverse=True)[1] for column in rows.T], axis=1)
    order = np.argsort(-np.prod(1.0 - places / max(len(rows), 1), axis=1), kind="stable")  # still nothing before its dominator
    left = np.ascontiguousarray(rows[order].T)
    while len(order):
        mask[order[0]] = True
        better = left[0] < left[0, 0]
        for column in left[1:]:
            better |= column < column[0]
        order, left = order[better], left[:, better]
    return mask


def _stairs(rows: Floats) -> Bools:
    """`front_mask` of sorted rows of three axes: what came before is a staircase in the other two.

    References:
        Kung, Luccio and Preparata 1975, "On finding the maxima of a set of vectors".
    """
    mask = np.zeros(len(rows), dtype=bool)
    seconds: list[float] = []  # rising
    thirds: list[float] = []  # falling
    for i, (second, third) in enumerate(rows[:, 1:].tolist()):
        place = bisect_right(seconds, second)
        if place and thirds[place - 1] <= third:
            continue
        mask[i] = True
        first = place - 1 if place and seconds[place - 1] == second else place
        while place < len(thirds) and thirds[place] >= third:
            place += 1
        seconds[first:place], thirds[first:place] = [second], [third]
    return mask


def domination(objectives: Floats, excess: Floats) -> Bools:
    """Return `(n, n)`: whether row i dominates row j, constraints first.

    A row that breaks no bound dominates every row that breaks one; two that break some are compared by their excesses alone.

    Args:
        objectives: `(n, axes)`.
        excess: `(n, bounds)`, by how much each bound is broken, 0 where it holds; `bounds` may be 0.
    """
    feasible = ~np.any(excess > 0, axis=1)
    both = feasible[:, None] & feasible[None, :]
    neither = ~feasible[:, None] & ~feasible[None, :]
    result: Bools = (feasible[:, None] & ~feasible[None, :]) | (both & _beats(objectives)) | (neither & _beats(excess))
    return result


def _beats(values: Floats) -> Bools:
    """Plain domination between the rows of one matrix, `(n, n)`."""
    n, axes = values.shape
    no_worse = np.ones((n, n), dtype=bool)
    better = np.zeros((n, n), dtype=bool)
    for k in range(axes):
        column = values[:, k]
        no_worse &= column[:, None] <= column[None, :]
        better |= column[:, None] < column[None, :]
    return no_worse & better


def ranks(dominates: Bools, *, enough: int) -> NDArray[np.int64]:
    """Return the layer of each row (0 = dominated by none); rows past the layer that completes `enough` get the next number."""
    n = len(dominates)
    out = np.full(n, n, dtype=np.int64)
    left = dominates.sum(axis=0)
    done = 0
    for layer in range(n):
        front = (left == 0) & (out == n)
        out[front] = layer
        done += int(front.sum())
        left = left - dominates[front].sum(axis=0)
        if done >= min(enough, n):
            out[out == n] = layer + 1
            break
    return out


def survivors(objectives: Floats, excess: Floats, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the `count` best rows, the best first, and their ranks.

    Whole fronts are kept while they fit, then the least crowded of the next.
    """
    rank = ranks(domination(objectives, excess), enough=count)
    alone = np.empty(len(rank))
    for layer in range(int(rank.max(initial=0)) + 1):
        rows = rank == layer
        alone[rows] = crowding(objectives[rows])
    kept = np.lexsort((-alone, rank))[:count]
    return kept, rank[kept]


def crowding(objectives: Floats) -> Floats:
    """Return the crowding distance of each row among `objectives` `(n, axes)`; infinite at the ends of every axis."""
    n, axes = objectives.shape
    distance = np.zeros(n)
    for k in range(axes):
        order = np.argsort(objectives[:, k], kind="stable")
        column = objectives[order, k]
        if n == 0 or column[0] == column[-1]:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[2:] - column[:-2]) / (column[-1] - column[0])
    return distance
