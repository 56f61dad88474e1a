"""Latency of callables on a machine that is never quiet.

Contenders are timed in blocks, the blocks of one round run side by side in shuffled order, and figures are ratios within
rounds: noise that lasts longer than a round cancels. Single calls are not interleaved: cold caches and thread wake-up
would then be timed instead of the model, and can turn an order around.
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
from equipoise.records import Reading, measured, unavailable
from equipoise.stats import Interval, median, quantile, quantile_interval, ratio_interval

Call = Callable[[], object]
Blocks = tuple[tuple[float, ...], ...]

SLOW_DISCARD_S = 0.05
SLOW_BLOCK_S = 0.2
"""Discarding and timing of a slow callable end after this long, timing once it has `FEWEST_CALLS`."""
FEWEST_CALLS = 3
MOST_CALLS = 10_000
P95_FLOOR = 72
"""Samples under which the 95th percentile has no upper bound at 95 % confidence."""
SPREAD_LIMIT = 0.10
WAIT_LIMIT = 1.2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Raw samples of contenders that were timed side by side.

    Attributes:
        blocks: Contender -> per round, the raw seconds of each timed call.
        stopped: Why it ended: ``rounds`` (all ran), ``seconds`` (time was up) or ``precision`` (narrow enough).
        rounds: Complete rounds; an unfinished one is thrown away.
        seconds: Wall time spent, discarded calls included.
        seed: Of the generator that shuffled the order.
        wait: Contender -> wall time / CPU time of its timed calls; above 1.2 on one thread, others had the CPU.
    """

    blocks: Mapping[str, Blocks]
    stopped: Literal["rounds", "seconds", "precision"]
    rounds: int
    seconds: float
    seed: int
    wait: Mapping[str, float]

    def speedup(self, baseline: str, new: str, *, confidence: float = 0.95) -> Interval:
        """Return time of `baseline` / time of `new`, paired by round."""
        return ratio_interval(self.blocks[baseline], self.blocks[new], confidence=confidence)

    def p50(self, name: str) -> Reading:
        """Return the median latency of one contender in seconds, with the interval of its block medians."""
        return _p50(self.blocks[name])


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Latency of one callable.

    Attributes:
        p50, p95: Seconds a call.
        throughput: Items a second: batch / p50.
        stable: Whether the figure would come out alike in a minute; `advice` says what to do when it would not.
        spread: Interquartile range of the block medians / their median.
        stopped: As in `Comparison`.
        blocks: Raw seconds.
    """

    p50: Reading
    p95: Reading
    throughput: Reading
    stable: bool
    advice: str
    spread: float
    stopped: str
    blocks: Blocks


def compare(
    contenders: Mapping[str, Call],
    *,
    rounds: int = 12,
    calls: int = 40,
    discard: int = 10,
    min_block_s: float = 0.003,
    seconds: float | None = None,
    precision: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Time `contenders` side by side in shuffled blocks and return the raw seconds of every call.

    Args:
        contenders: Name -> callable of no arguments. Each call must do the whole work (no caching, no lazy result).
        rounds: Rounds at most. Fewer than 6 leave every ratio without an interval.
        calls: Timed calls in a block; more for fast callables (to fill `min_block_s`), fewer for slow ones, never under 3.
        discard: Calls before each block that are not timed: caches and threads warm up.
        min_block_s: Shortest block in seconds.
        seconds: Wall time after which no further round starts (the first always ends); None for no limit.
        precision: Stop, after 12 rounds at least, once each ratio to the first contender is known to ± this fraction.
        seed: Of the shuffling.
    Raises:
        InputError: No contenders, or a count that is not positive.
    """
    _check(contenders, rounds=rounds, calls=calls, seconds=seconds)
    rng = random.Random(seed)
    names = list(contenders)
    began = time.perf_counter()
    sizes = {name: _calls_to_fill(contenders[name], calls, min_block_s) for name in names}
    blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    stopped: Literal["rounds", "seconds", "precision"] = "rounds"
    for done in range(rounds):
        if done and seconds is not None and time.perf_counter() - began >= seconds:
            stopped = "seconds"
            break
        if precision is not None and done >= 12 and _narrow(blocks, precision):
            stopped = "precision"
            break
        for name in rng.sample(names, len(names)):
            block, cpu = _block(contenders[name], sizes[name], discard)
            blocks[name].append(block)
            spent[name].append((sum(block), cpu))
    return Comparison(
        blocks={name: tuple(found) for name, found in blocks.items()},
        stopped=stopped,
        rounds=len(blocks[names[0]]),
        seconds=time.perf_counter() - began,
        seed=seed,
        wait={name: _wait(pairs) for name, pairs in spent.items()},
    )


def time_one(
    call: Call,
    *,
    batch: int = 1,
    rounds: int = 12,
    calls: int = 40,
    discard: int = 10,
    min_block_s: float = 0.003,
    seconds: float | None = None,
) -> LatencyProfile:
    """Time one callable and say whether the figure can be trusted.

    Args:
        call: Callable of no arguments that handles `batch` items.
        batch: Items a call, for the throughput.
        rounds, calls, discard, min_block_s, seconds: As in `compare`.
    Limits:
        Two profiles taken one after the other do not compare two models: use `compare`.
    """
    found = compare({"it": call}, rounds=rounds, calls=calls, discard=discard, min_block_s=min_block_s, seconds=seconds)
    return summarize(found, "it", batch=batch)


