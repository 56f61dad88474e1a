import math

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.pareto import hypervolume
from equipoise.records import Knob
from equipoise.search.front import predicted_front
from equipoise.search.propose import Evaluated, converged, expected_improvement, first_points, front_volume, halving, propose
from equipoise.search.space import Space
from equipoise.search.surrogate import fit_loss
from equipoise.search.tables import EPSILON, LossTable

SPACE = Space(tuple(Knob(f"width.layer{i // 3}.{i}", (64, 48, 32, 24, 16)) for i in range(8)))
SCALES = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0])
TABLE = LossTable(SPACE, tuple(s * np.array([0, 0.25, 0.5, 0.625, 0.75]) ** 2 for s in SCALES), 0.0)


class Macs:
    def many(self, genomes):
        kept = np.array([1, 0.75, 0.5, 0.375, 0.25])[genomes]
        return 0.1 + kept.mean(axis=1)


MACS = Macs()


def truth(genomes):
    return 0.6 * TABLE.sums(genomes) ** 0.9


def evaluated(genomes):
    return Evaluated(genomes, MACS.many(genomes)[:, None], truth(genomes))


def start():
    front = predicted_front(SPACE, TABLE, [MACS])
    plans = first_points(SPACE, front, MACS.many(front), TABLE.sums(front), n=8)
    return np.concatenate([np.zeros((1, 8), dtype=np.int64), SPACE.encode_all(plans)])


def ask(known, seed=0, **kwargs):
    model = fit_loss(TABLE, known.genomes, known.losses)
    return propose(SPACE, model, [MACS], known, rng=np.random.default_rng(seed), generations=20, **kwargs)


def test_plans_are_tried_so_that_those_done_when_the_time_ends_are_spread():
    rows = list(range(12))
    order = halving(rows)
    assert sorted(order) == rows
    assert order[:3] == [6, 9, 3]  # not the extremes, which are the least likely to keep a drop
    assert halving([]) == []


def test_first_points_cover_the_front_and_are_denser_at_the_focus():
    front = predicted_front(SPACE, TABLE, [MACS])
    costs, losses = MACS.many(front), TABLE.sums(front)
    plans = first_points(SPACE, front, costs, losses, n=12, focus=0.6)
    assert len(set(plans)) == 12
    found = MACS.many(SPACE.encode_all(plans))
    assert np.all(np.diff(found) >= 0)
    assert (found[0], found[-1]) == (costs.min(), costs.max())
    near = np.abs(np.log(found / 0.6)) < 0.25
    even = np.geomspace(costs.min(), costs.max(), 12)
    assert near.sum() > 1.4 * (np.abs(np.log(even / 0.6)) < 0.25).sum()
    assert len(first_points(SPACE, front[:3], costs[:3], losses[:3], n=12)) == 3
    with pytest.raises(InputError):
        first_points(SPACE, front[:0], costs[:0], losses[:0])


def sampled_improvement(axes, mean, sd, points, losses, *, reference, worst_loss, draws=800):
    """Slow reference: draw the loss, measure the hypervolume with and without."""
    known = [(*p, loss) for p, loss in zip(points, losses, strict=True)]
    corner = (*reference, worst_loss)
    base = hypervolume(known, corner)
    rng = np.random.default_rng(0)
    out = []
    for a, m, s in zip(axes, mean, sd, strict=True):
        values = np.exp(rng.normal(m, s, draws)) - EPSILON
        out.append(np.mean([hypervolume([*known, (*a, v)], corner) - base for v in values]))
    return np.array(out)


@pytest.mark.parametrize("axes_count", [1, 2])
def test_expected_improvement_agrees_with_drawing_it(axes_count):
    rng = np.random.default_rng(axes_count)
    points, losses = rng.random((6, axes_count)), rng.random(6) * 1.2
    axes, mean, sd = rng.random((5, axes_count)), rng.normal(-1.2, 0.5, 5), rng.uniform(0.1, 0.5, 5)
    kwargs = {"reference": np.full(axes_count, 0.9), "worst_loss": 1.0}
    exact = expected_improvement(axes, mean, sd, points, losses, **kwargs)
    assert exact == pytest.approx(sampled_improvement(axes, mean, sd, points, losses, **kwargs), rel=0.1, abs=0.003)


