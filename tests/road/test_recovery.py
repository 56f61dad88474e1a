"""Which candidates are trained on: forecasts and promotions, without any training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from equipoise.road.recovery import DECAY, LEAST_S, _decay, _forecast, candidates, promote, recover

from equipoise.budget import Budget, parse_budget
from equipoise.records import Evaluation, Plan, measured
from equipoise.road import recovery
from equipoise.study.store import Store


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
    assert candidates(Road([rows[0], rows[2]]), 5) == []  # something keeps the budget: the search may use the time


class Timed(Road):
    """A road whose trainings take what they are given and whose evaluations take a second more."""

    overhead, spent, limit = 1.0, 0.0, 100.0

    def left(self) -> float:
        return self.limit - self.spent

    def expected(self, _fidelity: str) -> float:
        return self.overhead

    def tell(self, *_: object, **__: object) -> None:
        pass


def train(monkeypatch, road: Timed, *, ok: bool = True) -> list[tuple[str, int, float]]:
    """Recover with trainings that only take time; return (plan, rung, seconds) of each."""
    done: list[tuple[str, int, float]] = []

    def leg(road: Timed, start: Evaluation, rung: int, seconds: float) -> Evaluation:
        done.append((str(start.plan["width.a"]), rung, seconds))
        road.spent += (seconds if ok else 0.0) + road.overhead
        return replace(start, fidelity="recovered", leg=rung, error="" if ok else "TypeError: a tuple")

    monkeypatch.setattr(recovery, "_leg", leg)
    recover(road, reserve=5.0)
    return done


ROWS = [trial(str(i), 3 - i / 10, 0.03 * 1.6**i, 2.0 + i) for i in range(6)]


def test_the_rungs_use_the_time_and_no_more(monkeypatch) -> None:
    road = Timed(ROWS)
    road.limit = 200.0
    done = train(monkeypatch, road)
    assert [rung for _, rung, _ in done] == [1, 1, 1, 1, 2, 2, 3]
    assert road.spent == pytest.approx(195)
    assert all(seconds >= LEAST_S for _, _, seconds in done)


@pytest.mark.parametrize("limit", [10.0, 20.0, 40.0])
def test_a_short_time_trains_fewer_candidates_rather_than_none(monkeypatch, limit) -> None:
    road = Timed(ROWS)
    road.limit = limit
    done = train(monkeypatch, road)
    assert done
    assert all(seconds >= LEAST_S - 1e-9 for _, _, seconds in done)
    assert 0.9 * (limit - 5) <= road.spent <= limit - 5 + 1e-6


def test_without_time_for_one_training_nothing_is_trained(monkeypatch) -> None:
    road = Timed(ROWS)
    road.limit = 5.0 + LEAST_S
    assert train(monkeypatch, road) == []
    road.limit = 0.0
    assert train(monkeypatch, road) == []


def test_when_every_training_fails_the_time_is_given_back(monkeypatch) -> None:
    road = Timed(ROWS)
    assert {rung for _, rung, _ in train(monkeypatch, road, ok=False)} == {1}
    assert road.left() > 90


def test_the_same_start_and_time_find_their_training_again_and_others_make_a_new_one(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        road = SimpleNamespace(store=store)
        assert [recovery._number(road, ROWS[0], s) for s in (10.0, 10.0, 20.0, 10.0)] == [1, 1, 2, 1]
        assert recovery._number(road, ROWS[1], 10.0) == 1  # of another plan
        second = replace(ROWS[0], fidelity="recovered", leg=1)
        assert recovery._number(road, second, 10.0) == 3
