"""Whether a program takes no more than was promised, by the meters that the study read it with.

A reading comes with the interval that another one falls in, and so does the promise. Kept: the value found is no worse than
the promised interval, and the value promised no better than the interval found; broken, on the machine of the export:
the whole interval found is worse than the promised one. What follows from another axis is as good as that one, and is judged by
its bounds alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.axes import AXES, on_request
from equipoise.records import Reading
from equipoise.runtimes.base import Target
from equipoise.ship.pace import spanning
from equipoise.ship.promises import Check
from equipoise.ship.scene import ELSEWHERE, Scene, request

SPREAD = 8
"""Times as many readings as a meter takes another time: those that load programs take 6 to 48, as precision asks."""


def metered(scene: Scene, found: dict[str, Reading]) -> Iterator[Check]:
    """Read again what is promised because a budget names it, judge what a meter read, and fill `found` with the figures."""
    claims, promise = scene.artifact.claims, scene.artifact.promise
    target = Target.parse(claims.deployable.target)
    rows = request(scene.samples, target.batch)
    for word in on_request(promise):
        axis = AXES[word]
        now = claims.meters.read([word], found, scene.program, target, rows)[axis.key]
        if axis.meter:
            smaller = bool(axis.smaller)
            yield figure(axis.label.lower(), promise[axis.key], now, smaller=smaller, at_home=scene.at_home)
            now = now if scene.at_home or not now.known else spanning(promise[axis.key], now)
        found[axis.key] = now


def figure(name: str, promised: Reading, found: Reading, *, smaller: bool, at_home: bool) -> Check:
    """Hold a figure promised against another reading of it.

    Args:
        smaller: Whether less is better.
        at_home: Whether it was read on the machine of the export.
    """
    words = (str(promised), str(found))
    if found.value is None:
        return Check(name, *words, "cannot tell", found.note)
    if promised.n > SPREAD * found.n:
        return Check(name, *words, "broken", f"promised of {promised.n} readings, where its meter takes {found.n}")
    (value, _, worst), (now, best, _) = _turned(promised, smaller), _turned(found, smaller)
    if now <= worst and value >= best:
        return Check(name, *words, "kept", found.note)
    if not at_home:
        return Check(name, *words, "cannot tell", f"{ELSEWHERE}; {found.note}")
    if best <= worst:
        return Check(name, *words, "cannot tell", f"the intervals meet, the values lie outside; {found.note}")
    return Check(name, *words, "broken", f"the interval found lies beyond the one promised; {found.note}")


def _turned(reading: Reading, smaller: bool) -> tuple[float, float, float]:
    """Value, better and worse end of a reading, turned so that less is better; without an interval it is exact."""
    sign = 1.0 if smaller else -1.0
    best, worst = sorted(sign * (reading.get() if end is None else end) for end in (reading.low, reading.high))
    return sign * reading.get(), best, worst