def summarize(comparison: Comparison, name: str, *, batch: int = 1) -> LatencyProfile:
    """Return the latency profile of one contender of a comparison."""
    blocks = comparison.blocks[name]
    p50 = _p50(blocks)
    center = p50.get()
    low, high = (batch / bound if bound is not None else None for bound in (p50.high, p50.low))
    throughput = measured(batch / center, "1/s", low=low, high=high, n=p50.n, note=f"batch {batch} / p50")
    medians = [median(block) for block in blocks]
    spread = (quantile(medians, 0.75) - quantile(medians, 0.25)) / center
    advice = _advice(len(blocks), spread, comparison.wait[name], comparison.stopped)
    return LatencyProfile(p50, _p95(blocks), throughput, not advice, advice, spread, comparison.stopped, blocks)


def _check(contenders: Mapping[str, Call], *, rounds: int, calls: int, seconds: float | None) -> None:
    if not contenders:
        raise must_be("measure.compare(contenders)", "at least one callable", {}, "Pass {'name': callable}.")
    if rounds < 1 or calls < 1:
        raise must_be("measure.compare(rounds, calls)", "at least 1 each", (rounds, calls), "Use 12 rounds of 40 calls.")
    if seconds is not None and not seconds > 0:
        raise must_be("measure.compare(seconds)", "positive, or None", seconds, "Leave it out for no limit.")


def _calls_to_fill(call: Call, calls: int, min_block_s: float) -> int:
    """Calls that make a block last `min_block_s`, judged on the fastest of a few first calls; at least `calls`."""
    call()
    fastest, began = float("inf"), time.perf_counter()
    for _ in range(FEWEST_CALLS):
        start = time.perf_counter_ns()
        call()
        fastest = min(fastest, (time.perf_counter_ns() - start) / 1e9)
        if time.perf_counter() - began > SLOW_BLOCK_S:
            break
    return min(MOST_CALLS, max(calls, int(min_block_s / max(fastest, 1e-9)) + 1))


def _block(call: Call, calls: int, discard: int) -> tuple[tuple[float, ...], float]:
    """Seconds of each timed call, and the CPU seconds of them all; the garbage collector waits outside."""
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        until = clock() + int(SLOW_DISCARD_S * 1e9)
        for _ in range(discard):
            call()
            if clock() > until:
                break
        nanoseconds: list[int] = []
        until = clock() + int(SLOW_BLOCK_S * 1e9)
        cpu = time.process_time()
        for _ in range(calls):
            start = clock()
            call()
            end = clock()
            nanoseconds.append(max(1, end - start))
            if end > until and len(nanoseconds) >= FEWEST_CALLS:
                break
        return tuple(ns / 1e9 for ns in nanoseconds), time.process_time() - cpu
    finally:
        if collecting:
            gc.enable()


def _narrow(blocks: Mapping[str, list[tuple[float, ...]]], precision: float) -> bool:
    first, *others = blocks.values()
    intervals = [ratio_interval(first, other) for other in others]
    return all(found.bounded and found.half_width / found.value <= precision for found in intervals)


def _wait(pairs: list[tuple[float, float]]) -> float:
    """Wall time / CPU time over all blocks; 1 where the clock saw no CPU time at all."""
    wall, cpu = (sum(part) for part in zip(*pairs, strict=True))
    return wall / cpu if cpu > 0 else 1.0


def _p50(blocks: Blocks) -> Reading:
    """Median of the block medians: calls of one block share its noise, blocks are nearer to independent."""
    return quantile_interval([median(block) for block in blocks], 0.5).reading("s", note=f"{len(blocks)} blocks")


def _p95(blocks: Blocks) -> Reading:
    """95th percentile of all calls; its interval resamples whole blocks."""
    pooled = [value for block in blocks for value in block]
    if len(pooled) < P95_FLOOR:
        return unavailable("s", f"p95 needs {P95_FLOOR} timed calls; {len(pooled)} fitted. Allow more rounds or seconds")
    value = quantile(pooled, 0.95)
    if len(blocks) < 6:
        return measured(value, "s", n=len(pooled), note=f"{len(blocks)} blocks: too few for an interval")
    rng = random.Random(0)
    drawn = [quantile([v for block in rng.choices(blocks, k=len(blocks)) for v in block], 0.95) for _ in range(200)]
    return measured(value, "s", low=quantile(drawn, 0.025), high=quantile(drawn, 0.975), n=len(pooled))


def _advice(rounds: int, spread: float, wait: float, stopped: str) -> str:
    """Say what makes the figure unstable and what to do; empty when it is stable."""
    if rounds < 6:
        reason = "the time was up" if stopped == "seconds" else "so many were asked for"
        return f"only {rounds} rounds ({reason}), at least 6 give an interval: allow more time"
    busy = wait > WAIT_LIMIT
    if spread <= SPREAD_LIMIT and not busy:
        return ""
    causes = [f"blocks differ by {spread:.0%}"] if spread > SPREAD_LIMIT else []
    if busy:
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        causes.append(f"the process waited {1 - 1 / wait:.0%} of the time for the CPU{load}")
    return " and ".join(causes) + ": stop other work, or compare side by side, where such noise cancels"
