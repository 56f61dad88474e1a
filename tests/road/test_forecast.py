"""Forecasts of what training brings, against closed forms and planted laws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equipoise.road.forecast import AT_LOSS, AT_S, CHANCE, DECAY, LEVEL, OWN, SLOPE, Forecasts, Stand


def test_what_nobody_was_trained_for_is_what_was_believed_before() -> None:
    middle, spread = Forecasts({"a": AT_LOSS}, {}).drop("a", AT_S)
    assert middle == pytest.approx(math.exp(LEVEL[0]))
    assert spread == pytest.approx(math.sqrt(LEVEL[1] ** 2 + OWN**2 + CHANCE**2))
    later = Forecasts({"a": 2 * AT_LOSS}, {}).drop("a", 10 * AT_S)[0]
    assert later == pytest.approx(math.exp(LEVEL[0]) * 2 ** SLOPE[0] * 10 ** -DECAY[0])


def test_a_law_that_many_follow_is_found() -> None:
    draws = np.random.default_rng(0)
    before = {str(i): float(loss) for i, loss in enumerate(np.geomspace(0.05, 1.0, 12))}

    def law(loss: float, seconds: float) -> float:
        return 20 * loss**1.2 * seconds**-0.5

    trained = {
        plan: [Stand(s, law(loss, s) * float(np.exp(draws.normal(0, 0.1))), 0.01) for s in (60.0, 240.0)]
        for plan, loss in before.items()
    }
    found = Forecasts({**before, "new": 0.3}, trained)
    for seconds in (60.0, 1000.0):
        middle, spread = found.drop("new", seconds)
        assert middle == pytest.approx(law(0.3, seconds), rel=0.25)
        assert CHANCE < spread < 0.6
    assert found.drop("3", 700.0)[1] < found.drop("new", 1000.0)[1], "of itself a plan tells most"
    assert found.chance("new", 1000.0, 1.3 * law(0.3, 1000.0)) > 0.6
    assert found.chance("new", 1000.0, 0.5 * law(0.3, 1000.0)) < 0.2


def test_a_noisy_drop_moves_beliefs_less() -> None:
    sure, unsure = (Forecasts({"a": 0.3}, {"a": [Stand(60.0, 2.0, error)]}).drop("a", 60.0) for error in (0.02, 4.0))
    assert abs(math.log(sure[0] / 2.0)) < abs(math.log(unsure[0] / 2.0))
    assert sure[1] < unsure[1]
