"""The predicted front on a tree of units: exact where costs add, without enumerating what lies inside a block."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.records import Knob
from equipoise.search.front import predicted_front
from equipoise.search.rank import front_mask
from equipoise.search.space import Space
from equipoise.search.tables import LossTable


class Additive:
    """A cost that adds: each choice costs its own amount, and a dropped block nothing but a constant."""

    def __init__(self, space: Space, columns) -> None:
        self.space, self.columns = space, columns

    def many(self, genomes):
        rows = self.space.canonical(genomes)
        gone = np.zeros(len(rows), dtype=bool)
        total = np.zeros(len(rows))
        for k, column in enumerate(self.columns):
            total += column[rows[:, k]]
        for (name, choice), others in self.space.moot.items():
            at = self.space.positions[name]
            hit = rows[:, at] == self.space.knob(name).menu.index(choice)
            for other in others:
                total[hit] -= self.columns[self.space.positions[other]][0]
            gone |= hit
        return total + 1.0


def problem(space: Space, seed: int):
    rng = np.random.default_rng(seed)
    losses = [np.concatenate([[0.0], np.sort(rng.random(n - 1))]) for n in space.sizes]
    costs = [np.sort(rng.random(n))[::-1].copy() + 0.5 for n in space.sizes]
    return LossTable(space, tuple(losses), 0.0), Additive(space, costs)


def block(name: str, *, joint: bool = True) -> tuple[list[Knob], tuple[str, ...]]:
    """A transformer's block: four layers in three precisions, their ranks, heads and hidden width: 36,450 joint choices."""
    layers = ("qkv", "out", "up", "down")
    knobs = [Knob(f"bits.{name}.{layer}", (32, 8, 4)) for layer in layers]
    knobs += [Knob(f"heads.{name}", (12, 9, 6, 4, 3)), Knob(f"width.{name}", (64, 56, 48, 40, 36, 32, 24, 20, 16, 8))]
    knobs += [Knob(f"rank.{name}.{layer}", (9, 6, 3)) for layer in layers[:2]] if joint else []
    return [Knob(f"depth.{name}", ("keep", "drop")), *knobs], tuple(k.name for k in knobs)


def front_of(space: Space, table: LossTable, cost: Additive, genomes) -> set[tuple[float, float]]:
    values = np.stack([cost.many(genomes), table.sums(genomes)], axis=1).round(9)
    return {tuple(row) for row in values[front_mask(values)]}


@pytest.mark.parametrize("seed", range(3))
def test_a_block_of_36450_joint_choices_is_solved_as_enumeration_does(seed: int) -> None:
    knobs, inside = block("a")
    space = Space(tuple(knobs), {("depth.a", "drop"): inside})
    assert int(np.prod(space.sizes)) == 2 * 36_450
    table, cost = problem(space, seed)
    every = np.array(list(itertools.product(*[range(n) for n in space.sizes[1:]])), dtype=np.int64)
    kept = np.concatenate([np.zeros((len(every), 1), dtype=np.int64), every], axis=1)
    dropped = np.zeros((1, len(knobs)), dtype=np.int64)
    dropped[0, 0] = 1
    began = time.perf_counter()
    found = predicted_front(space, table, [cost], labels=100_000, judged=0)
    took = time.perf_counter() - began
    assert front_of(space, table, cost, found) == front_of(space, table, cost, np.concatenate([kept, dropped]))
    assert took < 30  # enumeration of two such blocks would take hours


def test_blocks_inside_blocks_are_solved_as_enumeration_does() -> None:
    space = Space(
        (
            Knob("depth.a", ("keep", "drop")),
            Knob("depth.a.b", ("keep", "drop")),
            Knob("width.a.b", (4, 3, 2)),
            Knob("width.a", (8, 4)),
            Knob("bits.head", (32, 8)),
        ),
        {("depth.a", "drop"): ("depth.a.b", "width.a.b", "width.a"), ("depth.a.b", "drop"): ("width.a.b",)},
    )
    table, _ = problem(space, 5)
    price = np.array([3.0, 2.0, 1.0, 0.7, 0.5])

    class Cost:
        def many(self, genomes):
            rows = space.canonical(genomes)
            out = np.full(len(rows), 1.0) + price[4] * (2 - rows[:, 4])
            live_a, live_b = rows[:, 0] == 0, rows[:, 1] == 0
            out += live_a * (price[0] + price[3] * (2 - rows[:, 3]) + live_b * (price[1] + price[2] * (3 - rows[:, 2])))
            return out

    every = np.unique(space.canonical(np.array(list(itertools.product(*[range(n) for n in space.sizes])))), axis=0)
    found = predicted_front(space, table, [Cost()], judged=0)
    assert front_of(space, table, Cost(), found) == front_of(space, table, Cost(), every)


def test_the_front_of_enumeration_refuses_one_that_never_drops() -> None:
    knobs, inside = block("a", joint=False)
    space = Space(tuple(knobs), {("depth.a", "drop"): inside})
    table, cost = problem(space, 1)
    found = predicted_front(space, table, [cost], judged=0)
    assert (found[:, 0] == 1).any()
    assert front_of(space, table, cost, found) != front_of(space, table, cost, found[found[:, 0] == 0])


def test_a_knob_under_two_that_do_not_nest_is_refused() -> None:
    space = Space(
        (Knob("depth.a", ("keep", "drop")), Knob("depth.b", ("keep", "drop")), Knob("width.c", (4, 2))),
        {("depth.a", "drop"): ("width.c",), ("depth.b", "drop"): ("width.c",)},
    )
    table, cost = problem(space, 0)
    with pytest.raises(InputError, match=r"moot of width\.c"):
        predicted_front(space, table, [cost], judged=0)
