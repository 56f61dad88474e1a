"""Which candidates are trained on and for how long: forecasts and promotions, without any training."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.budget import parse_budget
from equipoise.records import Evaluation, Plan, digest, measured
from equipoise.road.here import Here
from equipoise.road.jobs import Job
from equipoise.road.proposals import worst_loss
from equipoise.road.rungs import (
    DECAY,
    LEAST_S,
    MENDABLE,
    RUNGS,
    Stand,
    _decay,
    _forecast,
    candidates,
    chance,
    fastest,
    promote,
    trainees,
)
from equipoise.study.store import Store


def trial(name: str, latency_ms: float, loss: float, drop: float = 1.0, **extra) -> Evaluation:
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(extra.get("size", 100), "B")}
    points = measured(drop, "points")
    return Evaluation(Plan({"width.a": name}), "one-shot", points, points, cost, damage=loss)


DROP = parse_budget("drop<=1")


def test_a_forecast_follows_the_power_law_it_was_given() -> None:
    assert _forecast(Stand(10.0, 4.0, 0.1, 0.3), 30.0, 1.0) == pytest.approx(1.0)  # four times the time, a quarter of the drop
    assert _forecast(Stand(10.0, 4.0, 0.1, 0.3), 0.0, 1.0) == pytest.approx(4.0)


def test_the_decay_is_learned_from_two_rungs() -> None:
    def rungs(*pairs: tuple[float, float]) -> dict[str, list[Stand]]:
        return {"a": [Stand(seconds, 5.0, 1.0, loss) for seconds, loss in pairs]}

    assert _decay(rungs((10.0, 0.8), (20.0, 0.8 * 2**-0.6))) == pytest.approx((DECAY + 0.6) / 2)
    assert _decay(rungs((10.0, 0.8))) == pytest.approx(DECAY)
    assert _decay(rungs((10.0, 0.1), (20.0, 0.9))) == pytest.approx(0.2)  # training that hurts never gives growth


def stood(rows: list[Evaluation], *drops: float, seconds: float = 10.0, error: float = 0.1) -> dict[str, list[Stand]]:
    return {e.plan.digest: [Stand(seconds, drop, error, drop / 30)] for e, drop in zip(rows, drops, strict=True)}


def test_with_a_drop_bound_the_one_that_promises_most_goes_on() -> None:
    rows = [trial("slow", 3, 0.1), trial("mid", 2, 0.2), trial("fast", 1, 0.4)]
    assert promote(rows, stood(rows, 1.0, 1.5, 50.0), 1, DROP, horizon=90.0, tried=[]) == [rows[1]]
    assert promote(rows, stood(rows, 1.0, 1.5, 50.0), 2, DROP, horizon=90.0, tried=[]) == rows[1::-1]
    assert promote(rows, stood(rows, 1.0, 1.5, 1.8), 1, DROP, horizon=90.0, tried=[]) == [rows[2]]


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
        rows[0].plan.digest: [Stand(62.0, 1.15, 0.85, 0.124), Stand(126.0, 1.49, 0.85, 0.128)],
        rows[1].plan.digest: [Stand(62.0, 2.18, 0.85, 0.196), Stand(126.0, 1.49, 0.85, 0.160)],
    }
    assert promote(rows, history, 1, DROP, horizon=1100.0, tried=[trial("kept", 4.4, 0.09, 0.69)]) == [rows[1]]
    assert 0.3 < chance(rows[1], history, DROP, horizon=1100.0) < 0.7
    assert chance(rows[1], history, parse_budget("size<=1MB"), horizon=1100.0) == 0.0


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


def test_what_lost_nothing_is_not_trained() -> None:
    assert candidates([trial("whole", 1.0, 1e-4)], DROP) == []


def test_what_is_beyond_hope_or_already_good_is_not_trained() -> None:
    rows = [trial("good", 3, 0.03, 0.5), trial("worth", 2, 0.2, 4.0), trial("lost", 1, 0.9, 30.0)]
    assert candidates(rows, DROP) == [rows[1]]
    assert candidates(rows[2:], DROP) == [rows[2]]  # better than nothing
    assert candidates([rows[0], rows[2]], DROP) == []  # something keeps the budget: the search may use the time


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
    assert promote(cut, {e.plan.digest: [] for e in cut}, 2, DROP, horizon=9.0, tried=[]) == [cut[1], cut[3]]
    new = [replace(trial(name, 1, 0.0), fidelity="untrained") for name in "nm"]
    mixed = [cut[0], new[0], cut[1], new[1]]
    found = promote(mixed, {e.plan.digest: [] for e in mixed}, 2, DROP, horizon=9.0, tried=[])
    assert {e.fidelity for e in found} == {"one-shot", "untrained"}
    quick = parse_budget("latency<=5ms, drop<=1")
    assert promote(cut, {e.plan.digest: [] for e in cut}, 2, quick, horizon=9.0, tried=[]) == cut[:2]


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
    def worst(text: str, pairs: list[tuple[float, float]], *, mendable: float = MENDABLE) -> float:
        rows = [trial(str(i), 1.0, nats, drop) for i, (nats, drop) in enumerate(pairs)]
        return worst_loss(rows, parse_budget(text), mendable=mendable)

    planted = [(0.1, 3.0), (0.2, 6.0), (0.4, 12.0), (0.001, 9.0)]  # 30 points a nat; the last is chance
    assert worst("drop<=1", planted) == pytest.approx(MENDABLE / 30)
    assert worst("drop<=1", planted, mendable=1.0) == pytest.approx(0.05)  # never below what is worth looking at
    assert worst("drop<=2", planted, mendable=1.0) == pytest.approx(2 / 30)
    assert worst("latency<=1ms", planted) == worst("drop<=1", []) == 1.0
