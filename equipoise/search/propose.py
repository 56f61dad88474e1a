"""Choose what to evaluate next: first a spread over the predicted front, then the plans that promise the most new volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.pareto import hypervolume, knee
from equipoise.records import Plan
from equipoise.search.evolve import nsga2
from equipoise.search.front import Cost, predicted_front
from equipoise.search.rank import front_mask
from equipoise.search.space import Genomes, Space, distinct
from equipoise.search.surrogate import LossModel
from equipoise.search.tables import EPSILON

T = TypeVar("T")
Floats = NDArray[np.float64]

Excess = Callable[[Genomes], Floats]
"""Genomes `(n, knobs)` -> predicted relative excess over each bound `(n, bounds)`, 0 where it holds."""

SOFTNESS = 0.05
"""A relative excess over the budget that divides the worth of a candidate by e."""


@dataclass(frozen=True)
class Evaluated:
    """What is known by now.

    Attributes:
        genomes: `(n, knobs)`.
        costs: `(n, costs)`, measured, positive.
        losses: `(n,)`, nats.
    """

    genomes: Genomes
    costs: Floats
    losses: Floats


def first_points(
    space: Space, front: Genomes, costs: Floats, losses: Floats, *, n: int = 14, focus: float | None = None
) -> list[Plan]:
    """Pick up to `n` plans of a predicted front, evenly in log cost but denser around the focus.

    Args:
        front: Genomes `(m, knobs)`, without the untouched plan if that is already measured.
        costs: Predicted first cost of each `(m,)`, positive.
        losses: Predicted loss of each `(m,)`.
        focus: The cost to be dense around, such as a latency bound; None for the predicted knee.
        n: 1 or more.
    Raises:
        InputError: An empty front, or n below 1.
    """
    if not len(front) or n < 1:
        raise must_be("front and n", "one or more", (len(front), n), "Solve the predicted front first.")
    logs = np.log(costs)
    if focus is None:
        focus = float(costs[knee(np.stack([logs, losses], axis=1).tolist()).index])
    warped = _warp(logs, logs, focus, dense=0.6)
    chosen: dict[int, None] = {}
    for target in np.linspace(warped.min(), warped.max(), n):
        free = np.array([i for i in range(len(front)) if i not in chosen], dtype=np.int64)
        if len(free):
            chosen[int(free[np.argmin(np.abs(warped[free] - target))])] = None
    return [space.decode(front[i]) for i in sorted(chosen, key=lambda i: float(costs[i]))]


def halving(plans: Sequence[T]) -> list[T]:
    """Return plans, or what was measured of them, in the order in which to try them.

    The middle one, the middles of what comes after and before it, and so on.

    So wherever the time ends, those that were tried are spread over all, and the first is no extreme.
    """
    order, parts = [], [(0, len(plans))]
    while parts:
        low, high = parts.pop(0)
        if low < high:
            middle = (low + high) // 2
            order.append(plans[middle])
            parts += [(middle + 1, high), (low, middle)]
    return order


def propose(
    space: Space,
    model: LossModel,
    costs: Sequence[Cost],
    evaluated: Evaluated,
    *,
    rng: np.random.Generator,
    q: int = 8,
    worst_loss: float = 1.0,
    excess: Excess | None = None,
    focus: float | None = None,
    generations: int = 60,
) -> list[Plan]:
    """Return up to `q` plans not evaluated yet, the most promising first.

    NSGA-II over the predicted costs and an optimistic loss (one standard deviation below the mean), seeded with the solved
    front and the best evaluated plans, gives the candidates; the batch is filled greedily by expected hypervolume improvement
    over the measured front, each pick counting as if it came out as predicted. One pick of 8 is drawn at random from the
    candidates' front instead, against a model that is wrong everywhere alike.

    Args:
        model: The loss model, refitted on `evaluated`.
        costs: One or more cost models; the first is the one `focus` speaks of.
        rng: The only randomness; see `evolve.nsga2` for one that survives a restart.
        worst_loss: Nats beyond which a plan is of no interest: the loss axis of the reference point.
        excess: The budget; plans that break it are worth less the more they do. None for no budget.
        focus: Value of the first cost, such as its bound, around which volume counts more. None to count evenly in log cost.
        generations: Of the search over the models.
    Returns:
        Fewer than `q` plans only when the space has no more.
    Raises:
        InputError: Nothing evaluated yet, or q below 1.
    """
    if not len(evaluated.genomes) or q < 1:
        raise must_be("evaluated and q", "one or more", (len(evaluated.genomes), q), "Evaluate first_points() first.")
    bounds = _no_bounds if excess is None else excess

    def score(genomes: Genomes) -> tuple[Floats, Floats]:
        mean, sd = model.log(genomes)
        paid = np.stack([c.many(genomes) for c in costs], axis=1)
        hoped = np.maximum(np.exp(mean - sd) - EPSILON, 0.0)
        beyond = np.maximum(hoped / worst_loss - 1.0, 0.0)
        objectives = np.concatenate([np.log(paid), hoped[:, None]], axis=1)
        return objectives, np.concatenate([bounds(genomes), beyond[:, None]], axis=1)

    best = front_mask(np.concatenate([evaluated.costs, evaluated.losses[:, None]], axis=1))
    seeds = np.concatenate([_thin(predicted_front(space, model.table, costs), 60), _thin(evaluated.genomes[best], 40)])
    found = nsga2(space, score, rng=rng, seeds=seeds, generations=generations)
    known = {row.tobytes() for row in space.canonical(evaluated.genomes)}
    candidates = distinct(np.concatenate([found.genomes, space.canonical(seeds)]))
    candidates = candidates[[row.tobytes() not in known for row in candidates]]
    picks = _greedy(model, costs, evaluated, candidates, rng=rng, q=q, worst_loss=worst_loss, bounds=bounds, focus=focus)
    plans = [space.decode(candidates[i]) for i in picks]
    return plans + _fill(space, rng, known | {candidates[i].tobytes() for i in picks}, q - len(picks))


def _greedy(
    model: LossModel,
    costs: Sequence[Cost],
    evaluated: Evaluated,
    candidates: Genomes,
    *,
    rng: np.random.Generator,
    q: int,
    worst_loss: float,
    bounds: Excess,
    focus: float | None,
) -> list[int]:
    """Indices of the picked candidates, in order."""
    if not len(candidates):
        return []
    mean, sd = model.log(candidates)
    paid = np.stack([c.many(candidates) for c in costs], axis=1)
    middle = np.maximum(np.exp(mean) - EPSILON, 0.0)
    worth = np.exp(-np.sum(bounds(candidates), axis=1) / SOFTNESS)
    logs = np.log(evaluated.costs)
    axes = np.log(paid)
    if focus is not None:
        axes[:, 0], logs[:, 0] = (_warp(v, logs[:, 0], focus, dense=0.9) for v in (axes[:, 0], logs[:, 0]))
    points, losses = logs, evaluated.losses
    reference = logs.max(axis=0)
    picks: list[int] = []
    free = np.ones(len(candidates), dtype=bool)
    surrogate_front = front_mask(np.concatenate([axes, middle[:, None]], axis=1))
    random_turns = set(rng.choice(q, size=q // 8, replace=False).tolist())
    while len(picks) < min(q, len(candidates)):
        gain = worth * expected_improvement(axes, mean, sd, points, losses, reference=reference, worst_loss=worst_loss)
        open_front = np.flatnonzero(free & surrogate_front & (worth > 0.5))
        if len(picks) in random_turns and len(open_front):
            pick = int(rng.choice(open_front))
        else:
            pick = int(np.argmax(np.where(free, gain, -1.0)))
        picks.append(pick)
        free[pick] = False
        points = np.concatenate([points, axes[pick : pick + 1]])
        losses = np.append(losses, middle[pick])
    return picks


def expected_improvement(
    axes: Floats, mean: Floats, sd: Floats, points: Floats, losses: Floats, *, reference: Floats, worst_loss: float
) -> Floats:
    """Return the expected hypervolume `(n,)` that each candidate adds, in closed form.

    Costs are taken as known and log(loss + `tables.EPSILON`) as normal, so the gain is a sum, over the cells of the cost plane,
    of the cell's size times the expected amount by which the candidate undercuts the best loss there.

    Args:
        axes: Cost coordinates of the candidates `(n, costs)`, on any scale.
        mean, sd: Of log(loss + epsilon), `(n,)` each.
        points: Cost coordinates of what is evaluated `(m, costs)`, on the same scale.
        losses: Their losses `(m,)`, nats.
        reference: Worst coordinate on each cost `(costs,)`.
        worst_loss: Worst loss, nats.
    """
    lengths = []
    corners = []
    for k in range(axes.shape[1]):
        low = min(float(axes[:, k].min()), float(points[:, k].min()))
        inner = points[points[:, k] < reference[k], k]
        edges = np.unique(np.concatenate([[low], inner, [max(reference[k], low)]]))
        starts, ends = edges[:-1], edges[1:]
        lengths.append(np.maximum(ends - np.maximum(starts, axes[:, k, None]), 0.0))  # (n, cells)
        corners.append(starts)
    grid = np.stack(np.meshgrid(*corners, indexing="ij"), axis=-1).reshape(-1, axes.shape[1])
    reached = np.all(points[None] <= grid[:, None], axis=2)
    envelope = np.minimum(np.where(reached, losses[None], np.inf).min(axis=1), worst_loss)
    size = lengths[0]
    for more in lengths[1:]:
        size = (size[:, :, None] * more[:, None, :]).reshape(len(axes), -1)
    levels, which = np.unique(envelope, return_inverse=True)
    undercut = _expected_undercut(levels[None], mean[:, None], sd[:, None])
    return np.asarray(np.einsum("nc,nc->n", size, undercut[:, which]))


def _expected_undercut(level: Floats, mean: Floats, sd: Floats) -> Floats:
    """E[max(level - Y, 0)] with log(Y + epsilon) normal; for Y + epsilon this is the price of a put."""
    strike = level + EPSILON
    d = (np.log(strike) - mean) / sd
    return np.asarray(np.maximum(strike * _normal_cdf(d) - np.exp(mean + sd**2 / 2) * _normal_cdf(d - sd), 0.0))


def _normal_cdf(x: Floats) -> Floats:
    """Standard normal distribution function, to 1e-7 (Abramowitz and Stegun 26.2.17)."""
    t = 1.0 / (1.0 + 0.2316419 * np.abs(x))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-np.minimum(x**2, 1400.0) / 2) / math.sqrt(2 * math.pi) * series
    return np.asarray(np.where(x >= 0, 1.0 - tail, tail))


def converged(volumes: Sequence[float], *, rounds: int = 2, share: float = 0.005) -> bool:
    """Whether the last `rounds` rounds together added less than `share` of the hypervolume before them.

    Args:
        volumes: Hypervolume after each round so far, oldest first, nonnegative.
    """
    if len(volumes) <= rounds:
        return False
    before = volumes[-1 - rounds]
    return volumes[-1] - before <= share * before  # also where nothing was ever gained


def front_volume(evaluated: Evaluated, *, worst_loss: float) -> float:
    """Return the hypervolume of what is evaluated, in log cost times nats, up to the largest costs and `worst_loss`."""
    logs = np.log(evaluated.costs)
    points = np.concatenate([logs, evaluated.losses[:, None]], axis=1)
    return hypervolume(points[front_mask(points)].tolist(), [*logs.max(axis=0).tolist(), worst_loss])


def _warp(values: Floats, span: Floats, focus: float, *, dense: float) -> Floats:
    """Stretch log costs around `focus`: 0..1 over `span`, with the share `dense` of the length within about a tenth of it."""
    low, high = float(span.min()), float(span.max())
    unit = max(high - low, 1e-9)
    u = (values - low) / unit
    gap = (u - (math.log(focus) - low) / unit) / 0.1
    laplace = np.where(gap < 0, 0.5 * np.exp(np.minimum(gap, 0)), 1.0 - 0.5 * np.exp(-np.maximum(gap, 0)))
    return np.asarray((1 - dense) * u + dense * laplace)


def _thin(genomes: Genomes, n: int) -> Genomes:
    """Keep at most `n` rows, evenly spaced."""
    if len(genomes) <= n:
        return genomes
    return np.asarray(genomes[np.unique(np.linspace(0, len(genomes) - 1, n).round().astype(np.int64))])


def _fill(space: Space, rng: np.random.Generator, known: set[bytes], n: int) -> list[Plan]:
    """Up to `n` random plans that are not known, in a bounded number of draws."""
    plans: list[Plan] = []
    for genome in space.sample(rng, n=50 * n) if n > 0 else ():
        if len(plans) < n and genome.tobytes() not in known:
            known.add(genome.tobytes())
            plans.append(space.decode(genome))
    return plans


def _no_bounds(genomes: Genomes) -> Floats:
    return np.zeros((len(genomes), 0))
