"""Contenders raced in fresh processes, each of which loads every one of them several times.

Beside the load (`loads`) the process is drawn anew from one use of a program to the next: where its code and its heap lie. The
process is the sample here, and the interval is over processes: it says what the next process will find. The figures that a
user is promised, and those that check a promise, are both made so, in the same surroundings.

The state of a shared machine drifts over seconds and minutes, and a program that streams megabytes through a cache that others
use is slowed more than one that does not: with an EfficientNet (13 MB) beside its int8 (4 MB) the ratio went from 2.09 to 2.34
within four minutes, while the untouched model went from 2.15 to 2.6 ms. So a ratio belongs to a state, which the baseline's
own time tells; `Race.speedup` gives it for the state that is asked for (benchmarks/drift.py).

References:
    Fisher, *Statistical Methods for Research Workers* (4th edition, 1932), section 49.1: comparison at equal covariate.
    Wald, *Annals of Mathematical Statistics* 11 (1940): a slope where both variables are subject to error.
"""

from __future__ import annotations

import math
import pkgutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Any, Literal

from equipoise.errors import EquipoiseError, must_be
from equipoise.measure.child import ChildFailed, children
from equipoise.measure.loads import QUARTILE, WAIT_LIMIT, compare_loads
from equipoise.records import Reading
from equipoise.stats import Interval, median, quantile, repeat_interval

FEWEST, MOST = 8, 24
"""Processes; eight before precision is judged: stopping on a spread that few have told prefers spreads told too small."""
LOADS = 4
"""Loads of each contender in a process."""
SITTING = 0.012
"""Relative standard deviation of a ratio between two races of the same programs, carried to one state of the machine, beyond
what their processes differ by: 0.7 % between races in a row (benchmarks/drift.py), more between an export and its checks."""
ELASTICITY, DOUBT, DOUBT_BUSY = 0.5, 1 / math.sqrt(12), 1 / math.sqrt(3)
"""What is taken for an elasticity, and its standard error, before it is measured: anything from 0 (a slower machine slows both
alike) to 1 (only the baseline). The last is added where processes had to wait for the CPU: a small program that is put aside
loses its caches, and was seen to be slowed more than the baseline."""
ELASTICITY_PROCESSES = 4
"""Processes from which an elasticity can be told."""
MOST_EXPLAINED = 1.25
"""A ratio is not carried to a state further off than this: beyond it nothing was measured."""
PATIENCE_S = 120.0
"""A child may take this much longer than its share before it is stopped: imports, slow loading, a busy machine."""

Loads = tuple[tuple[float, ...], ...]
"""Of one contender in one process: per load, per round, the seconds of one call."""


@dataclass(frozen=True, slots=True)
class Race:
    """What every process found.

    Attributes:
        rounds: Contender -> per process, per load, per round, the seconds of one call. The loads of a process are visited in
            the same rounds.
        stopped: ``precision`` (narrow enough), ``seconds`` (time was up) or ``processes`` (as many as may be).
        seconds: Wall time spent, starting the processes included.
        wait: Contender -> wall time / CPU time of its timed calls; far above 1 on one thread, others had the CPU.
    """

    rounds: Mapping[str, tuple[Loads, ...]]
    stopped: Literal["precision", "seconds", "processes"]
    seconds: float
    wait: Mapping[str, float]

    @property
    def processes(self) -> int:
        """How many processes there were."""
        return min(len(found) for found in self.rounds.values())

    def times(self, name: str) -> tuple[tuple[float, ...], ...]:
        """Return a contender's seconds in each process, in each load: the lower quartile of its rounds."""
        return tuple(tuple(quantile(rounds, QUARTILE) for rounds in loads) for loads in self.rounds[name])

    def means(self, name: str) -> tuple[float, ...]:
        """Return a contender's seconds in each process: the typical load."""
        return tuple(repeat_interval(loads).value for loads in self.times(name))

    def speedup(self, baseline: str, new: str, *, at: float | None = None) -> Interval:
        """Return time of `baseline` / time of `new`, paired by process, with the interval that another race falls in.

        Args:
            at: The state of the machine to give it for: that in which a call of `baseline` takes so many seconds, or the
                nearest to it within a factor of `MOST_EXPLAINED`. None for the typical state of this race.
        """
        base, other = self.means(baseline), self.means(new)
        here = repeat_interval(base).value
        state = here if at is None else min(max(at, here / MOST_EXPLAINED), here * MOST_EXPLAINED)
        slope, error = self.elasticity(baseline, new)
        ratios = [a / b * (state / a) ** slope for a, b in zip(base, other, strict=True)]
        carried = error * math.log(state / here)
        return repeat_interval(ratios, between=math.hypot(SITTING, carried / math.sqrt(2.0)))

    def elasticity(self, baseline: str, new: str) -> tuple[float, float]:
        """Return by how many percent the ratio rises where the baseline slows by one, from -1 to 1, and its standard error.

        Each round of each process is one look at the state of the machine, as two halves of the loads see it: the errors of a
        load cancel in covariances between halves, the state does not. The error is by leaving out one process at a time.
        """
        more = DOUBT_BUSY if max(self.wait.values(), default=1.0) > WAIT_LIMIT else 0.0
        looks = [_looks(a, b) for a, b in zip(self.rounds[baseline], self.rounds[new], strict=True)]
        whole = _slope(looks)
        parts = [part for i in range(len(looks)) if (part := _slope(looks[:i] + looks[i + 1 :])) is not None]
        if whole is None or len(parts) < ELASTICITY_PROCESSES:
            return ELASTICITY, math.hypot(DOUBT, more)
        center, n = math.fsum(parts) / len(parts), len(parts)
        error = math.sqrt((n - 1) / n * math.fsum((part - center) ** 2 for part in parts))
        weights = (1 / DOUBT**2, 1 / max(error, 1e-6) ** 2)
        mean = (weights[0] * ELASTICITY + weights[1] * whole) / sum(weights)
        return min(1.0, max(-1.0, mean)), math.hypot(1 / math.sqrt(sum(weights)), more)

    def latency(self, name: str) -> Reading:
        """Return the typical latency of a contender in seconds, with the interval that another race falls in."""
        loads = sum(map(len, self.rounds[name]))
        return repeat_interval(self.means(name)).reading("s", note=f"{loads} loads in {self.processes} processes")


