"""Compare points on several axes at once: who is beaten, how much the rest covers, and where the bend is.

Every axis is minimized; a point is a sequence of floats, and all points of a call have the same number of axes. Point `a`
dominates `b` when it is no worse on every axis and better on at least one, so equal points never dominate each other and
every copy of a non-dominated point is kept. NaN is refused everywhere: an unknown has no place in a ranking.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

from equipoise.errors import must_be

Point = Sequence[float]


@dataclass(frozen=True, slots=True)
class Knee:
    """The point where paying more on one axis stops buying much on the other.

    Attributes:
        index: Which of the given points.
        votes: Rule -> index it chose, for ``kneedle``, ``bend`` and ``hypervolume``; empty when the front has no bend.
        rule: In words, how the votes became `index`.
        stability: Share of noisy redraws of the points in which `index` wins again; None when no noise was given.
    """

    index: int
    votes: Mapping[str, int] = field(default_factory=dict)
    rule: str = ""
    stability: float | None = None


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Return the indices, rising, of the points that no other point dominates.

    Raises:
        InputError: A NaN, or points with different numbers of axes.
    """
    axes = _check(points)
    order = sorted(range(len(points)), key=lambda i: tuple(points[i]))  # a dominator always comes before what it beats
    if axes == 2:
        return sorted(_sweep(points, order))
    kept: list[int] = []
    for i in order:
        if not any(_dominates(points[j], points[i]) for j in kept):
            kept.append(i)
    return sorted(kept)


def sort_fronts(points: Sequence[Point]) -> list[list[int]]:
    """Return the indices layer by layer: the non-dominated, then those that only the first layer beats, and so on.

    Raises:
        InputError: As `non_dominated`.
    """
    _check(points)
    left = list(range(len(points)))
    fronts: list[list[int]] = []
    while left:
        front = [left[i] for i in non_dominated([points[i] for i in left])]
        fronts.append(front)
        gone = set(front)
        left = [i for i in left if i not in gone]
    return fronts


