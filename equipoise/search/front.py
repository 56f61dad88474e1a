"""The predicted front, solved exactly from the tables instead of searched.

When each unit's choices add their own loss and cost, the best sum for *every* budget at once is a dynamic program over units
that carries all non-dominated (cost, loss) pairs. What does not add (products of widths, precision edges, the runtime) is met
by solving around several base plans and checking every solution with the full model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.search.rank import front_mask
from equipoise.search.space import Genomes, Space
from equipoise.search.tables import LossTable

Floats = NDArray[np.float64]

UNIT_LIMIT = 4096
"""Joint choices that knobs tied by mootness may span before they are treated apart."""


class Cost(Protocol):
    """A cost that can be predicted for many plans, as `fit_cost`'s weights do from features."""

    def many(self, genomes: Genomes) -> Floats:
        """Return the costs `(n,)` of `genomes` `(n, knobs)`."""


@dataclass(frozen=True)
class Solution:
    """The whole front of an additive problem, cheapest first.

    Attributes:
        choices: `(n, units)` choice of each unit.
        costs, losses: `(n,)` sums; costs rise, losses fall.
        slack: No solution with a lower loss exists at a cost lower by more than this; 0 means exact.
    """

    choices: NDArray[np.int64]
    costs: Floats
    losses: Floats
    slack: float


def solve(losses: Sequence[Floats], costs: Sequence[Floats], *, labels: int = 2000) -> Solution:
    """Return every non-dominated (total cost, total loss) over one choice per unit.

    Exact while no stage has more than `labels` non-dominated partial sums. Beyond that, one of each `labels` equal intervals of
    cost is kept, the one with the least loss, so sums stay true and only `slack` is given up.

    Args:
        losses: For each unit the added loss of its choices, `(choices,)`.
        costs: The same for cost; negative values are fine.
        labels: Partial sums kept, 2 or more.
    Raises:
        InputError: Tables that do not match or are empty, or too few labels.
    References:
        Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation", 1969.
    """
    if len(losses) != len(costs) or any(len(a) != len(b) or not len(a) for a, b in zip(losses, costs, strict=False)):
        raise must_be(
            "losses and costs", "of the same shape, one or more choices a unit", (len(losses), len(costs)), "Match them."
        )
    if labels < 2:
        raise must_be("labels", "2 or more", labels, "2000 is plenty.")
    cost, loss, slack = np.zeros(1), np.zeros(1), 0.0
    trail: list[NDArray[np.int64]] = []
    for unit_loss, unit_cost in zip(losses, costs, strict=True):
        all_costs = np.add.outer(cost, np.asarray(unit_cost, dtype=float)).ravel()
        all_losses = np.add.outer(loss, np.asarray(unit_loss, dtype=float)).ravel()
        kept = _staircase(all_costs, all_losses)
        if len(kept) > labels:
            width = float(all_costs[kept[-1]] - all_costs[kept[0]]) / (labels - 1)
            kept = _thinned(kept, all_costs[kept], labels - 1)
            slack += width
        cost, loss = all_costs[kept], all_losses[kept]
        trail.append(kept)
    choices = np.empty((len(cost), len(losses)), dtype=np.int64)
    at = np.arange(len(cost))
    for unit in range(len(losses) - 1, -1, -1):
        at, choices[:, unit] = np.divmod(trail[unit][at], len(losses[unit]))
    return Solution(choices, cost, loss, slack)


def _staircase(costs: Floats, losses: Floats) -> NDArray[np.int64]:
    """Indices of the non-dominated pairs, by rising cost, one for each cost."""
    order = np.argsort(costs, kind="stable")
    sorted_losses = losses[order]
    best = np.minimum.accumulate(sorted_losses)
    better = np.ones(len(order), dtype=bool)
    better[1:] = sorted_losses[1:] < best[:-1]
    kept = order[better]
    last = np.ones(len(kept), dtype=bool)  # of equal costs the last has the least loss
    last[:-1] = costs[kept[1:]] > costs[kept[:-1]]
    return np.asarray(kept[last])


def _thinned(kept: NDArray[np.int64], costs: Floats, buckets: int) -> NDArray[np.int64]:
    """Keep the cheapest and, of each bucket of cost, the pair with the least loss (the last)."""
    bucket = np.minimum((costs - costs[0]) / (costs[-1] - costs[0]) * buckets, buckets - 1).astype(np.int64)
    last = np.ones(len(kept), dtype=bool)
    last[:-1] = bucket[1:] != bucket[:-1]
    last[0] = True
    return np.asarray(kept[last])


