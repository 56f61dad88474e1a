"""Which small runs to make: the first twelve or so, and the three that would help most after them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from equipoise.errors import InputError, must_be
from equipoise.scaling.fit import Fit
from equipoise.scaling.runs import BACKWARD, Floats, Size
from equipoise.units import show

RATIOS = (3.5, 2.5, 2.0)
"""Compute of a level of a plan over that of the one below, the preferred first."""


@dataclass(frozen=True, slots=True)
class Available:
    """One size that a family has.

    Attributes:
        params: Trainable parameters.
        flops_per_sample: Forward FLOPs of one sample.
        scale: Named dimensions.
    """

    params: float
    flops_per_sample: float
    scale: Mapping[str, float] = field(default_factory=dict)

    def size(self, kind: Size) -> float:
        """Return N as a law takes it: parameters, or forward FLOPs of a sample."""
        return self.params if kind == "params" else self.flops_per_sample


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run to make.

    Attributes:
        available: Its size.
        samples: Samples that it sees, cool-down included.
        trunk: Samples after which its cool-down starts; runs of one size share the trunk up to there (warm-up, stable, decay).
        flops: Training FLOPs that it adds to the plan, the shared trunk counted at its longest run.
        level: Compute level, 0 the lowest; -1 for the contrast that measures what repetition is worth.
        unique: Distinct samples to draw from. None: all there are.
    """

    available: Available
    samples: float
    trunk: float
    flops: float
    level: int
    unique: float | None = None


@dataclass(frozen=True, slots=True)
class Design:
    """The runs of a plan, sizes ascending, and what they cost.

    Attributes:
        seconds: Of training, with shared trunks; `seconds_apart` when every run is trained from scratch.
        levels: Training FLOPs of each compute level.
    """

    runs: tuple[PlannedRun, ...]
    seconds: float
    seconds_apart: float
    levels: tuple[float, ...]


class TooLittleTimeError(InputError):
    """No plan fits into the time; one of `least_s` seconds would do."""

    def __init__(self, least_s: float, what: str) -> None:
        super().__init__(f"seconds must be at least {show(least_s, 's')} {what}. Give more time, or smaller sizes.")
        self.least_s = least_s


def plan(
    menu: Sequence[Available],
    *,
    seconds: float,
    flops_per_s: float | Sequence[float],
    levels: int = 3,
    sizes: int = 4,
    ratio: float | None = None,
    samples_per_param: float = 20.0,
    cooldown: float = 0.15,
    fewest_samples: float = 1.0,
    unique: float | None = None,
    shared: bool = True,
) -> Design:
    """Plan isoFLOP levels that fill `seconds`: sizes about 2× apart around the guessed best of each level.

    Args:
        menu: Sizes that the family has, any order; sizes closer than 1.4× in work are thinned out.
        seconds: For all runs together.
        flops_per_s: Measured *training* FLOP/s (3 × forward FLOPs × samples per second), one number or one per menu entry.
        levels, sizes: Runs = levels × sizes, 12 by default.
        ratio: Compute of a level over that of the one below. None: the first of `RATIOS` that leaves every run enough samples.
        samples_per_param: Guess of the best ratio, only to center the sizes. 20 is that of language models.
        cooldown: Share of a run spent annealing.
        fewest_samples: Samples under which a run is not worth making (a few hundred steps).
        unique: Distinct samples there are. Where the top level sees them more than twice, one contrast is added: the same run
            on a quarter of them, which is what R* is fitted from.
        shared: Whether runs of one size branch off one trunk; otherwise each is trained from scratch.
    Raises:
        InputError: Fewer than 3 usable sizes.
        TooLittleTimeError: Less time than the smallest plan needs.
    """
    ratios = RATIOS if ratio is None else (ratio,)
    _check(menu, seconds, levels, sizes, min(ratios), cooldown)
    ordered = sorted(range(len(menu)), key=lambda i: menu[i].flops_per_sample)
    rates = np.broadcast_to(np.asarray(flops_per_s, dtype=float), (len(menu),))
    if not np.all(np.isfinite(rates) & (rates > 0)):
        raise must_be("flops_per_s", "above 0, one number or one per size", flops_per_s, "Measure a few training steps.")
    sorted_menu = [menu[i] for i in ordered]
    sorted_rates = rates[ordered]
    share = cooldown if shared else 1.0

    def laid_out(top: float, apart: float) -> Design | None:
        found = _lay_out(sorted_menu, sorted_rates, top, levels, sizes, apart, samples_per_param, share, unique)
        return found if found and min(run.samples for run in found.runs) >= fewest_samples else None

    most = float(seconds * rates.max())  # one level cannot cost more than all there is
    for apart in ratios:
        for top in np.geomspace(most, most * 1e-6, 700):
            found = laid_out(float(top), apart)
            if found and found.seconds <= seconds:
                return found
    second = float(rates.max())  # from the work of a microsecond up: however little time there is, the least is the least
    dearer = (laid_out(float(top), ratios[-1]) for top in np.geomspace(second * 1e-6, second * 1e12, 900))
    least = min((found.seconds for found in dearer if found), default=None)
    if least is None:
        raise must_be("menu", "of 3 sizes or more, 1.4× apart in work", len(menu), "Give the family more widths or depths.")
    raise TooLittleTimeError(least, f"for {levels} × {sizes} runs of {fewest_samples:g} samples or more; got {seconds:.3g} s")


