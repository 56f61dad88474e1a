"""Picks: the untouched model competes, failed and unmeasured ones never win."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.budget import parse_budget
from equipoise.errors import EquipoiseError, InputError
from equipoise.records import Evaluation, Plan, measured, unavailable
from equipoise.study.picks import apart, knee_of, parse_pick, peers, pick, promising, settled

NONE = parse_budget(None)


def point(name: str, latency_ms: float, size_kb: float, drop: float, **changes: object) -> Evaluation:
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(size_kb * 1e3, "B")}
    base = Evaluation(Plan({"name": name}), "one-shot", measured(95 - drop, "points"), measured(drop, "points"), cost)
    return replace(base, **changes)  # type: ignore[arg-type]


BASE = point("base", 10, 100, 0, fidelity="untouched")
FAST, SMALL, KNEE = point("fast", 1, 40, 30), point("small", 4, 10, 8), point("knee", 2, 30, 1)
BROKEN = point("broken", 0.1, 1, -5, error="it crashed")
BLIND = point("blind", 0.1, 1, -5, cost={"latency_s": unavailable("s", "no clock"), "size_bytes": measured(50e3, "B")})
ALL = [FAST, SMALL, KNEE, BROKEN]


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("fastest", "", FAST),
        ("fastest", "drop<=10", KNEE),
        ("smallest", "", SMALL),
        ("smallest", "drop<=2", KNEE),
        ("knee", "", KNEE),
        ("best", "", KNEE),
        ("best", "drop<=0.5", BASE),  # the untouched model competes though it is not in the list
        ("best", "latency<=5ms", KNEE),  # drop is free: the least drop
        ("best", "drop<=40, size<=45KB", FAST),  # drop is bounded: spend it
        ("latency<=1.5ms", "drop<=1", FAST),  # a written budget takes the place of the study's
        ("size<=20KB", "", SMALL),
    ],
)
def test_pick(text: str, budget: str, expected: Evaluation) -> None:
    assert pick(ALL, BASE, text, parse_budget(budget)) is expected


def test_what_measuring_cannot_tell_from_a_point_are_its_peers() -> None:
    def near(name: str, latency_ms: float, drop: float) -> Evaluation:
        latency = measured(latency_ms / 1e3, "s", low=0.97 * latency_ms / 1e3, high=1.03 * latency_ms / 1e3, n=9)
        found = point(name, latency_ms, 30, drop, cost={"latency_s": latency})
        return replace(found, drop=measured(drop, "points", low=drop - 1, high=drop + 1))

    one, like, slower, worse = near("one", 2, 1), near("like", 2.04, 1.5), near("slower", 2.5, 1), near("worse", 2, 4)
    assert peers([one, like, slower, worse, BROKEN, BLIND], one) == [one, like]


@pytest.mark.parametrize("other", [None, FAST, FAST.plan, 3])
def test_what_is_no_text_names_no_pick(other: object) -> None:
    with pytest.raises(InputError, match="pick must be one of best, fastest, knee, smallest, or a budget in words"):
        parse_pick(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["fastest", "knee", "best", "latency<=20ms, drop<=40"])
def test_failed_and_unmeasured_never_win(text: str) -> None:
    assert pick([BROKEN, BLIND, BASE], BASE, text, NONE) is BASE


def test_a_missed_budget_tells_the_nearest_and_what_binds() -> None:
    with pytest.raises(
        EquipoiseError, match=r"meets latency<=0\.5ms.*nearest has latency 1 ms; the bound on latency binds"
    ) as info:
        pick(ALL, BASE, "latency<=0.5ms", NONE)
    assert info.value.exit_code == 1


@pytest.mark.parametrize(("text", "message"), [("fasttest", "fastest"), ("latncy<=1ms", "latency"), ("latency<=1", "ms")])
def test_what_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pick(ALL, BASE, text, NONE)


def test_parse_pick() -> None:
    assert parse_pick("knee") is None
    found = parse_pick("drop<=1")
    assert found is not None
    assert found.bound("drop") == 1.0


def test_no_measured_evaluation_has_no_knee() -> None:
    with pytest.raises(InputError, match="measured evaluations"):
        knee_of([BROKEN, BLIND])


def noisy(name: str, latency_us: float, size_kb: float, drop: float, *, spread: float = 0.05, half: float = 1.8) -> Evaluation:
    """A point as it is measured: latency within a few per cent, drop within points."""
    exact = point(name, latency_us / 1e3, size_kb, drop)
    seconds = latency_us / 1e6
    latency = measured(seconds, "s", low=seconds * (1 - spread), high=seconds * (1 + spread), n=12)
    return replace(
        exact,
        cost={**exact.cost, "latency_s": latency},
        drop=measured(drop, "points", low=drop - half, high=drop + half, n=360),
    )


UNTOUCHED = replace(noisy("base", 30, 450, 0.0, half=0.5), fidelity="untouched")


def test_what_a_tenth_of_a_microsecond_cannot_tell_apart_is_decided_by_drop_and_size() -> None:
    bulky, lean = noisy("bulky", 10.0, 109, 2.19), noisy("lean", 10.1, 50, 0.35)
    assert pick([bulky, lean], UNTOUCHED, "best", parse_budget("drop<=3")) is lean
    assert pick([bulky, lean], UNTOUCHED, "fastest", NONE) is lean
    clearly = noisy("clearly", 8.0, 109, 2.19)
    assert pick([clearly, lean], UNTOUCHED, "best", parse_budget("drop<=3")) is clearly  # a real difference still decides


def test_a_gain_that_is_not_shown_is_no_reason_for_a_slower_model() -> None:
    slower = noisy("slower", 54, 400, -0.67, half=1.85)  # 1.80 times slower, drop -0.67 [-2.51, 1.18]
    faster = noisy("faster", 20, 100, 0.3)
    assert pick([slower, faster], UNTOUCHED, "latency<=1ms", NONE) is faster
    assert pick([slower], UNTOUCHED, "latency<=1ms", NONE) is UNTOUCHED
    assert knee_of([UNTOUCHED, slower])[0] is UNTOUCHED
    shown = noisy("shown", 54, 400, -3.0, half=1.0)
    assert pick([shown], UNTOUCHED, "latency<=1ms", NONE) is shown  # a gain beyond the noise counts


def test_a_drop_below_zero_counts_once_its_interval_leaves_zero_out() -> None:
    assert settled(measured(-0.67, "points", low=-2.51, high=1.18)) == 0.0
    assert settled(measured(-0.67, "points")) == 0.0  # no interval: nothing is shown
    assert settled(measured(-2.0, "points", low=-3.0, high=-1.0)) == -2.0
    assert settled(measured(0.4, "points", low=-1.0, high=1.8)) == 0.4


def test_what_was_hardly_timed_is_no_match_for_what_is_faster() -> None:
    """Two loads make an interval of a factor of ten, in which the untouched model lies too."""
    timed = measured(1.76e-3, "s", low=0.6e-3, high=4.9e-3)
    quick = point("quick", 1.76, 50, 0.9, cost={"latency_s": timed, "size_bytes": measured(50e3, "B")})
    slow = point("slow", 2.66, 40, 0.0)
    assert pick([quick, slow], BASE, "best", parse_budget("drop<=1")) is quick
    near = point("near", 1.8, 40, 0.0)
    assert pick([quick, slow, near], BASE, "best", parse_budget("drop<=1")) is near
    assert promising([slow, near, BROKEN, FAST, quick], parse_budget("drop<=1")) == [quick, near, slow]
    assert promising([slow, near, quick], parse_budget("latency<=2ms")) == [near, quick]
    assert promising([slow, quick], NONE) == []


def test_apart_takes_both_intervals_and_the_sides_that_face_each_other() -> None:
    def reading(value: float, below: float, above: float):
        return measured(value, "s", low=value - below, high=value + above)

    assert apart(measured(1.0, "s"), measured(1.01, "s"))  # exact figures
    assert not apart(reading(1.0, 0, 3), reading(6.0, 4, 0))  # 5 = the root of 9 + 16
    assert apart(reading(1.0, 0, 3), reading(6.1, 4, 0))
    assert apart(reading(1.0, 9, 0), reading(2.0, 0, 9))  # what lies on the far sides does not matter
    assert apart(reading(6.1, 4, 0), reading(1.0, 0, 3))


def test_the_knee_takes_the_smaller_of_two_that_cannot_be_told_apart() -> None:
    knee, twin = noisy("knee", 10.0, 60, 1.0, half=0.4), noisy("twin", 10.2, 40, 1.1, half=0.4)
    far = noisy("far", 3.0, 10, 40.0)
    assert knee_of([UNTOUCHED, far, knee, twin])[0] is twin
    assert (
        knee_of([UNTOUCHED, far, replace(knee, cost={**knee.cost, "size_bytes": measured(4e4 - 1, "B")}), twin])[0].key
        == knee.key
    )


@pytest.mark.parametrize("text", ["memory<=1MB", "energy<=1mJ", "throughput>=100", "price<=1$"])
def test_a_pick_by_what_this_study_did_not_measure_is_refused(text: str) -> None:
    word = text.partition("<")[0].partition(">")[0]
    with pytest.raises(InputError, match=rf"pick {word} must be on what this study measured.*Name it in --budget"):
        pick(ALL, BASE, text, NONE)


def test_a_pick_by_what_the_budget_had_measured_is_found() -> None:
    light, heavy = (
        replace(e, cost={**e.cost, "peak_memory_bytes": measured(mb * 1e6, "B")}) for e, mb in ((SMALL, 1.0), (FAST, 9.0))
    )
    assert pick([light, heavy], BASE, "memory<=2MB", NONE) is light
