"""Which rung answers, of how many requests, when it climbs again, and what it tells those who must wait."""

from __future__ import annotations

import pytest

from equipoise.serve.dispatch import BUSY, DWELL, FORGET_S, Arrivals, Cost, Dispatcher

BEST = Cost({1: 0.010, 4: 0.030}, {1: 0.012, 4: 0.036})
QUICK = Cost({1: 0.001, 4: 0.003}, {1: 0.0012, 4: 0.0036})


def cost(of: Cost) -> Cost:
    return Cost(of.usual, of.most)


SLO_S = 0.04
DWELL_S = DWELL * SLO_S


def dispatcher() -> Dispatcher:
    return Dispatcher([cost(BEST), cost(QUICK)], SLO_S)


def test_the_best_rung_answers_while_there_is_time() -> None:
    turn = dispatcher().turn(0.0, [0.020])
    assert (turn.rung, turn.batch, turn.why) == (0, 1, "")


def test_less_slack_takes_the_quick_one_at_once_and_says_why() -> None:
    turn = dispatcher().turn(0.0, [0.005])
    assert (turn.rung, turn.batch) == (1, 1)
    assert "slack" in turn.why


def test_those_behind_the_oldest_count_too() -> None:
    assert dispatcher().turn(0.0, [0.040] * 4).rung == 0  # one batch of four
    assert dispatcher().turn(0.0, [0.040] * 8).rung == 1  # the second batch would be late


def test_a_batch_is_no_larger_than_the_oldest_has_time_for() -> None:
    assert Dispatcher([cost(BEST)], SLO_S).turn(0.0, [0.013, 0.1, 0.1, 0.1]).batch == 1
    assert dispatcher().turn(0.0, [0.1] * 4).batch == 4
    assert dispatcher().turn(0.0, [0.1] * 3).batch == 1  # of the sizes that were measured


def test_where_not_all_can_be_in_time_the_quickest_answers() -> None:
    turn = dispatcher().turn(0.0, [0.002] * 8)
    assert turn.rung == 1
    assert turn.why == "none is in time"


def test_of_sizes_the_one_that_takes_least_for_each_is_run() -> None:
    slow = Cost({1: 0.010, 4: 0.060}, {1: 0.012, 4: 0.066})
    assert Dispatcher([slow], SLO_S).turn(0.0, [1.0] * 8).batch == 1
    assert Dispatcher([cost(BEST)], SLO_S).turn(0.0, [1.0] * 8).batch == 4


def test_who_is_late_already_counts_as_if_it_had_come_now() -> None:
    assert dispatcher().turn(0.0, [-0.5, -0.4]).rung == 0
    assert dispatcher().turn(0.0, [-0.5, 0.0001, 0.1]).rung == 0
    assert dispatcher().turn(0.0, [-0.5, 0.005]).rung == 1  # one behind it that can be in time
    assert dispatcher().turn(0.0, [-0.5] * 8).rung == 1  # many of them: whoever comes next would wait for long


def test_requests_for_one_rung_are_run_by_it_and_apart() -> None:
    made = dispatcher()
    turn = made.turn(0.0, [0.1] * 5, [1, 1, 1, 1, None])
    assert (turn.rung, turn.batch, turn.why, made.rung) == (1, 4, "", 0)
    assert made.turn(0.0, [0.1] * 5, [None, 0, 0, 0, 0]).batch == 1


def test_those_who_ask_for_a_rung_hurry_the_others_before_them() -> None:
    assert dispatcher().turn(0.0, [0.050, 0.020], [None, 0]).rung == 1  # the best one first would make the second late
    assert dispatcher().turn(0.0, [0.050, 0.030], [None, 0]).rung == 0
    assert dispatcher().turn(0.0, [0.050, 0.005], [None, 0]).rung == 0  # that one is late whatever is run


def test_it_climbs_after_a_dwell_and_only_where_the_arrivals_leave_room() -> None:
    made = dispatcher()
    made.turn(0.0, [0.005])
    assert made.turn(DWELL_S / 2, [DWELL_S / 2 + 1]).rung == 1
    assert made.turn(DWELL_S * 1.1, [DWELL_S * 1.1 + 1]).rung == 0
    busy = dispatcher()
    busy.turn(0.0, [0.005])
    rate = 2 * BUSY * busy.costs[0].capacity
    for step in range(int(9 * rate)):
        busy.arrivals.seen(step / rate)
    assert busy.arrivals.per_s(9.0) == pytest.approx(rate, rel=0.1)
    assert busy.turn(9.0, [10.0]).rung == 1


def test_a_rung_that_is_set_aside_answers_no_more() -> None:
    made = dispatcher()
    made.broken.add(0)
    assert made.turn(0.0, [1.0]).rung == 1
    assert made.able == [1]


def test_a_machine_that_became_slower_is_noticed_and_forgiven() -> None:
    made = cost(BEST)
    for _ in range(100):
        made.learn(1, 0.020, 0.0)
    assert made.seconds(1) == pytest.approx(0.020, rel=0.02)
    assert made.seconds(4) == pytest.approx(0.036)  # of which nothing was seen
    for _ in range(100):
        made.learn(1, 0.010, 0.0)
    assert made.seconds(1) == pytest.approx(0.010, rel=0.02)


def test_a_pause_of_the_machine_costs_no_rung_its_place() -> None:
    made = dispatcher()
    made.costs[0].learn(1, 5.0, 0.0)
    assert 0.020 < made.costs[0].seconds(1) < 0.030
    for _ in range(50):
        made.costs[0].learn(1, 5.0, 0.0)
    assert made.turn(1.0, [1.04]).rung == 1  # not one pause but slow
    assert made.turn(1.1 + FORGET_S, [1.14 + FORGET_S]).rung == 0  # it is tried again


def test_who_must_wait_is_told_how_long() -> None:
    assert dispatcher().wait({None: 1}) == pytest.approx(0.0012)
    assert dispatcher().wait({None: 8}) == pytest.approx(0.0072)  # two batches of four
    assert dispatcher().wait({None: 5}) == pytest.approx(0.0036 + 0.0012)
    assert dispatcher().wait({None: 1, 0: 5}) == pytest.approx(0.0012 + 0.036 + 0.012)


def test_arrivals_fade() -> None:
    seen = Arrivals(1.0)
    assert seen.per_s(5.0) == 0.0
    seen.seen(0.0, 10)
    assert seen.per_s(0.0) == 10.0
    assert seen.per_s(10.0) < 0.01
