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

from equipoise.errors import must_be

Call = Callable[[], object]
Blocks = tuple[tuple[float, ...], ...]

SLOW_DISCARD_S = 0.05
SLOW_BLOCK_S = 0.2
"""Discarding and timing of a slow callable end after this long, timing once it has `FEWEST_CALLS`."""
FEWEST_CALLS = 3
MOST_CALLS = 10_000
COMPUTES = 0.9
"""A callable whose least CPU time is this share of its least wall time does not wait by itself."""


def interleave(
    contenders: Mapping[str, Call],
    *,
    rounds: int = 12,
    calls: int = 40,
    discard: int = 10,
    min_block_s: float = 0.003,
    seconds: float | None = None,
    seed: int = 0,
) -> dict[str, Blocks]:
    """Time `contenders` side by side in shuffled blocks; return per contender, per round, the raw seconds of every call.

    Args:
        contenders: Name -> callable of no arguments. Each call must do the whole work (no caching, no lazy result).
        rounds: Rounds at most.
        calls: Timed calls in a block; more for fast callables (to fill `min_block_s`), fewer for slow ones, never under 3.
        discard: Calls before each block that are not timed: caches and threads warm up.
        min_block_s: Shortest block in seconds.
        seconds: Wall time after which no further round starts (the first always ends); None for no limit.
        seed: Of the shuffling.
    Raises:
        InputError: No contenders, or a count that is not positive.
    """
    _check(contenders, rounds=rounds, calls=calls, seconds=seconds)
    rng = random.Random(seed)
    began = time.perf_counter()
    sizes = {name: calls_to_fill(call, calls, min_block_s) for name, call in contenders.items()}
    blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in contenders}
    for done in range(rounds):
        if done and seconds is not None and time.perf_counter() - began >= seconds:
            break
        for name in rng.sample(list(contenders), len(contenders)):
            blocks[name].append(block(contenders[name], sizes[name], discard).seconds)
    return {name: tuple(found) for name, found in blocks.items()}


def _check(contenders: Mapping[str, Call], *, rounds: int, calls: int, seconds: float | None) -> None:
    if not contenders:
        raise must_be("measure.interleave(contenders)", "at least one callable", {}, "Pass {'name': callable}.")
    if rounds < 1 or calls < 1:
        raise must_be("measure.interleave(rounds, calls)", "at least 1 each", (rounds, calls), "Use 12 rounds of 40 calls.")
    if seconds is not None and not seconds > 0:
        raise must_be("measure.interleave(seconds)", "positive, or None", seconds, "Leave it out for no limit.")


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
