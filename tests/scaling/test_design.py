"""Plans of runs: their cost, their spread, and that the runs added are the ones that help."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from truth import SMALL, isoflop_runs, run_of

from equipoise.errors import InputError
from equipoise.scaling import Available, affordable, fit, plan, to_add
from equipoise.scaling.design import TooLittleTimeError

MENU = [Available(params, 2.0 * params, {"width": w}) for w in range(4, 257, 4) if (params := 40.0 * w * w)]


def test_twelve_runs_at_three_levels_fill_the_time() -> None:
    found = plan(MENU, seconds=600, flops_per_s=2e10)
    assert len(found.runs) == 12
    assert 0.9 * 600 < found.seconds <= 600
    assert found.levels[1] / found.levels[0] == pytest.approx(3.5)
    for level in range(3):
        runs = [r for r in found.runs if r.level == level]
        sizes = sorted(r.available.params for r in runs)
        assert len(sizes) == 4
        assert all(1.6 < b / a < 2.5 for a, b in itertools.pairwise(sizes))
        for run in runs:
            assert 3 * run.available.flops_per_sample * run.samples == pytest.approx(found.levels[level])
        guess = np.median([r.samples / r.available.params for r in runs])
        assert 20 / 3 < guess < 60  # centered on the guess


def test_levels_lie_closer_together_where_there_is_little_time() -> None:
    """Wide levels first; where some run would see too few samples, narrower ones; a ratio that is asked for is kept."""
    near = plan(MENU, seconds=600, flops_per_s=2e10, fewest_samples=5e5)
    assert min(r.samples for r in near.runs) >= 5e5
    assert near.levels[1] / near.levels[0] == pytest.approx(2.0)
    for ratio in (3.5, 2.5):
        with pytest.raises(InputError, match="seconds must be at least"):
            plan(MENU, seconds=600, flops_per_s=2e10, fewest_samples=5e5, ratio=ratio)


def test_a_shared_trunk_costs_what_it_trains() -> None:
    """Against the sum, size by size: the longest run whole, of the others the cool-down alone."""
    found = plan(MENU, seconds=600, flops_per_s=2e10, cooldown=0.2)
    total = 0.0
    for params in {r.available.params for r in found.runs}:
        samples = sorted(r.samples for r in found.runs if r.available.params == params)
        total += 3 * 2 * params * (0.8 * samples[-1] + 0.2 * sum(samples))
    assert found.seconds == pytest.approx(total / 2e10)
    assert sum(r.flops for r in found.runs) == pytest.approx(total)
    assert found.seconds < 0.8 * found.seconds_apart
    apart = plan(MENU, seconds=600, flops_per_s=2e10, shared=False)
    assert apart.seconds == pytest.approx(apart.seconds_apart)
    assert apart.levels[-1] < found.levels[-1]


def test_slow_small_models_are_accounted_for() -> None:
    rates = [1e9 * (a.params / MENU[0].params) ** 0.4 for a in MENU]
    found = plan(MENU, seconds=600, flops_per_s=rates)
    assert found.seconds <= 600
    assert found.levels[-1] < plan(MENU, seconds=600, flops_per_s=max(rates)).levels[-1]


def test_repeated_data_adds_one_contrast() -> None:
    few = plan(MENU, seconds=600, flops_per_s=2e10, unique=1e5)
    assert len(few.runs) == 13
    (contrast,) = (r for r in few.runs if r.level == -1)
    assert contrast.unique == pytest.approx(1e5 / 4)
    twin = [r for r in few.runs if r.available == contrast.available and r.samples == contrast.samples and r.level >= 0]
    assert len(twin) == 1
    assert len(plan(MENU, seconds=600, flops_per_s=2e10, unique=1e12).runs) == 12


def test_too_little_time_says_how_much() -> None:
    with pytest.raises(InputError, match="at least"):
        plan(MENU, seconds=1e-3, flops_per_s=1e9, fewest_samples=2000)
    for seconds in (1e-300, 1e-9, 1e-3):  # the least does not depend on how little there is
        with pytest.raises(TooLittleTimeError) as caught:
            plan(MENU, seconds=seconds, flops_per_s=1e9, fewest_samples=2000)
        assert plan(MENU, seconds=1.1 * caught.value.least_s, flops_per_s=1e9, fewest_samples=2000).runs
    with pytest.raises(InputError, match="3 different sizes"):
        plan(MENU[:2], seconds=600, flops_per_s=1e9)
    with pytest.raises(InputError, match="flops_per_s"):
        plan(MENU, seconds=600, flops_per_s=0.0)


def test_what_is_added_narrows_the_decision() -> None:
    """Refit with the three runs chosen, and with three repeats of the smallest run: the chosen ones must leave less spread."""
    rng = np.random.default_rng(0)
    runs = isoflop_runs(SMALL, noise=0.006, rng=rng)
    fitted = fit(runs, seed=0, size="params")
    flops = 8 * max(r.flops for r in runs)
    target = [(a, flops / (3 * a.flops_per_sample)) for a in MENU if 1e5 < a.params < 4e6]
    small = [a for a in MENU if a.params < 2 * max(r.params for r in runs)][::4]
    most = 2 * max(r.flops for r in runs)
    added = to_add(fitted, affordable(small, most), target=target)
    assert len(added) == 3
    assert 1 >= added[0].left >= added[1].left >= added[2].left > 0
    assert all(a.flops <= most * 1.000001 for a in added)

    def spread(more: list[tuple[float, float]]) -> float:
        widths = []
        for seed in range(4):
            noise = np.random.default_rng(seed)
            extra = [run_of(SMALL, p, s, noise=0.006, rng=noise) for p, s in more]
            best = fit([*runs, *extra], seed=seed, size="params", starts=8).optimum(flops)["size"]
            widths.append(np.log(best.high / best.low))
        return float(np.mean(widths))

    chosen = spread([(a.available.params, a.samples) for a in added])
    smallest = min(runs, key=lambda r: r.flops)
    assert chosen < spread([(smallest.params, smallest.samples)] * 3)
    assert chosen < np.log(fitted.optimum(flops)["size"].high / fitted.optimum(flops)["size"].low)


def test_no_run_is_added_twice() -> None:
    fitted = fit(isoflop_runs(SMALL, noise=0.05, rng=np.random.default_rng(3))[:9], seed=0, size="params")
    target = [(a, 1e6) for a in MENU]
    for pool in ([(MENU[0], 1e5)] * 4, [(MENU[0], 1e5), (MENU[9], 1e5)], [(a, 1e5) for a in MENU]):
        added = [(a.available.params, a.samples) for a in to_add(fitted, pool, target=target)]
        assert len(added) == len(set(added)) == min(3, len({(a.params, s) for a, s in pool}))


def test_nothing_to_add_from() -> None:
    fitted = fit(isoflop_runs(SMALL, noise=0.004, rng=np.random.default_rng(0)), seed=0, size="params", bootstraps=20)
    with pytest.raises(InputError, match="to_add needs"):
        to_add(fitted, [], target=[(MENU[0], 1e6)])
