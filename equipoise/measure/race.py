"""Contenders raced in fresh processes, each of which loads every one of them several times.

Beside the load (`loads`) the process is drawn anew from one use of a program to the next: where its code and its heap lie. The
process is the sample here, and the interval is over processes: it says what the next process will find. The figures that a
user is promised, and those that check a promise, are both made so, in the same surroundings.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equipoise.errors import EquipoiseError, must_be
from equipoise.measure.child import ChildFailed, children
from equipoise.measure.loads import compare_loads
from equipoise.records import Reading
from equipoise.stats import Interval, repeat_interval

FEWEST, MOST = 8, 24
"""Processes; eight before precision is judged: stopping on a spread that few have told prefers spreads told too small."""
LOADS = 4
"""Loads of each contender in a process."""
SITTING = 0.004
"""Relative standard deviation of a ratio between two races of the same programs, beyond what their processes differ by: the
state of the machine drifts over minutes (benchmarks/promises.py)."""
PATIENCE_S = 120.0
"""A child may take this much longer than its share before it is stopped: imports, slow loading, a busy machine."""


@dataclass(frozen=True, slots=True)
class Race:
    """What every process found.

    Attributes:
        times: Contender -> per process, per load, the seconds of one call.
        stopped: ``precision`` (narrow enough), ``seconds`` (time was up) or ``processes`` (as many as may be).
        seconds: Wall time spent, starting the processes included.
        wait: Contender -> wall time / CPU time of its timed calls; far above 1 on one thread, others had the CPU.
    """

    times: Mapping[str, tuple[tuple[float, ...], ...]]
    stopped: Literal["precision", "seconds", "processes"]
    seconds: float
    wait: Mapping[str, float]

    @property
    def processes(self) -> int:
        """How many processes there were."""
        return min(len(found) for found in self.times.values())

    def means(self, name: str) -> tuple[float, ...]:
        """Return a contender's seconds in each process: the typical load."""
        return tuple(repeat_interval(loads).value for loads in self.times[name])

    def speedup(self, baseline: str, new: str) -> Interval:
        """Return time of `baseline` / time of `new`, paired by process, with the interval that another race falls in."""
        ratios = [a / b for a, b in zip(self.means(baseline), self.means(new), strict=True)]
        return repeat_interval(ratios, between=SITTING)

    def latency(self, name: str) -> Reading:
        """Return the typical latency of a contender in seconds, with the interval that another race falls in."""
        loads = sum(map(len, self.times[name]))
        return repeat_interval(self.means(name)).reading("s", note=f"{loads} loads in {self.processes} processes")


def race(
    entry: str,
    payload: Mapping[str, bytes],
    options: Mapping[str, Any],
    *,
    baseline: str,
    seconds: float,
    patience: float = 1.0,
    precision: float = 0.02,
    seed: int = 0,
) -> Race:
    """Race the contenders that `entry` gives, in one fresh process after the other.

    Args:
        entry: ``package.module:function``: ``(folder, options) -> {name: Load}``, importable by a fresh process.
        payload: File name -> content, what `entry` finds in its folder.
        options: Plain JSON data for `entry`.
        baseline: The contender that precision is judged against.
        seconds: Wall time; two processes always run, however long they take.
        patience: Eight processes run even if that takes so many times `seconds`.
        precision: Stop, after eight processes, once each ratio to the baseline is known to ± this fraction.
        seed: Of order and layout; each process draws its own from it.
    Raises:
        InputError: Seconds that are not positive.
        EquipoiseError: A process failed; its last words are in the message.
    """
    if not seconds > 0:
        raise must_be("measure.race(seconds)", "positive", seconds, "Use 10.")
    began = time.perf_counter()
    times: dict[str, list[tuple[float, ...]]] = {}
    spent: dict[str, list[float]] = {}
    stopped: Literal["precision", "seconds", "processes"] = "processes"
    with children(payload) as fresh:
        for number in range(MOST):
            passed = time.perf_counter() - began
            limit = seconds * (patience if number < FEWEST else 1.0)
            if number >= 2 and passed + passed / number > limit:
                stopped = "seconds"
                break
            order = {"entry": entry, "options": dict(options), "seconds": seconds / FEWEST, "seed": seed * MOST + number}
            try:
                found = fresh.run("equipoise.measure.race:run", order, timeout_s=seconds + PATIENCE_S)
            except ChildFailed as failure:
                raise EquipoiseError(f"the race could not be run: {failure}") from failure
            for name, loads in found["times"].items():
                times.setdefault(name, []).append(tuple(loads))
                spent.setdefault(name, []).append(found["wait"][name])
            if number + 1 >= FEWEST and _narrow(times, baseline, precision):
                stopped = "precision"
                break
    return Race(
        times={name: tuple(rows) for name, rows in times.items()},
        stopped=stopped,
        seconds=time.perf_counter() - began,
        wait={name: sum(rows) / len(rows) for name, rows in spent.items()},
    )


def run(folder: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    """Load and time every contender in this process: the child's side of `race`."""
    module, _, function = order["entry"].partition(":")
    contenders = getattr(importlib.import_module(module), function)(folder, order["options"])
    found = compare_loads(contenders, seconds=order["seconds"], precision=0.0, most=LOADS, seed=order["seed"])
    return {"times": {name: found.times(name) for name in contenders}, "wait": dict(found.wait)}


def _narrow(times: Mapping[str, list[tuple[float, ...]]], baseline: str, precision: float) -> bool:
    so_far = Race({name: tuple(rows) for name, rows in times.items()}, "processes", 0.0, {})
    others = [name for name in times if name != baseline]
    if not others:
        return repeat_interval(so_far.means(baseline)).within(precision)
    return all(so_far.speedup(baseline, name).within(precision) for name in others)
