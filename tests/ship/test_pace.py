"""What may be said of a promised speed: kept, broken, or that it cannot be told from here."""

from __future__ import annotations

import math

import pytest

from equipoise.budget import Constraint
from equipoise.measure.race import Race
from equipoise.records import Reading, measured
from equipoise.ship.pace import latency, speed, state
from equipoise.ship.promises import Check
from equipoise.ship.recheck import held
from equipoise.stats import Interval

PROMISED = measured(2.0, "1", low=1.95, high=2.05, n=8)
RACE = Race({"reference": (((1.0,),),) * 8, "program": (((0.5,),),) * 8}, "precision", 4.0, {"reference": 1.0, "program": 1.0})


def found(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half, 8)


@pytest.mark.parametrize(
    ("ratio", "at_home", "said", "why"),
    [
        (found(2.0), True, "kept", "within"),
        (found(1.96), True, "kept", "within"),
        (found(2.4), True, "kept", "faster than promised"),
        (found(1.7), True, "broken", "below the one promised"),
        (found(1.7), False, "cannot tell", "another CPU"),
        (found(1.92), True, "cannot tell", "still meets"),
        (found(2.0, 0.3), True, "cannot tell", "15.0% only, promised to ± 2.5%"),
        (found(1.2, 0.3), True, "broken", "below"),
        (found(0.5), True, "broken", "below"),
        (Interval(2.0, 0.0, math.inf, 1), True, "cannot tell", "too few"),
    ],
)
def test_a_speed_is_judged_by_the_two_intervals(ratio: Interval, at_home: bool, said: str, why: str) -> None:
    check = speed(PROMISED, ratio, RACE, at_home=at_home)
    assert check.state == said
    assert why in check.note


def test_a_promise_without_an_interval_is_not_judged_and_a_busy_machine_is_named() -> None:
    assert speed(measured(2.0, "1"), found(1.0), RACE, at_home=True).state == "cannot tell"
    busy = Race(RACE.rounds, "seconds", 9.0, {"reference": 2.0, "program": 1.0})
    assert "waited 50%" in speed(PROMISED, found(1.7), busy, at_home=True).note


@pytest.mark.parametrize(
    ("now", "at_home", "said"),
    [
        (measured(1.0, "s", low=0.99, high=1.01, n=8), True, "kept"),
        (measured(1.3, "s", low=1.29, high=1.31, n=8), True, "cannot tell"),
        (measured(1.0, "s", low=0.99, high=1.01, n=8), False, "cannot tell"),
        (measured(1.0, "s"), True, "cannot tell"),
    ],
)
def test_the_state_of_the_machine_is_told_and_breaks_nothing(now: Reading, at_home: bool, said: str) -> None:
    assert state(measured(1.0, "s", low=0.98, high=1.02, n=8), now, at_home=at_home).state == said


def test_few_processes_break_no_promise() -> None:
    few = Race({name: rows[:3] for name, rows in RACE.rounds.items()}, "seconds", 30.0, RACE.wait)
    check = speed(PROMISED, found(1.7), few, at_home=True)
    assert (check.state, "8 processes must tell" in check.note) == ("cannot tell", True)


@pytest.mark.parametrize(
    ("base", "as_exported", "bound", "said"),
    [
        (2e-3, True, 1.5e-3, "kept"),  # 1 ms at the export; the reference is as fast as then
        (2e-3, True, 0.9e-3, "broken"),
        (2e-3, False, 1.5e-3, "cannot tell"),  # 1 ms then, 3 ms now: the machine is slower, or the manifest lies
        (2e-6, False, 1e-5, "cannot tell"),  # a forged baseline does not make a bound kept
        (2e-3, False, 4e-3, "kept"),
        (2e-3, False, 0.5e-3, "broken"),
    ],
)
def test_a_bound_on_latency_is_kept_only_where_the_baseline_or_the_clock_shows_it(
    base: float, as_exported: bool, bound: float, said: str
) -> None:
    now = measured(3e-3, "s", low=2.9e-3, high=3.1e-3, n=8)
    reading = latency(base, found(2.0), now, as_exported=as_exported)
    assert held(Constraint("latency", "latency_s", "s", bound, upper=True), reading).state == said


def test_an_honest_artifact_on_a_machine_that_got_busy_is_not_called_broken() -> None:
    """Seen on EfficientNet-Lite0: promised on a quiet machine, verified beside four busy processes."""
    promise = measured(2.27, "1", low=2.21, high=2.32, n=8)

    def seen(ratio: float) -> Check:
        rounds = {"reference": (((3.04e-3,),),) * 8, "program": (((3.04e-3 / ratio,),),) * 8}
        busy = Race(rounds, "seconds", 60.0, {"reference": 1.67, "program": 1.67})
        return speed(promise, busy.speedup("reference", "program", at=2.43e-3), busy, at_home=True)

    assert seen(1.90).state == "cannot tell"
    assert seen(1.30).state == "broken"