def _check(menu: Sequence[Available], seconds: float, levels: int, sizes: int, ratio: float, cooldown: float) -> None:
    if len({round(math.log(a.flops_per_sample), 2) for a in menu}) < 3:
        raise must_be("menu", "3 different sizes or more", len(menu), "Give the family more widths or depths.")
    if not (seconds > 0 and levels >= 2 and sizes >= 3 and ratio > 1 and 0 < cooldown < 1):
        raise must_be(
            "plan(seconds, levels, sizes, ratio, cooldown)",
            "above 0, 2 or more, 3 or more, above 1 and between 0 and 1",
            (seconds, levels, sizes, ratio, cooldown),
            "Leave out what you do not need to change.",
        )


def _lay_out(
    menu: Sequence[Available],
    rates: Floats,
    top: float,
    levels: int,
    sizes: int,
    ratio: float,
    per_param: float,
    cooldown: float,
    unique: float | None,
) -> Design | None:
    """The plan whose highest level costs `top` FLOPs; None where the ladder is too short."""
    compute = [top / ratio ** (levels - 1 - j) for j in range(levels)]
    guess = np.log([BACKWARD * a.flops_per_sample * per_param * a.params for a in menu])
    own = np.maximum.accumulate(guess)  # compute at which a size is the guessed best
    anchor = int(np.argmin(np.abs(own - math.log(compute[levels // 2]))))
    ladder = _ladder(np.log2([a.flops_per_sample for a in menu]), anchor)
    if len(ladder) < 3:
        return None
    chosen: dict[int, list[tuple[int, float]]] = {}
    for j, flops in enumerate(compute):
        place = float(np.interp(math.log(flops), own[ladder], np.arange(len(ladder))))
        first = int(np.clip(round(place - (sizes - 1) / 2), 0, max(len(ladder) - sizes, 0)))
        for i in ladder[first : first + sizes]:
            chosen.setdefault(i, []).append((j, flops / (BACKWARD * menu[i].flops_per_sample)))
    runs, shared_s, apart_s = [], 0.0, 0.0
    for i, parts in sorted(chosen.items()):
        work = BACKWARD * menu[i].flops_per_sample
        longest = max(samples for _, samples in parts)
        for j, samples in parts:
            own_samples = cooldown * samples + ((1.0 - cooldown) * samples if samples == longest else 0.0)
            runs.append(PlannedRun(menu[i], samples, (1.0 - cooldown) * samples, work * own_samples, j))
            shared_s += work * own_samples / rates[i]
            apart_s += work * samples / rates[i]
    contrast = _contrast(runs, unique)
    if contrast is not None:
        runs.append(contrast)
        rate = rates[[a is contrast.available for a in menu].index(True)]
        shared_s, apart_s = shared_s + contrast.flops / rate, apart_s + contrast.flops / rate
    return Design(tuple(runs), shared_s, apart_s, tuple(compute))


def _contrast(runs: Sequence[PlannedRun], unique: float | None) -> PlannedRun | None:
    """The cheapest run that the middle level already holds, again on a quarter of its distinct samples."""
    if unique is None or max(run.samples for run in runs) <= 2.0 * unique:
        return None
    middle = sorted({run.level for run in runs})[-2]
    twin = min((run for run in runs if run.level == middle), key=lambda run: run.available.flops_per_sample)
    few = min(unique, twin.samples) / 4.0
    return PlannedRun(
        twin.available, twin.samples, twin.trunk, BACKWARD * twin.available.flops_per_sample * twin.samples, -1, few
    )


def _ladder(log_work: Floats, anchor: int) -> list[int]:
    """Indices about one doubling apart, through the anchor; at least 1.4× apart."""
    rungs = np.arange(math.floor(log_work[0] - log_work[anchor]), math.ceil(log_work[-1] - log_work[anchor]) + 1)
    nearest = [int(np.argmin(np.abs(log_work - log_work[anchor] - rung))) for rung in rungs]
    out: list[int] = []
    for i in dict.fromkeys(nearest):
        if not out or log_work[i] - log_work[out[-1]] >= math.log2(1.4):
            out.append(i)
    return out


@dataclass(frozen=True, slots=True)
class Addition:
    """A run worth adding.

    Attributes:
        available: Its size.
        samples: Samples that it should see; `flops` its training FLOPs.
        left: Variance of the decision expected after it and those before it, as a share of today's.
    """

    available: Available
    samples: float
    flops: float
    left: float


def affordable(menu: Sequence[Available], flops: float) -> list[tuple[Available, float]]:
    """Return (size, samples) of runs of each size that cost `flops`, a third and a tenth of it."""
    return [(a, flops * share / (BACKWARD * a.flops_per_sample)) for a in menu for share in (1.0, 1 / 3, 0.1)]


def to_add(
    fitted: Fit,
    pool: Sequence[tuple[Available, float]],
    *,
    target: Sequence[tuple[Available, float]],
    n: int = 3,
    unique: float | None = None,
) -> tuple[Addition, ...]:
    """Return the runs that would most narrow the decision between `target` sizes.

    For each draw of the law, the log of the size it would choose among the targets is the decision; a run that could be made
    tells its log loss with the noise of a run. Were the draws jointly normal, observing it would leave the variance
    Var(decision) - Cov(decision, run)² / (Var(run) + noise²): the run that leaves least is taken, the draws are conditioned
    on it, and so on. Each run is named once.

    Args:
        pool: (size, samples) of the runs that could be made, as from `affordable`.
        target: (size, samples) of the models to choose between.
        n: How many.
        unique: Distinct samples there are. None: as many as wanted.
    Raises:
        InputError: No run can be made, or no target.
    """
    if not pool or not target:
        raise InputError("to_add needs runs that could be made (pool) and sizes to choose between (target). Give one of each.")
    kind = fitted.law.size

    def losses(points: Sequence[tuple[Available, float]]) -> Floats:
        size = np.array([a.size(kind) for a, _ in points])
        samples = np.array([s for _, s in points])
        distinct = None if unique is None else np.minimum(unique, samples)
        return np.asarray(np.log(fitted.draws.loss(size, samples, distinct)), dtype=float)

    sizes = np.log([a.params for a, _ in target])
    at_target = losses(target)
    decision = sizes[np.argmin(at_target, axis=1)]
    if float(decision.std()) < 1e-9:  # every draw chooses the same: what is left to learn is how good it is
        decision = at_target.min(axis=1)
    together = np.cov(np.column_stack([decision, losses(pool)]), rowvar=False)
    start = max(float(together[0, 0]), 1e-300)
    out: list[Addition] = []
    open_to = np.ones(len(pool), dtype=bool)
    while len(out) < n and open_to.any():
        variance = np.diag(together)[1:] + fitted.noise**2
        best = int(np.argmax(np.where(open_to, together[0, 1:] ** 2 / variance, -1.0)))
        open_to &= [run != pool[best] for run in pool]
        column = together[:, best + 1].copy()
        together = together - np.outer(column, column) / variance[best]
        available, samples = pool[best]
        flops = BACKWARD * available.flops_per_sample * samples
        out.append(Addition(available, samples, flops, min(float(together[0, 0]) / start, 1.0)))
    return tuple(out)
