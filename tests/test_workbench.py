"""Parts of the workbench with closed forms; the whole of it is driven by test_optimize."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise.workbench import damage, drop_reading, one_thread, per_sample, widths
from equipoise.workloads import METRICS, Metric


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


@pytest.mark.parametrize(("size", "menu"), [(64, (64, 48, 32, 24, 16)), (16, (16, 8)), (8, (8,)), (6, (6,)), (20, (20, 16, 8))])
def test_width_menus_start_whole_and_keep_to_the_multiple(size, menu) -> None:
    assert widths(size, 8) == menu


def test_drop_is_in_points_and_larger_is_worse_for_every_metric() -> None:
    right, half = torch.tensor([[0.0, 1.0]] * 4).numpy(), torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]).numpy()
    labels = torch.ones(4, dtype=torch.long)
    assert drop_reading(METRICS["accuracy"], right, half, labels).get() == pytest.approx(50.0)
    assert drop_reading(METRICS["accuracy"], half, right, labels).get() == pytest.approx(-50.0)
    near, far, target = (np.full((4, 1), v, dtype=np.float32) for v in (1.0, 3.0, 0.0))
    assert drop_reading(METRICS["mse"], near, far, torch.from_numpy(target)).get() == pytest.approx(8.0)


def test_a_metric_of_the_whole_split_has_no_interval() -> None:
    spread = Metric("spread", False, lambda outputs, targets: outputs.std())
    outputs = np.array([[0.0], [2.0]], dtype=np.float32)
    reading = drop_reading(spread, outputs, 2 * outputs, torch.zeros(2))
    assert per_sample(spread, outputs, torch.zeros(2)) is None
    assert reading.low is None
    assert reading.get() == pytest.approx(math.sqrt(2))


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
