"""The predicted front, solved exactly from the tables instead of searched.

When each choice adds its own loss and cost, the best sum for *every* budget at once is a dynamic program over units that
carries all non-dominated (cost, loss) pairs. Where a choice makes others moot (a dropped block), the space is a tree: what lies
inside is solved first, and its front competes with "or drop it". So nothing is enumerated but the few knobs that act on one
layer. What does not add (products of widths, precision edges, the target) is met by solving around several base plans and
checking every solution with the full model; a space of few plans is judged whole, so that nothing has to add.
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
from equipoise.search.space import Genomes, Space, distinct
from equipoise.search.tables import LossTable

Floats = NDArray[np.float64]

JOINT_LIMIT = 512
"""Joint choices that knobs of one layer may span before they are treated apart."""
JUDGED = 400_000
"""Plans up to which a space is judged whole: 8 knobs of 5 choices are fewer."""
CHUNK = 16_384
"""Plans judged together, which bounds the memory that the features of many layers take."""


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
    found = _none(len(losses))
    for unit, (unit_loss, unit_cost) in enumerate(zip(losses, costs, strict=True)):
        rows = np.zeros((len(unit_loss), len(losses)), dtype=np.int64)
        rows[:, unit] = np.arange(len(unit_loss))
        found = _sum(found, _Labels(np.asarray(unit_cost, dtype=float), np.asarray(unit_loss, dtype=float), rows), labels)
    return Solution(found.rows, found.costs, found.losses, found.slack)


@dataclass(frozen=True)
class _Labels:
    """Non-dominated (cost, loss) sums with the genomes behind them; columns that are not decided yet are 0."""

    costs: Floats
    losses: Floats
    rows: NDArray[np.int64]
    slack: float = 0.0


def _none(columns: int) -> _Labels:
    """Nothing chosen yet: one sum, of nothing."""
    return _Labels(np.zeros(1), np.zeros(1), np.zeros((1, columns), dtype=np.int64))


def _sum(a: _Labels, b: _Labels, most: int) -> _Labels:
    """Every sum of one of `a` and one of `b` that no other dominates, at most `most` of them."""
    costs, losses = np.add.outer(a.costs, b.costs).ravel(), np.add.outer(a.losses, b.losses).ravel()
    kept, slack = _kept(costs, losses, most)
    left, right = np.divmod(kept, len(b.costs))
    return _Labels(costs[kept], losses[kept], a.rows[left] + b.rows[right], a.slack + b.slack + slack)


def _either(options: Sequence[_Labels], most: int) -> _Labels:
    """Every one of the options that no other dominates, at most `most` of them."""
    costs, losses = (np.concatenate([getattr(o, name) for o in options]) for name in ("costs", "losses"))
    kept, slack = _kept(costs, losses, most)
    rows = np.concatenate([o.rows for o in options])[kept]
    return _Labels(costs[kept], losses[kept], rows, max(o.slack for o in options) + slack)


def _kept(costs: Floats, losses: Floats, most: int) -> tuple[NDArray[np.int64], float]:
    """Indices of the non-dominated pairs, thinned to `most`, and what the thinning gives up of the cost."""
    kept = _staircase(costs, losses)
    if len(kept) <= most:
        return kept, 0.0
    width = float(costs[kept[-1]] - costs[kept[0]]) / (most - 1)
    return _thinned(kept, costs[kept], most - 1), width


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
    space: Space,
    table: LossTable,
    costs: Sequence[Cost],
    *,
    labels: int = 2000,
    passes: int = 2,
    directions: int = 12,
    judged: int = JUDGED,
) -> Genomes:
    """Return the genomes `(n, knobs)` that the tables predict to be non-dominated in added loss and every cost.

    Every plan of a space that has no more than `judged` is judged by the full models, so its front is exact. Of a larger one,
    for each choice of the knobs of the whole model (those without a place, such as ``runtime``), and for mixes of the costs,
    the additive problem is solved around the untouched plan and again around the middle of what was found. All solutions
    are then judged by the full models, so no point is on the front by rounding. Sorted by the first cost; of plans that are
    alike in everything one is returned.

    Args:
        costs: One or more models.
        labels: See `solve`.
        passes: Base plans for each mix.
        directions: Mixes of two costs, all choices of the whole model together; for more costs, a simplex lattice.
        judged: 0 solves every space.
    Raises:
        InputError: No costs.
    """
    if not costs:
        raise must_be("costs", "one or more", costs, "Give the cost models to trade against the loss.")
    if space.size <= judged:
        parts = [_judged(rows, table, costs) for rows in _every(space)]
    else:
        parts = [_judged(_solutions(space, table, costs, labels, passes, directions), table, costs)]
    genomes, values = (np.concatenate(some) for some in zip(*parts, strict=True))
    if len(parts) > 1:
        best = front_mask(values)
        genomes, values = genomes[best], values[best]
    return np.asarray(genomes[np.argsort(values[:, 0], kind="stable")])


def _judged(genomes: Genomes, table: LossTable, costs: Sequence[Cost]) -> tuple[Genomes, Floats]:
    """Return those of some genomes that no other of them dominates, and their costs and loss `(n, costs + 1)`."""
    values = np.stack([*(c.many(genomes) for c in costs), table.sums(genomes)], axis=1)
    kept = front_mask(values)
    return genomes[kept], values[kept]


def _every(space: Space) -> Iterator[Genomes]:
    """Yield every genome of a space, some at a time; what is moot is untouched."""
    for begin in range(0, space.size, CHUNK):
        places = np.arange(begin, min(begin + CHUNK, space.size))
        yield distinct(space.canonical(np.stack(np.unravel_index(places, space.sizes), axis=1)))


def _solutions(space: Space, table: LossTable, costs: Sequence[Cost], labels: int, passes: int, directions: int) -> Genomes:
    """Return what solves the additive problems around several base plans, each genome once."""
    found = [np.zeros((1, len(space.knobs)), dtype=np.int64)]
    tree = _tree(space)
    starts = list(_globals(space))
    directions = max(4, directions // len(starts))
    for start in starts:
        base_costs = [float(c.many(start[None])[0]) for c in costs]
        base_paid = _paid(tree, start, costs)
        for mix in _mixes(len(costs), directions):
            weights, base = [m / b for m, b in zip(mix, base_costs, strict=True)], start
            for _ in range(passes):
                paid = base_paid if base is start else _paid(tree, base, costs)
                rows = _solved(tree, _mixed(paid, weights), table.around(base), labels, len(base)).rows + start
                found.append(rows)
                base = rows[len(rows) // 2]
    return distinct(space.canonical(np.concatenate(found)))


@dataclass(frozen=True)
class _Unit:
    """Knobs that are chosen together, and what depends on them.

    Attributes:
        columns: Of the knobs.
        combos: `(combos, columns)`, every joint choice; the first leaves all untouched.
        inside: For each joint choice the units that are not moot under it, of those that some choice makes moot.
    """

    columns: tuple[int, ...]
    combos: Genomes
    inside: tuple[tuple[_Unit, ...], ...]

    @property
    def below(self) -> tuple[int, ...]:
        """Columns of everything inside."""
        units = {u.columns: u for some in self.inside for u in some}.values()
        return tuple(column for u in units for column in (*u.columns, *u.below))


def _asked(units: Sequence[_Unit], base: Genomes) -> Iterator[Genomes]:
    """Yield the genomes of each unit's joint choices, the others as in `base`, what lies inside counted from untouched."""
    for unit in units:
        rows = np.repeat(base[None], len(unit.combos), axis=0)
        rows[:, list(unit.below)] = 0
        rows[:, unit.columns] = unit.combos
        yield rows
        for combo, inside in zip(unit.combos, unit.inside, strict=True):
            around = base.copy()
            around[list(unit.columns)] = combo
            yield from _asked(inside, around)