def crowding(points: Sequence[Point]) -> list[float]:
    """Return each point's crowding distance: the summed gap between its neighbors, axis by axis, as a share of the range.

    The ends of every axis get infinity, so that they are kept; an axis on which all points are equal counts nothing.

    Raises:
        InputError: As `non_dominated`, or an infinite value.
    References:
        Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III-B.
    """
    axes = _check(points)
    _check_finite(points)
    distance = [0.0] * len(points)
    for axis in range(axes):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        low, high = points[order[0]][axis], points[order[-1]][axis]
        if low == high:
            continue
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            distance[here] += (points[after][axis] - points[before][axis]) / (high - low)
    return distance


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the exact volume that `points` dominate up to `reference`, in the product of the axes' units.

    Args:
        points: Any number of points, dominated ones allowed; a point that is not better than `reference` on every axis adds 0.
        reference: The worst corner; its length is the number of axes (1 or more).
    Raises:
        InputError: A NaN, minus infinity, an infinite reference, or lengths that differ.
    Limits:
        Exponential in the number of axes in the worst case: instant to 1,000 points on two axes, 100 on four.
    References:
        The recursion slices on the last axis and limits the others by the new point, as in While, Bradstreet and Barone,
        "A fast way of calculating exact hypervolumes", 2012.
    """
    _check([*points, reference])
    if not reference or not all(math.isfinite(r) for r in reference):
        raise must_be("reference", "a finite number on every axis", tuple(reference), "Use the worst corner that still counts.")
    if any(v == -math.inf for p in points for v in p):
        raise must_be("points", "bounded below", -math.inf, "A point at minus infinity dominates an infinite volume.")
    gains = [tuple(r - v for v, r in zip(p, reference, strict=True)) for p in points]
    return _volume([g for g in gains if min(g) > 0])


def exclusive_hypervolume(points: Sequence[Point], reference: Point) -> list[float]:
    """Return for each point the volume that only it dominates (0 for dominated points and for copies).

    Raises:
        InputError: As `hypervolume`.
    """
    whole = hypervolume(points, reference)
    return [max(0.0, whole - hypervolume([*points[:i], *points[i + 1 :]], reference)) for i in range(len(points))]


def knee(
    points: Sequence[Point], *, errors: Sequence[float] | None = None, rng: random.Random | None = None, draws: int = 200
) -> Knee:
    """Pick the knee of a two-axis front by three votes.

    Both axes are scaled to 0..1 over the non-dominated points. *kneedle* votes for the point farthest below the straight line
    between the ends, *bend* for the sharpest convex turn, *hypervolume* for the point that alone dominates the most. The knee
    is the middle vote along the front, which is the majority wherever two agree. A front without a bend (fewer than three
    points, straight, or bulging outwards everywhere) has no votes, and its best point on the last axis is returned.

    Args:
        points: Two axes, minimized; dominated points are ignored. Pass cost as its logarithm, quality last.
        errors: One standard error per axis, in the axis's units, for `stability`.
        rng: Source of the redraws; needed with `errors`.
        draws: Redraws for `stability`.
    Raises:
        InputError: No points, not two axes, infinite values, NaN, or `errors` without `rng`.
    References:
        Satopää et al., "Finding a kneedle in a haystack", 2011, for the first vote.
    """
    if not points or _check(points) != 2:
        raise must_be("points", "one or more points with two axes", points, "Choose the two axes to balance.")
    _check_finite(points)
    picked = _knee_once(points)
    if errors is None:
        return picked
    if rng is None or len(errors) != 2 or not all(e >= 0 for e in errors):
        raise must_be("errors", "two standard errors, given with rng", errors, "Pass knee(points, errors=(e1, e2), rng=...).")
    same = 0
    for _ in range(draws):
        noisy = [tuple(rng.gauss(v, e) for v, e in zip(p, errors, strict=True)) for p in points]
        same += _knee_once(noisy).index == picked.index
    return Knee(picked.index, picked.votes, picked.rule, same / draws)


def _knee_once(points: Sequence[Point]) -> Knee:
    """Vote on one set of points."""
    front = _strict_front(points)
    quality_first = front[-1]  # the front falls along the last axis
    if len(front) < 3:
        return Knee(quality_first, {}, f"no bend on {len(front)} point{'s' * (len(front) > 1)}: best on the last axis")
    x = _scaled([points[i][0] for i in front])
    y = _scaled([points[i][1] for i in front])
    inner = range(1, len(front) - 1)
    scores = {
        "kneedle": [1 - x[i] - y[i] for i in inner],
        "bend": [_turn(x, y, i) for i in inner],
        "hypervolume": [(x[i + 1] - x[i]) * (y[i - 1] - y[i]) for i in inner],
    }
    tiny = 1e-12
    if max(scores["bend"]) <= tiny or max(scores["kneedle"]) <= tiny:
        return Knee(quality_first, {}, "no convex bend: best on the last axis")
    places = {rule: 1 + max(range(len(s)), key=s.__getitem__) for rule, s in scores.items()}
    chosen = median_low(places.values())
    agree = sum(place == chosen for place in places.values())
    rule = f"{agree} of 3 votes agree" if agree > 1 else "three different votes: the middle one along the front"
    return Knee(front[chosen], {name: front[place] for name, place in places.items()}, rule)


def _turn(x: Sequence[float], y: Sequence[float], i: int) -> float:
    """Angle in radians by which a falling front flattens at `i`; negative where it bulges outwards."""
    before = math.atan2(y[i] - y[i - 1], x[i] - x[i - 1])
    after = math.atan2(y[i + 1] - y[i], x[i + 1] - x[i])
    return after - before


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low) for v in values]


def _strict_front(points: Sequence[Point]) -> list[int]:
    """Non-dominated indices of two-axis points, rising on the first axis, one for each set of equal points."""
    order = sorted(range(len(points)), key=lambda i: tuple(points[i]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def _sweep(points: Sequence[Point], order: Sequence[int]) -> list[int]:
    """Two axes: walk up the first, keep what improves the second or equals the last kept point."""
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] < points[kept[-1]][1] or tuple(points[i]) == tuple(points[kept[-1]]):
            kept.append(i)
    return kept


def _dominates(a: Point, b: Point) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def _volume(gains: Sequence[tuple[float, ...]]) -> float:
    """Volume of the union of boxes from the origin to each of `gains` (all positive)."""
    if not gains:
        return 0.0
    if len(gains[0]) == 1:
        return max(g[0] for g in gains)
    if len(gains[0]) == 2:
        total = reached = 0.0
        for wide, tall in sorted(gains, reverse=True):
            if tall > reached:
                total += wide * (tall - reached)
                reached = tall
        return total
    total = 0.0
    seen: list[tuple[float, ...]] = []  # without their last axis, on which each is at least as long as the next
    for *rest, last in sorted(_longest(gains), key=lambda g: g[-1], reverse=True):
        base = tuple(rest)
        covered = [tuple(map(min, base, other)) for other in seen]
        total += last * (math.prod(base) - _volume(_longest(covered)))
        seen.append(base)
    return total


def _longest(gains: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Leave out boxes that lie inside another, and copies."""
    kept: list[tuple[float, ...]] = []
    for box in sorted(set(gains), reverse=True):
        if not any(all(a >= b for a, b in zip(other, box, strict=True)) for other in kept):
            kept.append(box)
    return kept


def _check(points: Sequence[Point]) -> int:
    """Return the number of axes (0 without points)."""
    axes = len(points[0]) if points else 0
    for point in points:
        if len(point) != axes:
            raise must_be("points", f"of the same length, {axes}", tuple(point), "Give every point a value on every axis.")
        if any(math.isnan(v) for v in point):
            raise must_be("points", "free of NaN", tuple(point), "Leave out what was not measured.")
    return axes


def _check_finite(points: Sequence[Point]) -> None:
    for point in points:
        if not all(math.isfinite(v) for v in point):
            raise must_be("points", "finite", tuple(point), "Leave out what was not measured.")
