"""Curves continued: coverage on each kind of truth, the kill rule, and what growth would bring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.scaling import extrapolate, grow, should_stop
from equipoise.scaling.curves import CURVES

STEPS = np.arange(50, 2001, 50, dtype=float)

TRUTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "power": lambda x: 0.6 + 8.0 * x**-0.5,
    "slow power": lambda x: 0.2 + 3.0 * x**-0.15,
    "shifted": lambda x: 0.5 + 40.0 * (x + 300) ** -0.6,
    "logistic in log": lambda x: 0.4 + 1.9 / (1 + (x / 400) ** 1.1),
}


@pytest.mark.parametrize("name", CURVES)
def test_derivatives_are_those_of_differences(name: str) -> None:
    curve = CURVES[name]
    theta = np.array(curve.center) + 0.3 * np.random.default_rng(0).standard_normal((4, len(curve.center)))
    x = np.geomspace(0.05, 3.0, 9)
    value, slope = curve.value(theta, x)
    assert value.shape == (4, 9)
    for i in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[i] = 1e-6
        numeric = (curve.value(theta + step, x)[0] - curve.value(theta - step, x)[0]) / 2e-6
        np.testing.assert_allclose(slope[..., i], numeric, atol=1e-7)


@pytest.mark.slow
def test_four_times_the_steps_are_covered() -> None:
    inside, errors, naive = [], [], []
    for truth in TRUTHS.values():
        for seed in range(8):
            rng = np.random.default_rng(seed)
            seen = truth(STEPS) * np.exp(0.01 * rng.standard_normal(len(STEPS)))
            found = extrapolate(STEPS.tolist(), seen.tolist(), 8000, seed=seed, draws=150)
            later = float(truth(np.array([8000.0]))[0])
            inside.append(found.value.low <= later * np.exp(0.01 * rng.standard_normal()) <= found.value.high)
            errors.append(abs(found.value.value / later - 1))
            naive.append(abs(seen[-5:].mean() / later - 1))
    assert np.mean(inside) >= 0.75
    assert np.median(errors) < 0.06
    assert np.median(errors) < 0.5 * np.median(naive)


def test_a_metric_that_rises() -> None:
    truth, inside = 98 - 40 * 80.0**-0.4, []
    for seed in range(8):
        left = 2 + 40 * (STEPS / 50) ** -0.4 * np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(STEPS)))
        found = extrapolate(STEPS.tolist(), (100 - left).tolist(), 4000, best=100.0, seed=seed)
        assert found.value.value == pytest.approx(truth, abs=0.5)
        assert found.gain.value == pytest.approx(40 * 40.0**-0.4 - 40 * 80.0**-0.4, abs=0.5)
        inside.append(found.value.low < truth < found.value.high)
    assert sum(inside) >= 5


@pytest.mark.slow
def test_hopeless_runs_are_stopped_and_promising_ones_not() -> None:
    stopped = {"hopeless": 0, "winning": 0, "tie": 0}
    floors = {"hopeless": 0.9, "winning": 0.5, "tie": 0.605}
    incumbent = 0.6 + 8.0 * 8000**-0.5
    for kind, floor in floors.items():
        for seed in range(5):
            rng = np.random.default_rng(seed)
            seen = (floor + 8.0 * STEPS[:20] ** -0.5) * np.exp(0.01 * rng.standard_normal(20))
            verdict = should_stop(STEPS[:20].tolist(), seen.tolist(), final_step=8000, incumbent=incumbent, seed=seed)
            assert verdict.probability is not None
            stopped[kind] += verdict.stop
    assert stopped["hopeless"] >= 4
    assert stopped["winning"] == 0
    assert stopped["tie"] <= 1


def test_few_points_stop_nothing() -> None:
    verdict = should_stop([1, 2, 3], [3, 2.9, 2.8], final_step=100, incumbent=0.1, seed=0)
    assert (verdict.stop, verdict.probability) == (False, None)
    assert "too few" in verdict.reason


def test_what_more_data_would_bring() -> None:
    """Four amounts of data, 1 % noise: the gain of doubling is inside the interval; flat runs foretell none."""
    inside = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        amounts = np.array([1e3, 2e3, 4e3, 8e3])
        truth = 0.5 + 30 * amounts**-0.5
        seen = truth * np.exp(0.01 * rng.standard_normal(4))
        found = grow(amounts.tolist(), seen.tolist(), 2.0, seed=seed)
        inside.append(found.gain.low <= float(truth[-1] - (0.5 + 30 * 16e3**-0.5)) <= found.gain.high)
    assert np.mean(inside) >= 0.8
    flat = grow([1e3, 2e3, 4e3, 8e3], [0.5, 0.5001, 0.4999, 0.5], 2.0, seed=0)
    assert flat.gain.value < 0.02


@pytest.mark.parametrize(
    ("steps", "values", "at", "needle"),
    [
        ([1, 2], [1, 1], 3, "3 points or more"),
        ([1, 2, 2.5], [1, 1, float("nan")], 3, "finite"),
        ([1, 3, 2], [1, 1, 1], 4, "ascending"),
        ([1, 2, 3], [1, 1, 1], 2, "at or beyond the last step"),
        ([1, 2, 3], [1, -1, 1], 4, "one side"),
    ],
)
def test_bad_curves(steps: list[float], values: list[float], at: float, needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        extrapolate(steps, values, at, seed=0)
    if needle == "ascending":
        assert grow(steps, values, 2.0, seed=0).value.value == pytest.approx(1.0, rel=0.05)  # grow sorts
    with pytest.raises(InputError, match="factor"):
        grow([1, 2, 3], [3, 2, 1], 1.0, seed=0)
