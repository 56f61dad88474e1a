"""Many loads: what is loaded when, what is a sample, when it stops. No test passes or fails on a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from equipoise.errors import InputError
from equipoise.measure import latency, loads
from equipoise.measure.loads import BATCH, VISITS, Call, Load, LoadComparison, compare_loads, summarize
from equipoise.stats import verdict

pytestmark = pytest.mark.slow  # times real loads


class Clock:
    """A clock that only contenders move."""

    def __init__(self) -> None:
        self.now = 0

    def contender(self, draw: Callable[[int], float], made: list[str], name: str, *, load_s: float = 0.0) -> Load:
        """A program whose seconds a call are drawn when it is loaded: `draw` gets the number of the load."""

        def load() -> Call:
            seconds = draw(made.count(name))
            made.append(name)
            self.now += int(load_s * 1e9)

            def call() -> None:
                self.now += round(seconds * 1e9)

            return call

        return load


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (latency, loads):
        monkeypatch.setattr(module.time, "perf_counter_ns", lambda: made.now)
        monkeypatch.setattr(module.time, "perf_counter", lambda: made.now / 1e9)
        monkeypatch.setattr(module.time, "process_time_ns", lambda: made.now)
    return made


def test_every_contender_is_loaded_as_often_and_every_load_is_visited_as_often(clock: Clock) -> None:
    made: list[str] = []
    contenders = {name: clock.contender(lambda _: 0.001, made, name) for name in "ab"}
    found = compare_loads(contenders, seconds=100.0)
    assert made.count("a") == made.count("b") == found.loads == BATCH
    assert {len(rounds) for name in "ab" for rounds in found.blocks[name]} == {VISITS}
    assert found.stopped == "precision"


def test_the_load_is_the_sample_and_not_the_call(clock: Clock) -> None:
    """Two humps a third apart, as loads of one file were seen to be: calls within a load all agree."""
    hump = [1.0, 1.33, 1.33, 1.0, 1.0, 1.33]
    made: list[str] = []
    contenders = {
        "a": clock.contender(lambda i: 0.001 * hump[i % 6], made, "a"),
        "b": clock.contender(lambda i: 0.001 * hump[(i + 2) % 6], made, "b"),
    }
    found = compare_loads(contenders, seconds=3.0)
    ratio = found.speedup("a", "b")
    assert verdict(ratio) == "cannot tell"
    assert ratio.half_width > 0.05
    one = {name: calls[:1] for name, calls in found.blocks.items()}
    alone = LoadComparison(one, "loads", 0.0, 0, {}).speedup("a", "b")
    assert not alone.bounded, "one load has no interval"


def test_more_loads_are_made_while_the_interval_is_wide(clock: Clock) -> None:
    made: list[str] = []
    contenders = {
        "a": clock.contender(lambda _: 0.001, made, "a"),
        "b": clock.contender(lambda i: 0.001 * (1 + 0.1 * (i % 2)), made, "b"),
    }
    found = compare_loads(contenders, seconds=1000.0, most=30)
    assert (found.stopped, found.loads) == ("loads", 30)
    assert found.speedup("a", "b").value == pytest.approx(1 / math.sqrt(1.1), rel=0.01)


def test_it_stops_in_time_and_says_so(clock: Clock) -> None:
    made: list[str] = []
    contenders = {
        "a": clock.contender(lambda i: 0.01 * (1 + i % 2), made, "a", load_s=0.1),
        "b": clock.contender(lambda _: 0.01, made, "b", load_s=0.1),
    }
    found = compare_loads(contenders, seconds=20.0)
    assert found.stopped == "seconds"
    assert 10.0 < found.seconds <= 20.0


def test_however_little_time_there_is_two_loads_of_each_are_made(clock: Clock) -> None:
    made: list[str] = []
    found = compare_loads({name: clock.contender(lambda _: 0.5, made, name, load_s=3.0) for name in "ab"}, seconds=0.1)
    assert found.loads == 2
    assert found.speedup("a", "b").bounded


def test_a_disturbed_round_does_not_count_against_its_load(clock: Clock) -> None:
    quiet = [[0.001] * 5] * 3
    disturbed = LoadComparison({"a": (tuple(map(tuple, [*quiet, [0.002] * 5])),) * 3}, "loads", 0.0, 0, {"a": 1.0})
    assert disturbed.times("a") == (0.001,) * 3


def test_the_seed_repeats_order_and_layout(clock: Clock) -> None:
    def order(seed: int) -> list[str]:
        made: list[str] = []
        compare_loads({name: clock.contender(lambda _: 0.001, made, name) for name in "abc"}, seconds=9.0, seed=seed)
        return made

    assert order(1) == order(1)
    assert order(1) != order(2)


def _comparison(loads: list[list[float]], wait: float = 1.0) -> LoadComparison:
    return LoadComparison({"a": tuple((tuple(calls),) for calls in loads)}, "loads", 1.0, 0, {"a": wait})


def test_a_steady_program_is_stable_and_its_figures_are_exact() -> None:
    profile = summarize(_comparison([[0.002] * 20] * 6), "a", batch=8)
    assert (profile.stable, profile.advice) == (True, "")
    assert (profile.p50.value, profile.p50.low, profile.p50.high) == (pytest.approx(0.002),) * 3
    assert profile.p95.value == 0.002
    assert profile.throughput.value == pytest.approx(4000.0)


def test_loads_that_differ_are_told_with_a_remedy() -> None:
    profile = summarize(_comparison([[0.001] * 20, [0.0013] * 20] * 3), "a")
    assert not profile.stable
    assert "loads differ by" in profile.advice
    assert "side by side" in profile.advice
    assert "waited 50% of the time" in summarize(_comparison([[0.001] * 20] * 6, wait=2.0), "a").advice
    assert "only 2 loads" in summarize(_comparison([[0.001] * 20] * 2), "a").advice


def test_p95_needs_samples_and_sees_the_tail() -> None:
    assert "needs 72" in summarize(_comparison([[1.0] * 10] * 7), "a").p95.note
    profile = summarize(_comparison([[1.0] * 36 + [5.0] * 4] * 12), "a")
    assert (profile.p50.value, profile.p95.value) == (pytest.approx(1.0), 5.0)


def test_real_work_ten_times_as_long_is_told_apart() -> None:
    """Ten-fold work, so that no load can hide it; the oracle of the protocol on a real clock."""
    found = compare_loads({"long": lambda: lambda: sum(range(30_000)), "short": lambda: lambda: sum(range(3_000))}, seconds=2.0)
    assert found.speedup("long", "short").low > 2


def test_limits_that_cannot_be_are_refused() -> None:
    for contenders, options in (
        ({}, {"seconds": 1.0}),
        ({"a": int}, {"seconds": 0.0}),
        ({"a": int}, {"seconds": 1, "most": 1}),
    ):
        with pytest.raises(InputError, match=r"measure\.compare_loads"):
            compare_loads(contenders, **options)  # type: ignore[arg-type]


def test_loads_that_take_longer_than_what_is_left_are_timed_all_the_same(clock: Clock) -> None:
    made: list[str] = []
    slow = iter([1.0] * 6 + [4.0] * 60)

    def contender(name: str) -> Load:
        inner = clock.contender(lambda n: 0.002 + 0.001 * (n % 3), made, name)

        def load() -> Call:
            clock.now += int(next(slow) * 1e9)
            return inner()

        return load

    found = compare_loads({name: contender(name) for name in "ab"}, seconds=24.0)
    assert found.loads == len(made) // 2
    assert found.speedup("a", "b").bounded
