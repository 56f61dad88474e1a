"""Latency over many loads: a loaded program is one sample of its speed.

Where the weights, the buffers and the inputs of a program come to lie in memory is drawn when it is loaded, and its speed with
them: two loads of one file have differed by a third at 50 µs a call and by some percent at 10 ms, while within one load the
median repeats to a percent. An interval from one load is therefore too narrow, however many calls it holds. Here every
contender is loaded many times, with memory of random sizes taken in between; the loads are visited in shuffled rounds; the
load is the sample, and the interval is over loads.

What disturbs a machine for a moment slows some rounds of a load and not others, so a load counts by the lower quartile of its
rounds. What the loads differ by is left after that, and is the interval.

References:
    Curtsinger & Berger, *Stabilizer* (ASPLOS 2013): a binary is one sample of the space of layouts.
    Kalibera & Jones, *Rigorous benchmarking in reasonable time* (ISMM 2013): repeat at the level that varies.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from equipoise.errors import must_be
from equipoise.measure.latency import Blocks, Call, block, calls_to_fill
from equipoise.records import Reading, measured, unavailable
from equipoise.stats import Interval, median, quantile, repeat_interval

Load = Callable[[], Call]
"""Loads a program anew, with inputs of its own, and returns the callable that answers one request."""
Stopped = Literal["precision", "seconds", "loads"]

QUARTILE = 0.25
VISITS = 4
"""Rounds after which loads are judged, and more are made where they do not suffice."""
BATCH = 6
"""Loads of each contender made together; as many again while the interval is too wide."""
FEWEST = 2
"""Loads of each contender that are made whatever the time: one alone has no spread."""
P95_FLOOR = 72
"""Samples under which the 95th percentile has no upper bound at 95 % confidence."""
SPREAD_LIMIT = 0.10
WAIT_LIMIT = 1.2
JUNK_PIECES, JUNK_BYTES = 64, 200_000
"""At most so many pieces of at most so many bytes are taken, and every other one given back, before each load."""


@dataclass(frozen=True, slots=True)
class LoadComparison:
    """Raw samples of contenders that were loaded many times and timed side by side.

    Attributes:
        blocks: Contender -> per load, per round, the raw seconds of each timed call.
        stopped: Why it ended: ``precision`` (narrow enough), ``seconds`` (time was up) or ``loads`` (as many as may be).
        seconds: Wall time spent, loading included.
        seed: Of the generator that shuffled the order and drew the layout.
        wait: Contender -> wall time / CPU time of its timed calls; far above 1 on one thread, others had the CPU.
    """

    blocks: Mapping[str, tuple[Blocks, ...]]
    stopped: Stopped
    seconds: float
    seed: int
    wait: Mapping[str, float]

    @property
    def loads(self) -> int:
        """Loads of each contender."""
        return min(len(loads) for loads in self.blocks.values())

    def times(self, name: str) -> tuple[float, ...]:
        """Return the seconds of one call in each load of a contender: the lower quartile of its rounds' medians."""
        return tuple(quantile([median(calls) for calls in rounds], QUARTILE) for rounds in self.blocks[name])

    def speedup(self, baseline: str, new: str) -> Interval:
        """Return time of `baseline` / time of `new`, with the interval that another such measurement falls in."""
        return repeat_interval([a / b for a, b in zip(self.times(baseline), self.times(new), strict=True)])

    def latency(self, name: str) -> Reading:
        """Return the typical latency of a contender in seconds: geometric mean over its loads, with its interval."""
        return repeat_interval(self.times(name)).reading("s", note=f"{len(self.blocks[name])} loads")


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Latency of one program.

    Attributes:
        p50, p95: Seconds a call.
        throughput: Items a second: batch / p50.
        stable: Whether another load in a minute would come out alike; `advice` says what to do when it would not.
        spread: Interquartile range of the loads / their median.
        stopped: As in `LoadComparison`.
        times: Seconds of one call in each load.
    """

    p50: Reading
    p95: Reading
    throughput: Reading
    stable: bool
    advice: str
    spread: float
    stopped: str
    times: tuple[float, ...]


def summarize(comparison: LoadComparison, name: str, *, batch: int = 1) -> LatencyProfile:
    """Return the latency profile of one contender; `batch` items a call, for the throughput."""
    p50, times = comparison.latency(name), comparison.times(name)
    center = p50.get()
    low, high = (batch / bound if bound is not None else None for bound in (p50.high, p50.low))
    throughput = measured(batch / center, "1/s", low=low, high=high, n=p50.n, note=f"batch {batch} / p50")
    spread = (quantile(times, 0.75) - quantile(times, 0.25)) / center
    advice = _advice(len(times), spread, comparison.wait[name])
    return LatencyProfile(p50, _p95(comparison.blocks[name]), throughput, not advice, advice, spread, comparison.stopped, times)


def _p95(loads: tuple[Blocks, ...]) -> Reading:
    """95th percentile of all calls; its interval resamples whole loads."""
    calls = [[value for block in rounds for value in block] for rounds in loads]
    pooled = [value for load in calls for value in load]
    if len(pooled) < P95_FLOOR:
        return unavailable("s", f"p95 needs {P95_FLOOR} timed calls; {len(pooled)} fitted. Allow more seconds")
    value = quantile(pooled, 0.95)
    if len(loads) < 3:
        return measured(value, "s", n=len(pooled), note=f"{len(loads)} loads: too few for an interval")
    rng = random.Random(0)
    drawn = [quantile([v for load in rng.choices(calls, k=len(calls)) for v in load], 0.95) for _ in range(200)]
    return measured(value, "s", low=quantile(drawn, 0.025), high=quantile(drawn, 0.975), n=len(pooled))


def _advice(loads: int, spread: float, wait: float) -> str:
    """Say what makes the figure unstable and what to do; empty when it is stable."""
    if loads < 3:
        return f"only {loads} loads of the program in the time, at least 3 tell how they differ: allow more time"
    busy = wait > WAIT_LIMIT
    if spread <= SPREAD_LIMIT and not busy:
        return ""
    causes = [f"loads differ by {spread:.0%}"] if spread > SPREAD_LIMIT else []
    if busy:
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        causes.append(f"the process waited {1 - 1 / wait:.0%} of the time for the CPU{load}")
    return " and ".join(causes) + ": stop other work, or compare side by side, where such noise cancels"


def compare_loads(
    contenders: Mapping[str, Load],
    *,
    seconds: float,
    precision: float = 0.02,
    most: int = 48,
    calls: int = 20,
    discard: int = 5,
    min_block_s: float = 0.002,
    seed: int = 0,
) -> LoadComparison:
    """Load every contender many times and time all loads side by side in shuffled rounds.

    Args:
        contenders: Name -> `Load`; the first one is the baseline that precision is judged against.
        seconds: Wall time that is not exceeded but by two loads of each contender and their first round, which always end.
        precision: Stop once each ratio to the baseline is known to ± this fraction.
        most: Loads of each contender at most.
        calls, discard, min_block_s: As in `latency.interleave`.
        seed: Of the order and the layout.
    Raises:
        InputError: No contenders, or a limit that is not positive.
    Limits:
        All loads are kept in memory until the end, so that each is seen at several moments.
    """
    if not contenders or not seconds > 0 or most < FEWEST:
        got = (list(contenders), seconds, most)
        raise must_be("measure.compare_loads", "given contenders, seconds above 0 and at least 2 loads", got, "Use 3 seconds.")
    return _Session(contenders, calls, discard, min_block_s, random.Random(seed)).run(seconds, precision, most, seed)


class _Session:
    """The loads made so far and what was timed of them."""

    def __init__(
        self, contenders: Mapping[str, Load], calls: int, discard: int, min_block_s: float, rng: random.Random
    ) -> None:
        self._contenders, self._calls, self._discard, self._min_block_s = contenders, calls, discard, min_block_s
        self._rng = rng
        self._junk: list[bytearray] = []
        self._held: list[tuple[str, Call, list[tuple[float, ...]]]] = []
        self._sizes: dict[str, int] = {}
        self._spent: dict[str, list[float]] = {name: [0.0, 0.0] for name in contenders}

    def run(self, seconds: float, precision: float, most: int, seed: int) -> LoadComparison:
        began = time.perf_counter()

        def left() -> float:
            return seconds - (time.perf_counter() - began)

        stopped: Stopped | None = None
        while stopped is None:
            before, first = left(), not self._held
            self._load(min(BATCH, most - self._loads), seconds / 2 if first else 0.0, left)
            for visit in range(VISITS):
                if visit and left() <= 0:  # what was loaded is timed once at least
                    break
                self._round()
            if self._narrow(precision):
                stopped = "precision"
            elif left() < before - left():  # as much again would not end in time
                stopped = "seconds"
            elif self._loads >= most:
                stopped = "loads"
        return LoadComparison(
            blocks=self._blocks(),
            stopped=stopped,
            seconds=time.perf_counter() - began,
            seed=seed,
            wait={name: wall / cpu if cpu > 0 else 1.0 for name, (wall, cpu) in self._spent.items()},
        )

    @property
    def _loads(self) -> int:
        return len(self._held) // len(self._contenders)

    def _load(self, count: int, reserve: float, left: Callable[[], float]) -> None:
        """Load each contender `count` times more, fewer where only `reserve` seconds are left; each load draws its layout."""
        for _ in range(count):
            if self._loads >= FEWEST and left() <= reserve:
                return
            for name in self._rng.sample(list(self._contenders), len(self._contenders)):
                taken = [bytearray(self._rng.randrange(1, JUNK_BYTES)) for _ in range(self._rng.randrange(JUNK_PIECES))]
                self._junk += taken[::2]
                del taken
                call = self._contenders[name]()
                self._sizes.setdefault(name, calls_to_fill(call, self._calls, self._min_block_s))
                self._held.append((name, call, []))

    def _round(self) -> None:
        """Time a block of every load, in shuffled order."""
        gc.collect()
        for name, call, blocks in self._rng.sample(self._held, len(self._held)):
            timed = block(call, self._sizes[name], self._discard)
            blocks.append(timed.seconds)
            self._spent[name][0] += timed.wall_s
            self._spent[name][1] += timed.cpu_s

    def _blocks(self) -> dict[str, tuple[Blocks, ...]]:
        return {name: tuple(tuple(rounds) for held, _, rounds in self._held if held == name) for name in self._contenders}

    def _narrow(self, precision: float) -> bool:
        found = LoadComparison(self._blocks(), "loads", 0.0, 0, {})
        baseline, *others = self._contenders
        if not others:
            return repeat_interval(found.times(baseline)).within(precision)
        return all(found.speedup(baseline, other).within(precision) for other in others)
