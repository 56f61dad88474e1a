import itertools

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.records import Knob
from equipoise.search.front import predicted_front, solve
from equipoise.search.rank import front_mask
from equipoise.search.space import Space
from equipoise.search.tables import LossTable


def tables(units, choices, seed):
    rng = np.random.default_rng(seed)
    losses = [np.concatenate([[0.0], np.sort(rng.random(choices - 1)) ** 2]) for _ in range(units)]
    costs = [np.concatenate([[0.0], -np.sort(rng.random(choices - 1))]) for _ in range(units)]
    return losses, costs


def enumerated(losses, costs):
    """Every combination: (cost, loss) rows."""
    total = [np.array([sum(p) for p in itertools.product(*t)]) for t in (costs, losses)]
    return np.stack(total, axis=1)


def gap(solution, rows):
    """Largest excess of the solution's loss over the true best, over every budget that matters."""
    worst = 0.0
    for budget in rows[front_mask(rows), 0]:
        true = rows[rows[:, 0] <= budget + 1e-12, 1].min()
        affordable = solution.losses[solution.costs <= budget + 1e-12]
        worst = max(worst, float(affordable.min() - true) if len(affordable) else np.inf)
    return worst


@pytest.mark.parametrize(("units", "choices", "seed"), [(1, 5, 0), (3, 4, 1), (5, 5, 2), (8, 3, 3), (6, 4, 4)])
def test_front_has_no_optimality_gap_against_enumeration(units, choices, seed):
    losses, costs = tables(units, choices, seed)
    rows = enumerated(losses, costs)
    solution = solve(losses, costs)
    assert solution.slack == 0
    assert gap(solution, rows) == pytest.approx(0, abs=1e-12)
    assert len(solution.costs) == int(front_mask(rows.round(12)).sum())
    for row, cost, loss in zip(solution.choices, solution.costs, solution.losses, strict=True):
        assert cost == pytest.approx(sum(c[i] for c, i in zip(costs, row, strict=True)))
        assert loss == pytest.approx(sum(c[i] for c, i in zip(losses, row, strict=True)))
    assert np.all(np.diff(solution.costs) > 0)
    assert np.all(np.diff(solution.losses) < 0)


def test_supported_points_agree_with_lagrange_relaxation():
    """A second oracle that scales: for any price of cost, the best sum is found unit by unit."""
    losses, costs = tables(30, 5, 5)
    solution = solve(losses, costs)
    for price in np.geomspace(1e-2, 1e2, 40):
        separable = sum(float(np.min(loss + price * cost)) for loss, cost in zip(losses, costs, strict=True))
        assert float(np.min(solution.losses + price * solution.costs)) == pytest.approx(
            separable, abs=price * solution.slack + 1e-9
        )


def test_enumeration_rejects_a_greedy_front():
    losses, costs = tables(5, 4, 6)
    rows = enumerated(losses, costs)
    solution = solve(losses, costs)
    convex = [np.argmin(solution.losses + price * solution.costs) for price in np.geomspace(1e-3, 1e3, 200)]
    hull = type(solution)(*(a[np.unique(convex)] for a in (solution.choices, solution.costs, solution.losses)), 0.0)
    assert gap(hull, rows) > 0.01  # only the supported points


def test_few_labels_give_up_no_more_than_the_slack():
    losses, costs = tables(8, 4, 7)
    rows = enumerated(losses, costs)
    coarse = solve(losses, costs, labels=20)
    assert len(coarse.costs) <= 21
    assert coarse.slack > 0
    for cost, loss in rows[front_mask(rows)]:
        assert np.any((coarse.costs <= cost + coarse.slack + 1e-9) & (coarse.losses <= loss + 1e-9))
    for row, cost in zip(coarse.choices, coarse.costs, strict=True):
        assert cost == pytest.approx(sum(c[i] for c, i in zip(costs, row, strict=True)))  # sums stay true


def test_ties_and_free_choices():
    solution = solve([np.array([0.0, 0.0, 1.0]), np.array([0.0])], [np.array([1.0, 0.0, 0.0]), np.array([2.0])])
    assert solution.choices.tolist() == [[1, 0]]
    assert (solution.costs.tolist(), solution.losses.tolist()) == ([2.0], [0.0])