def race(
    entry: str,
    payload: Mapping[str, bytes],
    options: Mapping[str, Any],
    *,
    baseline: str,
    seconds: float,
    patience: float = 1.0,
    precision: float = 0.04,
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
    rounds: dict[str, list[Loads]] = {}
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
            for name, loads in found["rounds"].items():
                rounds.setdefault(name, []).append(tuple(map(tuple, loads)))
                spent.setdefault(name, []).append(found["wait"][name])
            if number + 1 >= FEWEST and _narrow(rounds, baseline, precision):
                stopped = "precision"
                break
    return Race(
        rounds={name: tuple(rows) for name, rows in rounds.items()},
        stopped=stopped,
        seconds=time.perf_counter() - began,
        wait={name: sum(rows) / len(rows) for name, rows in spent.items()},
    )


def run(folder: Path, order: Mapping[str, Any]) -> dict[str, Any]:
    """Load and time every contender in this process: the child's side of `race`."""
    contenders = pkgutil.resolve_name(order["entry"])(folder, order["options"])
    found = compare_loads(contenders, seconds=order["seconds"], precision=0.0, most=LOADS, seed=order["seed"])
    rounds = {name: [[median(calls) for calls in load] for load in found.blocks[name]] for name in contenders}
    return {"rounds": rounds, "wait": dict(found.wait)}


def _narrow(rounds: Mapping[str, list[Loads]], baseline: str, precision: float) -> bool:
    so_far = Race({name: tuple(rows) for name, rows in rounds.items()}, "processes", 0.0, {})
    others = [name for name in rounds if name != baseline]
    if not others:
        return repeat_interval(so_far.means(baseline)).within(precision)
    return all(so_far.speedup(baseline, name).within(precision) for name in others)


def _looks(base: Loads, new: Loads) -> list[tuple[float, float, float, float]]:
    """Per round of one process: log seconds of the baseline as either half of its loads has them, then the log ratios."""
    if len(base) < 2 or len(new) < 2:
        return []
    halves = [[_level(loads[start::2]) for start in (0, 1)] for loads in (base, new)]
    (a, b), (c, d) = halves
    return [(w, x, w - y, x - z) for w, x, y, z in zip(a, b, c, d, strict=False)]


def _level(loads: Loads) -> list[float]:
    """Mean log seconds of some loads in each round."""
    return [math.fsum(map(math.log, calls)) / len(calls) for calls in zip(*loads, strict=False)]


def _slope(looks: list[list[tuple[float, float, float, float]]]) -> float | None:
    """Slope of the log ratio on the log time of the baseline; None where the halves agree on no change of the state."""
    columns = list(zip(*(look for process in looks for look in process), strict=True))
    if not columns:
        return None
    centred = [[value - math.fsum(column) / len(column) for value in column] for column in columns]
    a, b, r, s = centred
    common = math.fsum(map(mul, a, b))
    return None if common <= 0 else (math.fsum(map(mul, r, b)) + math.fsum(map(mul, s, a))) / (2 * common)
