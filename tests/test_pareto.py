"""Pareto tools against closed forms and brute force; each oracle is shown a wrong answer that it must reject."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.pareto import crowding, exclusive_hypervolume, hypervolume, knee, non_dominated, sort_fronts

small_points = st.integers(1, 4).flatmap(
    lambda axes: st.lists(st.tuples(*[st.integers(0, 4).map(float)] * axes), min_size=0, max_size=9)
)


def brute_non_dominated(points):
    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    return [i for i, p in enumerate(points) if not any(beats(q, p) for q in points)]


def counted_volume(points, reference):
    """Count unit cells: exact on integer points."""
    cells = itertools.product(*[range(int(r)) for r in reference])
    return sum(any(all(v <= c for v, c in zip(p, cell, strict=True)) for p in points) for cell in cells)


@given(small_points)
@settings(max_examples=100, deadline=None)
def test_non_dominated_agrees_with_brute_force(points):
    assert non_dominated(points) == brute_non_dominated(points)


@given(small_points)
@settings(max_examples=50, deadline=None)
def test_fronts_partition_and_each_is_beaten_by_the_one_before(points):
    fronts = sort_fronts(points)
    assert sorted(i for f in fronts for i in f) == list(range(len(points)))
    left = list(range(len(points)))
    for front in fronts:
        assert front == [left[i] for i in brute_non_dominated([points[i] for i in left])]
        left = [i for i in left if i not in front]


@given(small_points)
@settings(max_examples=100, deadline=None)
def test_hypervolume_agrees_with_counted_cells(points):
    reference = (4.0,) * (len(points[0]) if points else 2)
    assert hypervolume(points, reference) == counted_volume(points, reference)


def test_counting_oracle_rejects_a_wrong_volume():
    points = [(0.0, 2.0, 1.0), (2.0, 0.0, 1.0)]
    by_sum = sum(math.prod(4 - v for v in p) for p in points)  # the overlap counted twice
    assert by_sum != counted_volume(points, (4, 4, 4)) == hypervolume(points, (4, 4, 4))


@pytest.mark.parametrize("axes", [2, 3, 4, 5])
def test_hypervolume_closed_form_of_a_simplex_staircase(axes):
    """One point on each axis at 0 and 1 elsewhere, reference 2: the cube of side 1 is shared, each adds a slab of 1."""
    points = [tuple(0.0 if i == k else 1.0 for i in range(axes)) for k in range(axes)]
    assert hypervolume(points, (2.0,) * axes) == pytest.approx(1 + axes)


def test_hypervolume_scales_and_ignores_what_is_beyond_the_reference():
    points = [(0.1, 0.8, 0.3), (0.5, 0.2, 0.6), (0.9, 0.9, 0.9)]
    base = hypervolume(points, (1, 1, 1))
    stretched = hypervolume([(2 * a, 3 * b, 5 * c) for a, b, c in points], (2, 3, 5))
    assert stretched == pytest.approx(30 * base)
    assert hypervolume([*points, (0.0, 0.0, 1.0), (math.inf, 0.0, 0.0)], (1, 1, 1)) == pytest.approx(base)
    assert hypervolume([], (1, 1)) == 0


def test_exclusive_hypervolume_by_hand():
    assert exclusive_hypervolume([(0, 2), (1, 1), (2, 0), (2, 2)], (3, 3)) == [1, 1, 1, 0]
    assert exclusive_hypervolume([(1, 1), (1, 1)], (3, 3)) == [0, 0]


def test_crowding_by_hand():
    distances = crowding([(0, 10), (1, 6), (4, 2), (10, 0)])
    assert distances[0] == distances[3] == math.inf
    assert distances[1] == pytest.approx(0.4 + 0.8)
    assert distances[2] == pytest.approx(0.9 + 0.6)
    assert crowding([(1, 1), (1, 1)]) == [0, 0]
    assert crowding([]) == []


@pytest.mark.parametrize("call", [non_dominated, sort_fronts, crowding, knee, lambda p: hypervolume(p, (1, 1))])
def test_nan_and_ragged_points_are_refused(call):
    with pytest.raises(InputError, match="NaN"):
        call([(0.0, 1.0), (math.nan, 0.0)])
    with pytest.raises(InputError, match="same length"):
        call([(0.0, 1.0), (0.5, 0.5, 0.5)])


@pytest.mark.parametrize(("points", "reference"), [([(-math.inf, 0)], (1, 1)), ([(0, 0)], (math.inf, 1)), ([], ())])
def test_hypervolume_without_a_finite_answer_is_refused(points, reference):
    with pytest.raises(InputError):
        hypervolume(points, reference)


def elbow(n, at):
    """Two straight lines that meet at index `at`: the bend is known."""
    return [(float(i), 10.0 - 9.0 * i / at if i <= at else 1.0 - (i - at) / (n - at)) for i in range(n + 1)]


@pytest.mark.parametrize("at", [2, 5, 8])
def test_knee_of_two_lines_is_where_they_meet(at):
    points = elbow(10, at)
    found = knee(points)
    assert found.index == at
    assert found.votes["kneedle"] == found.votes["bend"] == at
    assert "votes agree" in found.rule
    shuffled = list(enumerate(points))
    random.Random(0).shuffle(shuffled)
    assert shuffled[knee([p for _, p in shuffled]).index][0] == at


def test_knee_does_not_depend_on_units_and_ignores_the_dominated():
    points = elbow(10, 4)
    scaled = [(1e-3 * a + 7, 1e6 * b) for a, b in points]
    assert knee(scaled).index == 4
    assert knee([*points, (9.0, 9.0), points[4]]).index == 4


def test_kneedle_vote_on_a_hyperbola_is_its_closed_form():
    """On y = 1/x over [1, 16] the point farthest below the chord has slope -1/16, so x = 4."""
    points = [(1 + 0.25 * i, 1 / (1 + 0.25 * i)) for i in range(61)]
    assert points[knee(points).votes["kneedle"]][0] == 4.0


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 5.0)],
        [(1.0, 5.0), (1.0, 5.0)],
        [(1.0, 5.0), (2.0, 3.0)],
        [(float(i), float(4 - i)) for i in range(5)],
        [(0.0, 4.0), (2.0, 3.5), (3.5, 2.0), (4.0, 0.0)],
    ],
)
def test_without_a_bend_there_are_no_votes_and_quality_wins(points):
    found = knee(points)
    assert not found.votes
    assert points[found.index][1] == min(p[1] for p in points)
    assert "best on the last axis" in found.rule


def test_stability_is_one_without_noise_and_falls_with_it():
    points = elbow(10, 4)
    assert knee(points, errors=(0.0, 0.0), rng=random.Random(1)).stability == 1.0
    calm = knee(points, errors=(0.01, 0.01), rng=random.Random(1)).stability
    wild = knee(points, errors=(3.0, 3.0), rng=random.Random(1)).stability
    assert calm is not None
    assert wild is not None
    assert calm > 0.8 > 0.5 > wild
    assert knee(points, errors=(3.0, 3.0), rng=random.Random(1)).stability == wild


@pytest.mark.parametrize("kwargs", [{"errors": (0.1, 0.1)}, {"errors": (0.1,), "rng": random.Random(0)}])
def test_knee_refuses_half_given_noise(kwargs):
    with pytest.raises(InputError, match="errors"):
        knee(elbow(10, 4), **kwargs)


def test_knee_refuses_nothing_and_three_axes():
    for points in ([], [(1.0, 2.0, 3.0)]):
        with pytest.raises(InputError, match="two axes"):
            knee(points)
