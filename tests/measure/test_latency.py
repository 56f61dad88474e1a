"""The block protocol: what is called when, what is kept, when it stops. No test passes or fails on a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from equipoise.errors import InputError
from equipoise.measure import latency
from equipoise.measure.latency import block, interleave


class Clock:
    """A clock that only contenders move, so that blocks are exact."""

    def __init__(self) -> None:
        self.now = 0

    def contender(self, seconds: float | Iterator[float], log: list[str], name: str) -> Callable[[], None]:
        def call() -> None:
            log.append(name)
            self.now += int((seconds if isinstance(seconds, float) else next(seconds)) * 1e9)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: made.now)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: made.now / 1e9)
    monkeypatch.setattr(latency.time, "process_time_ns", lambda: made.now)
    return made


def _order(log: list[str]) -> list[str]:
    """The log with runs of equal names made one."""
    return [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]


def test_raw_samples_are_kept_in_blocks_and_discarded_calls_are_not(clock: Clock) -> None:
    log: list[str] = []
    found = interleave({"a": clock.contender(0.001, log, "a")}, rounds=4, calls=5, discard=2)
    assert found == {"a": ((0.001,) * 5,) * 4}
    assert len(log) == 4 * (2 + 5) + 1 + latency.FEWEST_CALLS  # the first calls find out how long one takes


def test_blocks_are_shuffled_and_the_seed_repeats_the_order(clock: Clock) -> None:
    def run(seed: int) -> list[str]:
        log: list[str] = []
        interleave({name: clock.contender(0.001, log, name) for name in "abc"}, rounds=20, calls=5, seed=seed)
        return log

    assert run(0) == run(0)
    assert run(0) != run(1)
    first = [_order(run(seed)[3 * 4 :])[0] for seed in range(12)]
    assert set(first) == set("abc"), "every contender comes first at times"


def test_single_calls_are_not_interleaved(clock: Clock) -> None:
    log: list[str] = []
    interleave({name: clock.contender(0.001, log, name) for name in "ab"}, rounds=10, calls=40, discard=10)
    assert len(_order(log)) <= 2 + 20


def test_a_fast_call_fills_the_block_and_a_slow_one_shortens_it(clock: Clock) -> None:
    log: list[str] = []
    found = interleave(
        {"fast": clock.contender(1e-5, log, "fast"), "slow": clock.contender(0.1, log, "slow")}, rounds=2, min_block_s=0.003
    )
    assert [len(block) for block in found["fast"]] == [301, 301]
    assert [len(block) for block in found["slow"]] == [latency.FEWEST_CALLS] * 2


def test_it_stops_when_the_time_is_up(clock: Clock) -> None:
    found = interleave({"a": clock.contender(0.01, [], "a")}, rounds=100, seconds=1.0)
    assert 1 < len(found["a"]) < 10
    one = interleave({"a": clock.contender(0.5, [], "a")}, rounds=100, seconds=0.1)
    assert len(one["a"]) == 1, "the first round always ends"


def test_garbage_waits_outside_the_block_also_when_a_call_fails() -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 9:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"a": call}, rounds=1)
    assert seen[-1] is False
    assert gc.isenabled()


def test_a_call_that_was_put_aside_counts_by_its_cpu_time_and_one_that_waits_by_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, work = [0], [0]
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: wall[0])
    monkeypatch.setattr(latency.time, "process_time_ns", lambda: work[0])
    turn = iter(range(1000))

    def contended() -> None:  # a millisecond of work; every other call waits for nine more
        work[0] += 1_000_000
        wall[0] += 10_000_000 if next(turn) % 2 else 1_000_000

    timed = block(contended, 10, 0)
    assert timed.seconds == (0.001,) * 10
    assert (timed.wall_s, timed.cpu_s) == (pytest.approx(0.055), pytest.approx(0.010))

    def waiting() -> None:  # always waits for a device
        work[0] += 100_000
        wall[0] += 1_000_000

    assert block(waiting, 5, 0).seconds == (0.001,) * 5


@pytest.mark.parametrize("options", [{"rounds": 0}, {"calls": 0}, {"seconds": -1.0}])
def test_bad_counts_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"measure\.interleave"):
        interleave({"a": int}, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one callable"):
        interleave({})
