import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import pareto
from equipoise.search.rank import crowding, domination, front_mask, ranks

matrices = (
    st.integers(1, 5)
    .flatmap(lambda axes: st.lists(st.tuples(*[st.integers(0, 4)] * axes), min_size=1, max_size=12))
    .map(lambda rows: np.array(rows, dtype=float))
)


@given(matrices)
@settings(max_examples=100, deadline=None)
def test_front_agrees_with_the_pure_python_one_up_to_copies(rows):
    mask = front_mask(rows)
    reference = [tuple(rows[i]) for i in pareto.non_dominated(rows.tolist())]
    assert {tuple(r) for r in rows[mask]} == set(reference)
    assert len(rows[mask]) == len(set(reference))


@given(matrices)
@settings(max_examples=100, deadline=None)
def test_ranks_agree_with_the_pure_python_layers(rows):
    found = ranks(domination(rows, np.zeros((len(rows), 0))), enough=len(rows))
    for layer, members in enumerate(pareto.sort_fronts(rows.tolist())):
        assert np.flatnonzero(found == layer).tolist() == members


@given(matrices)
@settings(max_examples=50, deadline=None)
def test_crowding_agrees_with_the_pure_python_one(rows):
    rows = np.unique(rows, axis=0)  # the order among equal values is free; ties on one axis remain
    ours, reference = crowding(rows), np.array(pareto.crowding(rows.tolist()))
    assert ours == pytest.approx(reference)


def test_sorting_may_stop_when_enough_are_ranked():
    rows = np.arange(10.0)[:, None]
    found = ranks(domination(rows, np.zeros((10, 0))), enough=4)
    assert found.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]


def test_feasible_beats_infeasible_and_the_infeasible_compare_by_excess():
    objectives = np.array([[9.0, 9.0], [0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    excess = np.array([[0.0, 0.0], [0.5, 0.1], [0.1, 0.5], [0.6, 0.2]])
    dominates = domination(objectives, excess)
    assert dominates[0].tolist() == [False, True, True, True]  # the worst point that keeps the budget wins
    assert not dominates[1, 2]  # neither of 1 and 2 is nearer on both bounds
    assert not dominates[2, 1]
    assert dominates[1, 3]
    without = domination(objectives, np.zeros((4, 2)))  # control: without bounds the order turns round
    assert without[1, 0]
    assert not without[0].any()
