"""The predicted front of spaces of up to eight knobs: that of brute force, whatever costs and losses do."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from equipoise import pareto
from equipoise.search.front import CHUNK, JUDGED, predicted_front

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def fronts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("predicted_front")
    sys.modules.pop("predicted_front", None)


def rounded(values: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(row) for row in values.round(9).tolist()}


@pytest.mark.parametrize("first", range(0, 60, 15))
def test_it_is_the_front_of_brute_force(fronts: ModuleType, first: int) -> None:
    """Costs that multiply, borders, blocks, a target that lacks a choice, losses that add as vectors; 2 to 6 knobs."""
    for seed in range(first, first + 15):
        space, table, costs = fronts.problem(seed, most=6)
        rows = np.array(list(itertools.product(*[range(n) for n in space.sizes])))
        plans = fronts.values(rows, table, costs).round(9)
        distinct = np.unique(plans, axis=0)
        found = predicted_front(space, table, costs)
        values = fronts.values(found, table, costs)
        assert rounded(values) == {tuple(distinct[i]) for i in pareto.non_dominated(distinct.tolist())}, seed
        assert len(rounded(values)) == len(found), "one plan for each point"
        assert np.all(np.diff(values[:, 0]) >= 0)
        assert np.array_equal(found, space.canonical(found))


def test_eight_knobs_of_five_choices_leave_no_gap_and_a_front_with_a_hole_does(fronts: ModuleType) -> None:
    space, table, costs = fronts.problem(0, full=True)
    assert CHUNK < space.size == 5**8 <= JUDGED
    plans = fronts.values(fronts.every(space), table, costs[:2])
    values = fronts.values(predicted_front(space, table, costs[:2]), table, costs[:2])
    assert fronts.gap(values, plans) == 0
    middle = len(values) // 2
    assert fronts.gap(np.delete(values, middle, axis=0), plans) > 0
    solved = predicted_front(space, table, costs[:2], judged=0)
    assert 0 < fronts.gap(fronts.values(solved, table, costs[:2]), plans) < 0.2  # what is solved alone is near


def test_drawn_spaces_hold_what_models_offer(fronts: ModuleType) -> None:
    drawn = [fronts.problem(seed) for seed in range(60)]
    assert any(space.moot for space, _, _ in drawn)
    assert any(space.absent for space, _, _ in drawn)
    assert any(space.acts for space, _, _ in drawn)
    assert {len(costs) for _, _, costs in drawn} == {1, 2, 3}
    assert {table.toward is None for _, table, _ in drawn} == {True, False}
    assert all(2 <= len(space.knobs) <= 8 for space, _, _ in drawn)
