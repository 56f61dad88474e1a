"""Parts of the workbench with closed forms; the whole of it is driven by test_optimize."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise.road.bench import damage, one_thread, widths
from equipoise.workloads.meaning import Divergence


def test_damage_of_classifiers_is_the_divergence() -> None:
    reference, outputs = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert damage(reference, outputs + 3.0, classifier=True) == pytest.approx(expected)  # logits may be shifted
    assert damage(reference, reference, classifier=True) == pytest.approx(0.0)
    assert damage(outputs, reference, classifier=True) != pytest.approx(expected)  # the direction matters


def test_damage_of_regressors_is_relative() -> None:
    reference = np.array([[0.0], [2.0], [4.0]])
    assert damage(reference, reference + 1.0, classifier=False) == pytest.approx(1 / torch.tensor(reference).var().item())
    assert damage(10 * reference, 10 * (reference + 1.0), classifier=False) == pytest.approx(
        damage(reference, reference + 1.0, classifier=False)
    )


def test_damage_of_yes_or_no_outputs_counts_each_on_its_own() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    reference, outputs = np.array([[logit(0.5), logit(0.9)]]), np.array([[logit(0.25), logit(0.9)]])
    expected = 0.5 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))  # the other output is the same: a mean of two
    several = Divergence("bernoulli")
    assert damage(reference, outputs, several) == pytest.approx(expected)
    assert damage(reference, reference + 3.0, several) > 0.1  # a shift is seen, as softmax would not
    assert damage(reference, reference + 3.0, Divergence("softmax")) == pytest.approx(0.0)
    chances = (np.array([[0.5, 0.9]]), np.array([[0.25, 0.9]]))
    assert damage(*chances, Divergence("bernoulli", probabilities=True)) == pytest.approx(expected)


def test_damage_of_probabilities_is_not_squashed_twice() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert damage(p, q, Divergence("softmax", probabilities=True)) == pytest.approx(expected)
    assert damage(p, q, Divergence("softmax")) != pytest.approx(expected, rel=0.1)  # control
    assert damage(np.log(p), np.log(q), Divergence("softmax")) == pytest.approx(expected)
    sure = damage(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), Divergence("softmax", probabilities=True))
    assert 10 < sure < math.inf


def test_damage_of_values_counts_each_output_in_its_own_spread() -> None:
    reference = np.array([[0.0, 0.0, 7.0], [1.0, 1000.0, 7.0], [2.0, 2000.0, 7.0]])  # the last never moves
    values = Divergence("values")
    small, large = (damage(reference, reference + np.array(by), values) for by in ([1.0, 0, 0], [0, 1000.0, 0]))
    assert small == pytest.approx(large) == pytest.approx(1 / 3)
    assert damage(reference, reference + np.array([0, 0, 1.0]), values) < 1e-6


def test_damage_finds_the_classes_where_they_lie() -> None:
    draw = np.random.default_rng(0)
    reference, outputs = draw.normal(size=(3, 4, 5)), draw.normal(size=(3, 4, 5))
    last = damage(reference, outputs, Divergence("softmax", axis=2))
    assert last == pytest.approx(damage(reference.swapaxes(1, 2), outputs.swapaxes(1, 2), Divergence("softmax")))
    assert last != pytest.approx(damage(reference, outputs, Divergence("softmax")))


@pytest.mark.parametrize(("size", "menu"), [(64, (64, 48, 32, 24, 16)), (16, (16, 8)), (8, (8,)), (6, (6,)), (20, (20, 16, 8))])
def test_width_menus_start_whole_and_keep_to_the_multiple(size, menu) -> None:
    assert widths(size, 8) == menu


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
