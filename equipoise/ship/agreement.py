"""Whether a manifest agrees with itself: what follows from other claims does so, and each bound stands where they put it.

Needs no torch and opens no file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from equipoise.axes import AXES, on_request
from equipoise.budget import Budget, parse_budget
from equipoise.records import Reading
from equipoise.runtimes.base import read_targets
from equipoise.ship.manifest import SOURCE_STATE, Figure, Manifest, checked


def contradictions(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield every place where a manifest that `checked` takes contradicts itself."""
    m = checked(data)
    yield from _latency(m)
    yield from _following(m)
    for part, program in (("promise", m.deployable), ("baseline", m.reference)):
        stated, summed = getattr(m, part)["size_bytes"].value, sum(m.files[f].bytes for f in program.files if f in m.files)
        if stated != summed:
            yield f"{part}.size_bytes is {stated:g}, its files have {summed}"
    if m.promise["drop"].n != m.promise["quality"].n:
        yield "promise.drop and promise.quality are of different samples"
    if m.promise["quality"].n > m.baseline["quality"].n:
        yield "promise.quality is of more samples than baseline.quality"
    bounds, missed = divided(parse_budget(m.study.budget), {k: f.reading for k, f in m.promise.items()})
    if (m.bounds, m.bounds_missed) != (bounds, missed):
        yield f"of the budget {m.study.budget!r} the figures hold {bounds!r}, not {m.bounds!r}"
    targets = [str(t) for t in read_targets(m.study.target)]
    if m.reference.target != targets[0] or m.deployable.target not in targets:
        yield f"the programs' targets are not those of the study, {m.study.target}"
    if m.plan.get("target", m.deployable.target) != m.deployable.target:
        yield "the plan names another target than the program"
    if m.study.source_state != (SOURCE_STATE in m.files):
        yield f"{SOURCE_STATE} is {'listed' if SOURCE_STATE in m.files else 'missing'} against study.source_state"
    if any(len(pair) != 2 or m.plan.get(knob) != pair[1] or pair[0] == pair[1] for knob, pair in m.changed.items()):
        yield "what was changed is not what the plan says"
    if any(m.plan.get(f"bits.{layer}") == 32 for layer in m.left_float):
        yield "a layer that the plan keeps in float is called left in float"
    if (m.fidelity == "untouched") != (not m.changed):
        yield f"{len(m.changed)} knobs changed in a model that is called {m.fidelity}"


def divided(budget: Budget, readings: Mapping[str, Reading]) -> tuple[str, str]:
    """Return the bounds of `budget` that `readings` hold, and those that they miss, as their user wrote them."""
    held: list[str] = []
    missed: list[str] = []
    for part, c in zip(budget.text.split(","), budget.constraints, strict=False):
        value = readings[c.axis].value if c.axis in readings else None
        (held if value is not None and c.excess(value) == 0 else missed).append(part.strip())
    return ", ".join(held), ", ".join(missed)


def _latency(m: Manifest) -> Iterator[str]:
    """A latency is promised as the reference's over the speed-up, each end of the interval too."""
    base, ratio, latency = m.baseline["latency_s"].value, m.promise["speed_up"], m.promise["latency_s"]
    assert ratio.low is not None  # `_ratio` saw to it
    assert ratio.high is not None
    wanted = (base / ratio.value, base / ratio.high, base / ratio.low)
    yield from (f"promise.latency_s.{end} is not the reference's latency over the speed-up" for end in _off(latency, wanted))
    if m.recorded.baseline_latency_s.value != base:
        yield "baseline.latency_s is not the latency that was recorded of the untouched model"
    if latency.n != ratio.n:
        yield "promise.latency_s and promise.speed_up are of different samples"


def _following(m: Manifest) -> Iterator[str]:
    """A price, a throughput, carbon are promised as they follow from the latency or the energy promised."""
    readings = {key: figure.reading for key, figure in m.promise.items()}
    for word in on_request(readings):
        axis = AXES[word]
        if axis.of:
            wanted, stated = m.meters.follows(word, readings), m.promise[axis.key]
            ends = _off(stated, (wanted.value, wanted.low, wanted.high))
            yield from (f"promise.{axis.key}.{end} does not follow from the {axis.of} promised" for end in ends)
            if stated.n != wanted.n:
                yield f"promise.{axis.key} and promise.{AXES[axis.of].key} are of different samples"


def _off(stated: Figure, wanted: tuple[float | None, float | None, float | None]) -> Iterator[str]:
    """Yield which of value, low and high are not those wanted."""
    for end, value in zip(("value", "low", "high"), wanted, strict=True):
        found = getattr(stated, end)
        if (found is None) != (value is None) or not math.isclose(found or 0.0, value or 0.0, rel_tol=1e-6):
            yield end
