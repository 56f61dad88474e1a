"""Which candidates are trained on: forecasts and promotions, without any training."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from equipoise.budget import Budget, parse_budget
from equipoise.records import Evaluation, Plan, measured
from equipoise.recovery import DECAY, _decay, _forecast, candidates, promote


def trial(name: str, latency_ms: float, loss: float, drop: float = 1.0, **extra) -> Evaluation:
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(extra.get("size", 100), "B")}
    points = measured(drop, "points")
    return Evaluation(Plan({"width.a": name}), "one-shot", points, points, cost, details={"loss": loss})


@dataclass
class Road:
    evaluations: list[Evaluation]
    budget: Budget = field(default_factory=lambda: parse_budget("drop<=1"))


def test_a_forecast_follows_the_power_law_it_was_given() -> None:
    assert _forecast([(10.0, 4.0)], 30.0, 1.0) == pytest.approx(1.0)  # four times the time, a quarter of the drop
    assert _forecast([(10.0, 4.0)], 0.0, 1.0) == pytest.approx(4.0)


def test_the_decay_is_learned_from_two_rungs() -> None:
    planted = {"a": [(10.0, 8.0), (20.0, 8.0 * 2**-0.4)]}
    assert _decay(planted) == pytest.approx((DECAY + 0.4) / 2)
    assert _decay({"a": [(10.0, 8.0)]}) == pytest.approx(DECAY)
    assert _decay({"a": [(10.0, 1.0), (20.0, 9.0)]}) == pytest.approx(0.2)  # training that hurts never gives growth


def test_with_a_drop_bound_the_fastest_that_will_keep_it_goes_on() -> None:
    rows = [trial("slow", 3, 0.1), trial("mid", 2, 0.2), trial("fast", 1, 0.4)]
    trained = {rows[0].plan.digest: [(10.0, 1.0)], rows[1].plan.digest: [(10.0, 2.0)], rows[2].plan.digest: [(10.0, 50.0)]}
    assert promote(Road(rows), rows, trained, 1, horizon=90.0) == [rows[1]]
    assert promote(Road(rows), rows, trained, 2, horizon=90.0) == rows[1::-1]


def test_when_none_will_keep_it_the_best_forecast_goes_on() -> None:
    rows = [trial("slow", 3, 0.1), trial("fast", 1, 0.4)]
    trained = {rows[0].plan.digest: [(10.0, 90.0)], rows[1].plan.digest: [(10.0, 50.0)]}
    assert promote(Road(rows), rows, trained, 1, horizon=10.0) == [rows[1]]


def test_candidates_meet_the_bounds_that_training_cannot_change() -> None:
    rows = [trial("a", 0.9, 0.5), trial("b", 2.0, 0.1), trial("c", 0.5, 0.9)]
    found = candidates(Road(rows, parse_budget("latency<=1ms, drop<=1")), 5)
    assert {e.key for e in found} == {rows[0].key, rows[2].key}


def test_candidates_are_spread_over_the_loss_and_never_dominated() -> None:
    rows = [trial(str(i), 3 - i / 10, 0.03 * 1.15**i) for i in range(25)]
    beaten = trial("beaten", 3.0, 0.9)
    found = candidates(Road([*rows, beaten]), 5)
    assert len(found) == 5
    assert beaten not in found
    assert (found[0], found[-1]) == (rows[0], rows[-1])


def test_what_lost_nothing_is_not_trained() -> None:
    assert candidates(Road([trial("whole", 1.0, 1e-4)]), 5) == []


def test_what_is_beyond_hope_or_already_good_is_not_trained() -> None:
    rows = [trial("good", 3, 0.03, 0.5), trial("worth", 2, 0.2, 4.0), trial("lost", 1, 0.9, 30.0)]
    assert candidates(Road(rows), 5) == [rows[1]]
    assert candidates(Road(rows[2:]), 5) == [rows[2]]  # better than nothing
