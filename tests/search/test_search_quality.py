"""The duel of benchmarks/search_quality.py: honest counting, and a verdict that a bad search does not get."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def duel(monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("search_quality"), importlib.import_module("search_problems")
    for name in ("search_quality", "search_problems"):
        sys.modules.pop(name, None)


def test_ledger_counts_each_plan_once_and_stops_the_volume_where_asked(duel):
    quality, problems = duel
    problem = problems.Synthetic(seed=0)
    ledger = quality.Ledger(problem)
    for genome in problem.space.sample(np.random.default_rng(0), n=10):
        ledger(problem.space.decode(genome))
        ledger(problem.space.decode(genome))
    assert len(ledger.seen) == 10
    assert ledger.volume(3) <= ledger.volume(10)


def test_synthetic_loss_is_zero_when_untouched_fixed_and_not_additive(duel):
    problem = duel[1].Synthetic(seed=0)
    untouched = problem.space.untouched
    assert problem.evaluate(untouched) == 0
    plans = [problem.space.decode(g) for g in problem.space.sample(np.random.default_rng(0), n=20)]
    sums = [sum(problem.evaluate(untouched.but({k: c})) for k, c in p.choices.items() if c != untouched[k]) for p in plans]
    ratios = [problem.evaluate(p) / s for p, s in zip(plans, sums, strict=True)]
    assert ratios == [problem.evaluate(p) / s for p, s in zip(plans, sums, strict=True)]
    assert max(ratios) > 1.3 * min(ratios)
    assert all(problem.cost(p) < problem.cost(untouched) for p in plans)


def test_remembered_evaluations_are_free_and_survive(duel, tmp_path):
    problems = duel[1]
    path = tmp_path / "losses.json"
    first = problems.problem_of("synthetic", cache=path)
    plan = first.space.decode(first.space.sample(np.random.default_rng(1))[0])
    loss = first.evaluate(plan)
    again = problems.problem_of("synthetic", cache=path)
    again.problem.evaluate = None  # would raise if it were asked
    assert again.evaluate(plan) == loss


@pytest.mark.slow
def test_guided_search_wins_at_a_third_and_random_search_does_not(duel, capsys):
    quality, problems = duel
    problem = problems.Synthetic(seed=0)
    result = quality.duel(problem, n=30, seeds=[0])
    assert result["ratio_min"] > 1.0
    row = result["seeds"][0]
    assert (row["ours_evaluations"], row["optuna_evaluations"]) == (30, {"24": 90, "50": 90})
    random = quality.Ledger(problem)
    for genome in problem.space.sample(np.random.default_rng(0), n=90):
        random(problem.space.decode(genome))
    assert random.volume(90) < row["optuna"]["24"]["90"]  # control
    json.dumps(result)