def _paid(units: Sequence[_Unit], base: Genomes, costs: Sequence[Cost]) -> list[list[Floats]]:
    """For each cost, for each unit in the order of `_asked`, what its joint choices cost more than its first; in one call."""
    asked = list(_asked(units, base))
    if not asked:
        return [[] for _ in costs]
    ends = np.cumsum([len(rows) for rows in asked])[:-1]
    every = np.concatenate(asked)
    return [[part - part[0] for part in np.split(c.many(every), ends)] for c in costs]


def _mixed(paid: Sequence[Sequence[Floats]], mix: Sequence[float]) -> Iterator[Floats]:
    """Yield the mixed cost of each unit's choices, in the order of `_asked`."""
    for parts in zip(*paid, strict=True):
        yield np.asarray(sum(m * part for m, part in zip(mix, parts, strict=True) if m), dtype=float)


def _solved(units: Sequence[_Unit], deltas: Iterator[Floats], lost: Sequence[Floats], most: int, knobs: int) -> _Labels:
    """The front of some units together; costs are differences from these units untouched."""
    found = _none(knobs)
    for unit in units:
        own, losses = next(deltas), sum_columns(lost, unit.columns, unit.combos)
        rows = np.zeros((len(own), knobs), dtype=np.int64)
        rows[:, unit.columns] = unit.combos
        options = [_Labels(own, losses, rows)]
        if any(unit.inside):
            options = []
            for i, inside in enumerate(unit.inside):
                within = _solved(inside, deltas, lost, most, knobs)
                options.append(_Labels(within.costs + own[i], within.losses + losses[i], within.rows + rows[i], within.slack))
        found = _sum(found, _either(options, most), most)
    return found