def test_a_certain_candidate_improves_by_plain_hypervolume():
    rng = np.random.default_rng(5)
    points, losses, axes, mean = rng.random((6, 2)), rng.random(6), rng.random((5, 2)), rng.normal(-1.2, 0.5, 5)
    kwargs = {"reference": np.full(2, 0.9), "worst_loss": 1.0}
    certain = expected_improvement(axes, mean, np.full(5, 1e-6), points, losses, **kwargs)
    known, corner = np.column_stack([points, losses]).tolist(), (0.9, 0.9, 1.0)
    rows = [[*a, math.exp(m) - EPSILON] for a, m in zip(axes, mean, strict=True)]
    plain = [hypervolume([*known, row], corner) - hypervolume(known, corner) for row in rows]
    assert certain == pytest.approx(np.array(plain), abs=1e-5)
    vague = expected_improvement(axes, mean, np.full(5, 0.5), points, losses, **kwargs)
    assert vague != pytest.approx(np.array(plain), rel=0.05, abs=1e-3)  # control: the spread counts


def test_proposals_are_new_distinct_reproducible_and_help_more_than_random_ones():
    known = evaluated(start())
    plans = ask(known)
    assert len(set(plans)) == 8
    assert not set(plans) & {SPACE.decode(g) for g in known.genomes}
    assert plans == ask(known)
    assert plans != ask(known, seed=1)

    def after(more):
        return front_volume(evaluated(np.concatenate([known.genomes, more])), worst_loss=1.0)

    base = front_volume(known, worst_loss=1.0)
    ours = after(SPACE.encode_all(plans)) - base
    drawn = np.median([after(SPACE.sample(np.random.default_rng(s), n=8)) - base for s in range(20)])
    assert ours > 0.002
    assert ours > 3 * drawn


def test_a_budget_draws_the_proposals_to_it():
    known = evaluated(start())
    bound = 0.6

    def excess(genomes):
        return np.maximum(MACS.many(genomes)[:, None] / bound - 1, 0)

    costs = MACS.many(SPACE.encode_all(ask(known, excess=excess, focus=bound)))
    free = MACS.many(SPACE.encode_all(ask(known)))
    assert np.sum(costs <= bound * 1.02) >= 7
    assert np.sum(np.abs(np.log(costs / bound)) < 0.3) >= 4
    assert np.sum(free <= bound * 1.02) < 7 or np.sum(np.abs(np.log(free / bound)) < 0.3) < 4  # control


def test_two_costs_are_traded_at_once():
    class Late:
        def many(self, genomes):
            kept = np.array([1, 0.75, 0.5, 0.375, 0.25])[genomes]
            return 0.1 + kept[:, 4:].mean(axis=1)

    genomes = start()
    costs = np.stack([MACS.many(genomes), Late().many(genomes)], axis=1)
    known = Evaluated(genomes, costs, truth(genomes))
    model = fit_loss(TABLE, genomes, known.losses)
    plans = propose(SPACE, model, [MACS, Late()], known, rng=np.random.default_rng(0), q=6, generations=10)
    assert len(set(plans)) == 6


def test_a_space_that_is_used_up_gives_what_it_has():
    space = Space((Knob("width.a.x", (4, 3, 2)), Knob("width.b.x", (4, 2))))
    table = LossTable(space, (np.array([0, 0.1, 0.3]), np.array([0, 0.2])), 0.0)

    class Total:
        def many(self, genomes):
            return 10.0 - genomes.sum(axis=1)

    every = np.array([[i, j] for i in range(3) for j in range(2)])
    known = Evaluated(every[:4], Total().many(every[:4])[:, None], table.sums(every[:4]))
    model = fit_loss(table, known.genomes, known.losses)
    rest = propose(space, model, [Total()], known, rng=np.random.default_rng(0), q=8, generations=3)
    assert {tuple(space.encode(p)) for p in rest} == {tuple(g) for g in every[4:]}
    everything = Evaluated(every, Total().many(every)[:, None], table.sums(every))
    assert propose(space, model, [Total()], everything, rng=np.random.default_rng(0), generations=3) == []


def test_nothing_known_is_refused():
    none = Evaluated(np.zeros((0, 8), dtype=np.int64), np.zeros((0, 1)), np.zeros(0))
    with pytest.raises(InputError, match="evaluated"):
        ask(none)


@pytest.mark.parametrize(
    ("volumes", "done"),
    [([], False), ([1.0, 1.0], False), ([1.0, 1.0, 1.0], True), ([1.0, 1.003, 1.004], True), ([1.0, 1.003, 1.006], False)],
)
def test_convergence_is_two_rounds_below_half_a_percent(volumes, done):
    assert converged(volumes) is done