def predicted_front(
    space: Space, table: LossTable, costs: Sequence[Cost], *, labels: int = 2000, passes: int = 2, directions: int = 12
) -> Genomes:
    """Return the genomes `(n, knobs)` that the tables predict to be non-dominated in added loss and every cost.

    For each choice of the knobs of the whole model (those without a place, such as ``runtime``), and for mixes of the costs,
    the additive problem is solved around the untouched plan and again around the middle of what was found. All solutions
    are then judged by the full models, so no point is on the front by rounding. Sorted by the first cost.

    Args:
        costs: One or more models.
        labels: See `solve`.
        passes: Base plans for each mix.
        directions: Mixes of two costs; for more costs, a simplex lattice of at least as many.
    Raises:
        InputError: No costs.
    """
    if not costs:
        raise must_be("costs", "one or more", costs, "Give the cost models to trade against the loss.")
    found = [np.zeros((1, len(space.knobs)), dtype=np.int64)]
    units = _units(space)
    loss_columns = [sum_columns(table, columns, combos) for columns, combos in units]
    for start in _globals(space):
        base_costs = [float(c.many(start[None])[0]) for c in costs]
        for mix in _mixes(len(costs), directions):
            base = start
            for _ in range(passes):
                deltas = [
                    _deltas(columns, combos, base, costs, [m / b for m, b in zip(mix, base_costs, strict=True)])
                    for columns, combos in units
                ]
                rows = _assemble(solve(loss_columns, deltas, labels=labels).choices, units, start)
                found.append(rows)
                base = rows[len(rows) // 2]
    genomes = np.unique(space.canonical(np.concatenate(found)), axis=0)
    values = np.stack([*(c.many(genomes) for c in costs), table.sums(genomes)], axis=1)
    best = np.flatnonzero(front_mask(values))
    return np.asarray(genomes[best[np.argsort(values[best, 0], kind="stable")]])


def sum_columns(table: LossTable, columns: Sequence[int], combos: Genomes) -> Floats:
    """Return the added loss of each joint choice `(combos, columns)` of some knobs."""
    return np.asarray(sum(table.columns[k][combos[:, j]] for j, k in enumerate(columns)), dtype=float)


def _deltas(columns: Sequence[int], combos: Genomes, base: Genomes, costs: Sequence[Cost], mix: Sequence[float]) -> Floats:
    """Mixed cost of each joint choice of one unit, the others as in `base`, less that of the first choice."""
    rows = np.repeat(base[None], len(combos), axis=0)
    rows[:, columns] = combos
    total = np.asarray(sum(m * c.many(rows) for m, c in zip(mix, costs, strict=True) if m), dtype=float)
    return np.asarray(total - total[0])


def _assemble(choices: NDArray[np.int64], units: Sequence[tuple[list[int], Genomes]], start: Genomes) -> Genomes:
    """Turn choices of units into genomes; knobs of the whole model as in `start`."""
    rows = np.repeat(start[None], len(choices), axis=0)
    for unit, (columns, combos) in enumerate(units):
        rows[:, columns] = combos[choices[:, unit]]
    return rows


def _units(space: Space) -> list[tuple[list[int], Genomes]]:
    """Group local knobs that mootness ties together: (columns, distinct joint choices), untouched first."""
    local = [i for i, k in enumerate(space.knobs) if k.place]
    group = {i: {i} for i in local}
    for (name, _), others in space.moot.items():
        tied = {space.positions[n] for n in (name, *others)} & set(local)
        merged = set().union(*(group[i] for i in tied)) if tied else set()
        if math.prod(int(space.sizes[i]) for i in merged) <= UNIT_LIMIT:
            for i in merged:
                group[i] = merged
    units = []
    for columns in sorted({tuple(sorted(g)) for g in group.values()}):
        combos = np.array(list(itertools.product(*[range(int(space.sizes[i])) for i in columns])), dtype=np.int64)
        rows = np.zeros((len(combos), len(space.knobs)), dtype=np.int64)
        rows[:, columns] = combos
        units.append((list(columns), np.unique(space.canonical(rows), axis=0)[:, columns]))
    return units


def _globals(space: Space) -> Iterator[Genomes]:
    """Genomes untouched but for each joint choice of the knobs of the whole model."""
    columns = [i for i, k in enumerate(space.knobs) if not k.place]
    for choices in itertools.product(*[range(int(space.sizes[i])) for i in columns]):
        genome = np.zeros(len(space.knobs), dtype=np.int64)
        genome[columns] = choices
        yield genome


def _mixes(n: int, directions: int) -> Iterator[tuple[float, ...]]:
    """Weights of `n` costs that sum to 1: the corners and an even lattice between."""
    if n == 1:
        yield (1.0,)
        return
    steps = next(s for s in itertools.count(1) if math.comb(s + n - 1, n - 1) >= directions)
    for cuts in itertools.combinations(range(steps + n - 1), n - 1):
        edges = (-1, *cuts, steps + n - 1)
        yield tuple((b - a - 1) / steps for a, b in itertools.pairwise(edges))
