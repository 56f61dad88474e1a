"""Latency of callables that are already loaded, on a machine that is never quiet.

Contenders are timed in blocks, the blocks of one round run side by side in shuffled order, and figures are ratios within
rounds: noise that lasts longer than a round cancels. Single calls are not interleaved: cold caches and thread wake-up
would then be timed instead of the model, and can turn an order around.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from equipoise.errors import must_be
from equipoise.records import Reading
from equipoise.stats import Interval, median, quantile_interval, ratio_interval

Call = Callable[[], object]
Blocks = tuple[tuple[float, ...], ...]

SLOW_DISCARD_S = 0.05
SLOW_BLOCK_S = 0.2
"""Discarding and timing of a slow callable end after this long, timing once it has `FEWEST_CALLS`."""
FEWEST_CALLS = 3
MOST_CALLS = 10_000
COMPUTES = 0.9
"""A callable whose least CPU time is this share of its least wall time does not wait by itself."""


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
    sizes = {name: calls_to_fill(contenders[name], calls, min_block_s) for name in names}
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
            timed = block(contenders[name], sizes[name], discard)
            blocks[name].append(timed.seconds)
            spent[name].append((timed.wall_s, timed.cpu_s))
    return Comparison(
        blocks={name: tuple(found) for name, found in blocks.items()},
        stopped=stopped,
        rounds=len(blocks[names[0]]),
        seconds=time.perf_counter() - began,
        seed=seed,
        wait={name: _wait(pairs) for name, pairs in spent.items()},
    )


def _check(contenders: Mapping[str, Call], *, rounds: int, calls: int, seconds: float | None) -> None:
    if not contenders:
        raise must_be("measure.compare(contenders)", "at least one callable", {}, "Pass {'name': callable}.")
    if rounds < 1 or calls < 1:
        raise must_be("measure.compare(rounds, calls)", "at least 1 each", (rounds, calls), "Use 12 rounds of 40 calls.")
    if seconds is not None and not seconds > 0:
        raise must_be("measure.compare(seconds)", "positive, or None", seconds, "Leave it out for no limit.")


def calls_to_fill(call: Call, calls: int, min_block_s: float) -> int:
    """Return how many calls make a block last `min_block_s`, judged on the fastest of a few first calls; at least `calls`."""
    call()
    fastest, began = float("inf"), time.perf_counter()
    for _ in range(FEWEST_CALLS):
        start = time.perf_counter_ns()
        call()
        fastest = min(fastest, (time.perf_counter_ns() - start) / 1e9)
        if time.perf_counter() - began > SLOW_BLOCK_S:
            break
    return min(MOST_CALLS, max(calls, int(min_block_s / max(fastest, 1e-9)) + 1))


@dataclass(frozen=True, slots=True)
class Block:
    """Timed calls of one contender, one after the other.

    Attributes:
        seconds: Of each call: wall time, or CPU time where that is less and the call computes without pause.
        wall_s, cpu_s: Of all of them together.
    """

    seconds: tuple[float, ...]
    wall_s: float
    cpu_s: float


def block(call: Call, calls: int, discard: int) -> Block:
    """Time up to `calls` calls after `discard` untimed ones; the garbage collector waits outside.

    On a busy machine a call that is put aside for another process takes longer by the wall clock and not by the CPU's: such a
    call counts by its CPU time. A callable that itself waits, for a device or another process, spends less CPU time in all its
    calls; its figures are wall time.
    """
    clock, work = time.perf_counter_ns, time.process_time_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        until = clock() + int(SLOW_DISCARD_S * 1e9)
        for _ in range(discard):
            call()
            if clock() > until:
                break
        walls: list[int] = []
        works: list[int] = []
        until = clock() + int(SLOW_BLOCK_S * 1e9)
        for _ in range(calls):
            used = work()
            start = clock()
            call()
            end = clock()
            works.append(max(1, work() - used))
            walls.append(max(1, end - start))
            if end > until and len(walls) >= FEWEST_CALLS:
                break
    finally:
        if collecting:
            gc.enable()
    computes = min(works) >= COMPUTES * min(walls)
    seconds = [min(pair) for pair in zip(walls, works, strict=True)] if computes else walls
    return Block(tuple(ns / 1e9 for ns in seconds), sum(walls) / 1e9, sum(works) / 1e9)


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
