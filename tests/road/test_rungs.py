"""Which candidates are trained on and for how long: forecasts and promotions, without any training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.budget import parse_budget
from equipoise.records import Evaluation, Plan, digest, measured
from equipoise.road.forecast import Forecasts, Stand
from equipoise.road.here import Here
from equipoise.road.jobs import Job
from equipoise.road.proposals import UNTRAINED, worst_loss
from equipoise.road.rungs import (
    LEAST_S,
    MARGIN,
    MENDABLE,
    MENDABLE_LOSS,
    RUNGS,
    alone,
    candidates,
    fastest,
    forecasts,
    mendable_loss,
    promote,
    reserves,
    trainees,
)
from equipoise.study.store import Store


def trial(name: str, latency_ms: float, loss: float, drop: float = 1.0, **extra) -> Evaluation:
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(extra.get("size", 100), "B")}
    points = measured(drop, "points")
    return Evaluation(Plan({"width.a": name}), "one-shot", points, points, cost, damage=loss)


DROP = parse_budget("drop<=1")


def stood(rows: list[Evaluation], *drops: float, seconds: float = 10.0, error: float = 0.1) -> Forecasts:
    trained = {e.plan.digest: [Stand(seconds, drop, error)] for e, drop in zip(rows, drops, strict=True)}
    return forecasts(rows, trained)


def test_with_a_drop_bound_the_one_that_promises_most_goes_on() -> None:
    rows = [trial("slow", 3, 0.1), trial("mid", 2, 0.2), trial("fast", 1, 0.4)]
    assert promote(rows, stood(rows, 0.9, 0.9, 50.0), 1, DROP, horizon=90.0, tried=[]) == [rows[1]]
    assert promote(rows, stood(rows, 0.9, 0.9, 50.0), 2, DROP, horizon=90.0, tried=[]) == rows[1::-1]
    assert promote(rows, stood(rows, 0.9, 0.9, 1.0), 1, DROP, horizon=90.0, tried=[]) == [rows[2]]


def test_once_something_keeps_the_bounds_only_what_is_faster_promises() -> None:
    rows = [trial("slow", 3, 0.1), trial("mid", 2, 0.2), trial("fast", 1, 0.4)]
    kept = trial("kept", 2.1, 0.01, 0.3)
    sure = stood(rows, 0.05, 0.05, 3.0)
    assert promote(rows, sure, 1, DROP, horizon=90.0, tried=[]) == [rows[1]]
    assert promote(rows, sure, 1, DROP, horizon=90.0, tried=[kept]) == [rows[2]]  # the half that has a chance, not a twentieth
    assert promote(rows, sure, 1, DROP, horizon=90.0, tried=[trial("lost", 2.1, 0.01, 0.9)]) == [rows[1]]  # too near the bound
    assert fastest([kept, rows[2]], DROP) == pytest.approx(2.1e-3)
    assert fastest([rows[2]], DROP) is None


def test_a_drop_that_the_sample_does_not_tell_is_no_verdict() -> None:
    """Two that drop alike: the slower was preferred, as the noise of its drop said that training did not help."""
    rows = [trial("slow", 3.7, 0.13, 1.5), trial("fast", 1.7, 0.16, 1.5)]
    history = {
        rows[0].plan.digest: [Stand(62.0, 1.15, 0.85), Stand(126.0, 1.49, 0.85)],
        rows[1].plan.digest: [Stand(62.0, 2.18, 0.85), Stand(126.0, 1.49, 0.85)],
    }
    outlook = forecasts(rows, history)
    assert promote(rows, outlook, 1, DROP, horizon=1100.0, tried=[trial("kept", 4.4, 0.09, 0.69)]) == [rows[1]]
    assert 0.3 < outlook.chance(rows[1].plan.digest, 1100.0, MARGIN) < 0.8


def test_one_that_was_not_trained_goes_on_where_those_trained_tell_that_it_will_do() -> None:
    """A ResNet-20: with one plan within the bounds and one far beyond, neither is what the time is best spent on."""
    rows = [trial("safe", 0.60, 0.13, 3.3), trial("between", 0.44, 0.30, 9.0), trial("bold", 0.25, 0.9, 18.0)]
    history = {
        rows[0].plan.digest: [Stand(59.0, 2.8, 0.4), Stand(199.0, 0.7, 0.4)],
        rows[2].plan.digest: [Stand(59.0, 14.0, 0.6)],
    }
    tried = [*rows, replace(trial("safe", 0.60, 0.12, 0.7), fidelity="recovered")]
    pool = [rows[0], rows[2], *reserves(rows, history, DROP)]
    assert pool[-1] is rows[1]
    outlook = forecasts(tried, history)
    assert promote(pool, outlook, 1, DROP, horizon=1500.0, tried=tried) == [rows[1]]
    middle, spread = outlook.drop(rows[1].plan.digest, 1500.0)
    assert outlook.drop(rows[0].plan.digest, 1300.0)[0] < middle < outlook.drop(rows[2].plan.digest, 1441.0)[0]
    assert spread > outlook.drop(rows[0].plan.digest, 1300.0)[1], "of itself a plan tells most"
    assert reserves(rows, history, parse_budget("latency<=1ms")) == []
    assert reserves([trial("good", 0.5, 0.02, 0.9), trial("ruined", 0.1, 3.0, 40.0)], history, DROP) == []


def test_what_is_likely_to_do_gets_no_more_than_it_needs() -> None:
    (e,) = rows = [trial("one", 1, 0.2)]
    time = {"share_s": 400.0, "room_s": 1000.0, "overhead_s": 10.0}
    assert alone(e, stood(rows, 0.4, seconds=60.0), DROP, **time) == 250.0
    assert alone(e, stood(rows, 1.5, seconds=60.0), DROP, **time) == 400.0
    assert alone(e, stood(rows, 4.0, seconds=60.0), DROP, **time) == 1000.0
    assert alone(e, forecasts(rows, {}), DROP, **time) == 1000.0
    assert alone(e, stood(rows, 0.4, seconds=60.0), parse_budget("latency<=1ms"), **time) == 1000.0


def test_when_none_will_keep_it_the_best_forecast_goes_on() -> None:
    rows = [trial("slow", 3, 0.1), trial("fast", 1, 0.4)]
    assert promote(rows, stood(rows, 90.0, 50.0), 1, DROP, horizon=10.0, tried=[]) == [rows[1]]


def test_candidates_meet_the_bounds_that_training_cannot_change() -> None:
    rows = [trial("a", 0.9, 0.5), trial("b", 2.0, 0.1), trial("c", 0.5, 0.9)]
    found = candidates(rows, parse_budget("latency<=1ms, drop<=1"))
    assert {e.key for e in found} == {rows[0].key, rows[2].key}


def test_candidates_are_spread_over_the_loss_and_never_dominated() -> None:
    rows = [trial(str(i), 3 - i / 10, 0.03 * 1.15**i) for i in range(25)]
    beaten = trial("beaten", 3.0, 0.9)
    found = candidates([*rows, beaten], DROP)
    assert len(found) == RUNGS[0][0]
    assert beaten not in found
    assert (found[0], found[-1]) == (rows[0], rows[-1])


def test_what_lost_few_nats_is_trained_whatever_it_drops() -> None:
    """Sentences written word by word: 27 points are gone at 0.4 nats, and training brings them back."""
    rows = [trial("translates", 1.0, 0.4, 27.0), trial("ruined", 0.5, 2.0, 37.0)]
    assert candidates(rows, DROP) == rows[:1] == reserves(rows, {}, DROP)


def test_what_lost_nothing_is_not_trained() -> None:
    assert candidates([trial("whole", 1.0, 1e-4)], DROP) == []


def test_what_is_beyond_hope_or_already_good_is_not_trained() -> None:
    rows = [trial("good", 3, 0.03, 0.5), trial("worth", 2, 0.2, 4.0), trial("lost", 1, 0.9, 30.0)]
    assert candidates(rows, DROP) == [rows[1]]
    assert candidates(rows[2:], DROP) == [rows[2]]  # better than nothing
    assert candidates([rows[0], rows[2]], DROP) == []  # something keeps the budget: the search may use the time


def test_what_chooses_among_many_may_lose_more_before_it_is_trained() -> None:
    assert mendable_loss(0) == mendable_loss(10) == MENDABLE_LOSS
    assert mendable_loss(5000) == pytest.approx(1.42, abs=0.01)
    rows = [trial("worth", 2, 0.2, 4.0), trial("deep", 1, 0.9, 30.0), trial("lost", 0.5, 1.5, 35.0)]
    assert candidates(rows, DROP, mendable=mendable_loss(5000)) == rows[:2]
    assert reserves(rows, {}, DROP, mendable=mendable_loss(5000)) == rows[:2]


ROWS = [trial(str(i), 3 - i / 10, 0.03 * 1.6**i, 2.0 + i) for i in range(6)]


def trained_in(limit: float, *, overhead: float = 1.0, reserve: float = 5.0, alive: int = 4) -> tuple[list[int], float]:
    """Take every rung that is worth it; return (candidates of each, seconds spent)."""
    spent, carried, counts = 0.0, 0.0, []
    for rung, (most, share) in enumerate(RUNGS):
        carried += share
        room = limit - spent - reserve
        count, seconds = trainees(rung, alive, room, overhead, carried)
        seconds = room if most == 1 and count else seconds  # as where the one that is left needs all of it
        counts.append(max(0, count))
        if count > 0:
            assert seconds / count - overhead >= LEAST_S - 1e-9
            spent, carried, alive = spent + seconds, 0.0, count
    return counts, spent


def test_the_rungs_use_the_time_and_no_more() -> None:
    assert trained_in(200.0) == ([4, 2, 1, 0], pytest.approx(195.0))


@pytest.mark.parametrize(("limit", "counts"), [(10.0, [0, 0, 1, 0]), (20.0, [0, 0, 1, 0]), (40.0, [0, 2, 1, 0])])
def test_a_short_time_trains_fewer_candidates_rather_than_none(limit, counts) -> None:
    assert trained_in(limit) == (counts, pytest.approx(limit - 5))


def test_no_rung_but_the_last_measures_longer_than_it_trains() -> None:
    for limit in (400.0, 1600.0, 6400.0):
        for rung in (0, 1):
            count, seconds = trainees(rung, 4, limit, 36.0, RUNGS[rung][1])
            assert count == 0 or seconds / count - 36.0 >= 36.0
    counts, _ = trained_in(1600.0, overhead=36.0)  # 47 s for each of four, 36 of them for its evaluation, told nothing
    assert counts == [2, 2, 1, 0]
    assert trained_in(1100.0, overhead=40.0)[0] == [0, 2, 1, 0]  # one alone is compared with nothing


def test_of_those_that_were_not_trained_some_of_each_kind_are_spread() -> None:
    cut = [trial(str(i), 3 - i / 10, 0.1 * (i + 1)) for i in range(4)]
    assert promote(cut, forecasts(cut, {}), 2, DROP, horizon=9.0, tried=[]) == [cut[1], cut[3]]
    new = [replace(trial(name, 1, 0.0), fidelity="untrained") for name in "nm"]
    mixed = [cut[0], new[0], cut[1], new[1]]
    found = promote(mixed, forecasts(mixed, {}), 2, DROP, horizon=9.0, tried=[])
    assert {e.fidelity for e in found} == {"one-shot", "untrained"}
    quick = parse_budget("latency<=5ms, drop<=1")
    assert promote(cut, forecasts(cut, {}), 1, parse_budget(""), horizon=9.0, tried=[]) == [cut[2]]
    assert promote(cut, forecasts(cut, {}), 2, quick, horizon=9.0, tried=[]) == cut[:2]


def test_where_one_alone_is_trained_it_is_the_one_that_promises_most() -> None:
    """The digits: the middle of four had lost half a nat; in the ten seconds that there were it came back to 2 points."""
    rows = [trial("mild", 2.21, 0.154, 2.75), trial("half", 1.85, 0.307, 8.25), trial("bold", 1.10, 0.55, 15.25)]
    whole = trial("whole", 4.3, 0.0, 0.25)
    assert promote(rows, forecasts(rows, {}), 1, DROP, horizon=8.0, tried=[*rows, whole]) == [rows[0]]
    better = trial("better", 2.0, 0.0, 0.25)
    assert promote(rows, forecasts(rows, {}), 1, DROP, horizon=8.0, tried=[*rows, better]) != [rows[0]]


def test_without_time_for_one_training_nothing_is_trained() -> None:
    assert trained_in(5.0 + LEAST_S) == ([0, 0, 0, 0], 0.0)
    assert trained_in(0.0) == ([0, 0, 0, 0], 0.0)


def test_the_same_start_and_time_find_their_training_again_and_others_make_a_new_one(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        here = Here(store, None, None, dict)  # type: ignore[arg-type]

        def number(start: Evaluation, seconds: float) -> int:
            job = Job("leg", digest([start.key, seconds]), {"plan": start.plan.digest})
            return store.once(job.kind, job.key, lambda: here.run(job))["leg"]

        assert [number(ROWS[0], s) for s in (10.0, 10.0, 20.0, 10.0)] == [1, 1, 2, 1]
        assert number(ROWS[1], 10.0) == 1  # of another plan
        assert number(replace(ROWS[0], fidelity="recovered", leg=1), 10.0) == 3


def test_a_bound_on_the_drop_says_how_much_loss_is_of_interest() -> None:
    def worst(text: str, pairs: list[tuple[float, float]], *, mendable: tuple[float, float] = (MENDABLE, 0.1)) -> float:
        rows = [trial(str(i), 1.0, nats, drop) for i, (nats, drop) in enumerate(pairs)]
        return worst_loss(rows, parse_budget(text), mendable=mendable)

    planted = [(0.1, 3.0), (0.2, 6.0), (0.4, 12.0), (0.001, 9.0)]  # 30 points a nat; the last is chance
    assert worst("drop<=1", planted) == pytest.approx(MENDABLE / 30)
    assert worst("drop<=0.1", planted) == pytest.approx(0.1)  # training mends as much whatever it drops
    assert worst("drop<=1", planted, mendable=UNTRAINED) == pytest.approx(0.05)  # never below what is worth looking at
    assert worst("drop<=2", planted, mendable=UNTRAINED) == pytest.approx(2 / 30)
    assert worst("latency<=1ms", planted) == worst("drop<=1", []) == 1.0