def sum_columns(lost: Sequence[Floats], columns: Sequence[int], combos: Genomes) -> Floats:
    """Return what a loss table's columns add up to for each joint choice `(combos, columns)` of some knobs."""
    return np.asarray(sum(lost[k][combos[:, j]] for j, k in enumerate(columns)), dtype=float)


def _tree(space: Space) -> tuple[_Unit, ...]:
    """The local knobs as a tree: what a choice makes moot lies inside the knob that has it.

    Raises:
        InputError: A knob that two others make moot of which neither lies inside the other.
    """
    outer: dict[int, set[int]] = {i: set() for i, knob in enumerate(space.knobs) if knob.place}
    moot: dict[tuple[int, int], set[int]] = {}
    for (name, choice), others in space.moot.items():
        parent, gone = space.positions[name], {space.positions[n] for n in others} & outer.keys()
        if parent in outer:
            moot[parent, space.knob(name).menu.index(choice)] = gone
            for i in gone:
                outer[i].add(parent)
    for i, parents in outer.items():
        if any(a != b and a not in outer[b] and b not in outer[a] for a in parents for b in parents):
            names = [space.knobs[p].name for p in sorted(parents)]
            raise must_be(f"moot of {space.knobs[i].name}", "under knobs one inside the other", names, "Nest them.")
    innermost = {i: max(parents, key=lambda p: len(outer[p]), default=-1) for i, parents in outer.items()}

    outside = set(innermost.values())

    def below(parent: int) -> list[_Unit]:
        here = [i for i, up in innermost.items() if up == parent]
        alone = [(i,) for i in here if i in outside]  # what depends on it is solved anew for each of its choices
        return [unit(columns) for columns in (*alone, *_joined(space, [i for i in here if i not in outside]))]

    def unit(columns: tuple[int, ...]) -> _Unit:
        combos = np.array(list(itertools.product(*[range(int(space.sizes[i])) for i in columns])), dtype=np.int64)
        children = {column: below(column) for column in columns}
        inside = []
        for combo in combos:
            gone = set().union(*(moot.get((c, int(index)), set()) for c, index in zip(columns, combo, strict=True)))
            inside.append(tuple(u for some in children.values() for u in some if not set(u.columns) <= gone))
        return _Unit(columns, combos, tuple(inside))

    return tuple(below(-1))


def _joined(space: Space, columns: Sequence[int]) -> list[tuple[int, ...]]:
    """Put knobs that act on the same layers together, as far as their joint choices stay few: their costs do not add."""
    groups: list[list[int]] = []
    for column in columns:
        acts = set(space.acts.get(space.knobs[column].name, ()))
        near = [g for g in groups if any(acts & set(space.acts.get(space.knobs[i].name, ())) for i in g)]
        merged = [column]
        for group in near:
            if math.prod(int(space.sizes[i]) for i in (*group, *merged)) <= JOINT_LIMIT:
                merged = [*group, *merged]
                groups.remove(group)
        groups.append(merged)
    return [tuple(sorted(group)) for group in groups]


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