@pytest.mark.parametrize(
    ("losses", "costs", "labels"),
    [
        ([np.zeros(2)], [np.zeros(3)], 9),
        ([np.zeros(2)], [], 9),
        ([np.zeros(0)], [np.zeros(0)], 9),
        ([np.zeros(1)], [np.zeros(1)], 1),
    ],
)
def test_bad_tables_are_refused(losses, costs, labels):
    with pytest.raises(InputError):
        solve(losses, costs, labels=labels)


SPACE = Space(
    (
        Knob("width.a", (4, 3, 2)),
        Knob("width.b", (4, 2, 1)),
        Knob("bits.b", (32, 8)),
        Knob("depth.b", ("keep", "drop")),
        Knob("runtime", ("x", "y")),
    ),
    moot={("depth.b", "drop"): ("width.b", "bits.b")},
)
TABLE = LossTable(
    SPACE,
    tuple(map(np.array, ([0, 0.02, 0.2], [0, 0.05, 0.3], [0.0, 0.01], [0.0, 0.4], [0.0, 0.0]))),
    0.0,
)


class Latency:
    """Not additive: products of widths, an edge between precisions, and a runtime that is good at 8 bits."""

    def many(self, genomes):
        out = []
        for genome in genomes:
            plan = SPACE.decode(genome)
            a, b = int(plan["width.a"]), int(plan["width.b"])
            if plan["depth.b"] == "drop":
                out.append(1.0 + a)
                continue
            eight = plan["bits.b"] == 8
            speed = (0.4 if plan["runtime"] == "y" else 0.8) if eight else (1.2 if plan["runtime"] == "y" else 1.0)
            out.append(1.0 + a + a * b * speed + 0.5 * eight)
        return np.array(out)


class Size:
    def many(self, genomes):
        plans = [SPACE.decode(g) for g in genomes]
        return np.array(
            [1.0 + int(p["width.a"]) + (p["depth.b"] == "keep") * int(p["width.b"]) * int(p["bits.b"]) / 4 for p in plans]
        )


def everything():
    return np.unique(SPACE.canonical(np.array(list(itertools.product(*[range(n) for n in SPACE.sizes])))), axis=0)


@pytest.mark.parametrize("costs", [[Latency()], [Latency(), Size()]])
def test_predicted_front_is_near_the_true_one_though_costs_do_not_add(costs):
    genomes = everything()
    true = np.stack([*(c.many(genomes) for c in costs), TABLE.sums(genomes)], axis=1)
    found = predicted_front(SPACE, TABLE, costs, judged=0)
    values = np.stack([*(c.many(found) for c in costs), TABLE.sums(found)], axis=1)
    assert front_mask(values).all()
    assert np.all(np.diff(values[:, 0]) >= 0)
    best = {tuple(r) for r in true[front_mask(true)].round(9)}
    hit = len(best & {tuple(r) for r in values.round(9)})
    assert hit >= 0.8 * len(best)
    assert {tuple(r) for r in values.round(9)} <= {tuple(r) for r in true.round(9)}


def test_predicted_front_never_cuts_inside_a_dropped_block_and_uses_the_runtime():
    found = predicted_front(SPACE, TABLE, [Latency()], judged=0)
    plans = [SPACE.decode(g) for g in found]
    assert all(p["width.b"] == 4 and p["bits.b"] == 32 for p in plans if p["depth.b"] == "drop")
    assert any(p["depth.b"] == "drop" for p in plans)
    assert any(p["runtime"] == "y" and p["bits.b"] == 8 for p in plans)
    assert not any(p["runtime"] == "y" and p["bits.b"] == 32 and p["depth.b"] == "keep" for p in plans)


def test_predicted_front_needs_a_cost():
    with pytest.raises(InputError, match="costs"):
        predicted_front(SPACE, TABLE, [])


def test_a_space_of_whole_model_choices_alone_has_a_front():
    space = Space((Knob("target", ("x", "y", "z")),))
    table = LossTable(space, (np.array([0.0, 0.0, 0.1]),), 0.0)

    class Fixed:
        axis = "latency_s"

        def many(self, genomes):
            return np.array([3.0, 2.0, 1.0])[genomes[:, 0]]

    found = predicted_front(space, table, [Fixed()], judged=0)
    assert [space.decode(g)["target"] for g in found] == ["z", "y"]
