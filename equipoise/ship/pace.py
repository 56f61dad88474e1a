"""Whether a program is as fast as was promised, told by racing it anew in fresh processes.

A promised speed-up comes with the interval that another race falls in, and so does the one found. Broken means that the whole
of the second lies below the first; between the two nothing can be told. Absolute times move with the state of a machine and are
told, not judged; where the untouched model itself is found slower or faster than it was, the ratio is given for the state that
it was in at the export (`measure.race.Race.speedup`), and the interval holds what is not known of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from equipoise.batch import mapped
from equipoise.measure.race import FEWEST, Race
from equipoise.records import Reading, measured
from equipoise.road.racing import Contender, race_programs
from equipoise.runtimes.base import Target
from equipoise.ship.promises import Check, State
from equipoise.ship.scene import Scene
from equipoise.stats import Interval
from equipoise.units import show

PATIENCE = 6.0
"""A race goes on for so many times its seconds until eight processes have run: fewer cannot break a promise."""


def raced(scene: Scene, found: dict[str, Reading], seconds: float) -> Iterator[Check]:
    """Race the program beside the reference, judge its speed, and fill `found` with the figures."""
    claims, promise = scene.artifact.claims, scene.artifact.promise
    baseline = claims.recorded.baseline_latency_s.reading
    contenders = {
        "reference": Contender(scene.reference, Target.parse(claims.reference.target)),
        "program": Contender(scene.program, Target.parse(claims.deployable.target)),
    }
    inputs = mapped(scene.samples, lambda value: value.numpy())
    race = race_programs(contenders, inputs, baseline="reference", seconds=seconds, patience=PATIENCE)
    raw, now, base_now = race.speedup("reference", "program"), race.latency("program"), race.latency("reference")
    ratio = race.speedup("reference", "program", at=baseline.get()) if scene.at_home else raw
    state_of = f"; as at the export, for now {told(raw)} beside {base_now}" if scene.at_home else ""
    found["speed_up"] = ratio.reading("1", note=f"{race.processes} fresh processes{state_of}")
    yield speed(promise["speed_up"], ratio, race, at_home=scene.at_home, note=state_of)
    settled = state(baseline, base_now, at_home=scene.at_home)
    yield settled
    if ratio.bounded:
        now = latency(scene.artifact.baseline["latency_s"].get(), ratio, now, as_exported=settled.state == "kept")
    found["latency_s"] = now


def speed(promised: Reading, found: Interval, race: Race, *, at_home: bool, note: str = "") -> Check:
    """Judge a speed-up found, in the state of the machine of the export, against the one promised.

    Args:
        note: What else is to be told of it.
    """
    name, stated = "times faster", told(Interval(promised.get(), promised.low or 0.0, promised.high or math.inf, promised.n))
    how = f"{race.processes} fresh processes, {race.stopped}"
    busy = f"; the process waited {1 - 1 / wait:.0%} of its time" if (wait := max(race.wait.values())) > 1.2 else ""

    def said(state: State, why: str) -> Check:
        return Check(name, stated, told(found), state, f"{why} ({how}{busy}{note})")

    if promised.low is None or promised.high is None:
        return said("cannot tell", "no interval was promised: the study was given too little time to race it")
    if not at_home:
        return said("cannot tell", "another CPU or other versions than those of the export")
    if not found.bounded:
        return said("cannot tell", "too few processes in the time to know the spread: give it more --seconds")
    if found.value >= promised.low:
        wide, width = found.half_width / found.value, (promised.high - promised.low) / 2 / promised.get()
        if wide > 2 * width:
            return said(
                "cannot tell", f"known here to ± {wide:.1%} only, promised to ± {width:.1%}: too busy, or more --seconds"
            )
        return said("kept", "within the promised interval" if found.value <= promised.high else "faster than promised")
    if race.processes < FEWEST:
        return said("cannot tell", f"below the promised interval, but {FEWEST} processes must tell: give it more --seconds")
    if found.high >= promised.low:
        return said("cannot tell", "below the promised interval, but the interval found still meets it")
    return said("broken", "the whole interval found lies below the one promised")


def latency(base: float, ratio: Interval, now: Reading, *, as_exported: bool) -> Reading:
    """Return the latency that a bound is held against.

    A bound was promised in the state that the machine was in at the export: the baseline's latency of then, over the ratio
    found. That counts alone only where the baseline is found as fast as it was. Where it is not, either the manifest or today's
    machine may mislead; the interval then spans both, and what only one of them keeps within a bound cannot be told.
    """
    then = measured(
        base / ratio.value,
        "s",
        low=base / ratio.high,
        high=base / ratio.low,
        n=ratio.n,
        note=f"the baseline's over the speed-up found; now {now}",
    )
    if as_exported:
        return then
    return spanning(then, replace(now, note=f"now, or {show(then.get(), 's')} by the recorded baseline"))


def spanning(then: Reading, now: Reading) -> Reading:
    """Return a reading of now whose interval holds that of then too: only what both keep within a bound is within it."""
    ends = [end for reading in (then, now) for end in (reading.low, reading.high, reading.value) if end is not None]
    return replace(now, low=min(ends), high=max(ends))


def state(promised: Reading, now: Reading, *, at_home: bool) -> Check:
    """Say whether the untouched model runs as fast as at the export: the state of the machine, not a merit of the artifact."""
    name, words = "baseline latency", (str(promised), str(now))
    ends = [end for end in (promised.low, promised.high, now.low, now.high) if end is not None]
    if at_home and len(ends) == 4 and ends[0] <= ends[3] and ends[2] <= ends[1]:
        return Check(name, *words, "kept", "the machine is in the state of the export")
    why = "absolute times move with the state of the machine; the ratio is what is held"
    return Check(name, *words, "cannot tell", why if at_home else f"another machine or other versions; {why}")


def told(ratio: Interval) -> str:
    """Return a ratio with its interval: ``2.00× [1.90, 2.10]``."""
    return f"{ratio.value:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]"
