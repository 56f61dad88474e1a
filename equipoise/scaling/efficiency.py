"""The mission's efficiency E(S, R, T, V), as it is defined, and what that definition does and does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.errors import must_be


@dataclass(frozen=True, slots=True)
class Efficiency:
    """E = (T + R / V) / S with T = S · D / V, for one scale.

    Attributes:
        scale: S, parameters.
        data: D, training samples.
        resources: R, FLOP/s at hand.
        speed: V, samples per second.
        training: T = S · D / V, in parameters × seconds: the definition calls it training time, but D / V alone is a time.
        utilization: R / V, in FLOPs per sample: what the resources could spend on each sample at this speed.
        value: E.
    """

    scale: float
    data: float
    resources: float
    speed: float
    training: float
    utilization: float
    value: float

    @property
    def seconds(self) -> float:
        """D / V: the real time of one pass over the data at this speed."""
        return self.data / self.speed


def efficiency(scale: float, *, data: float, resources: float, speed: float) -> Efficiency:
    """Return the mission's efficiency of a model of `scale` parameters, as defined.

    Put in one line, E = D / V + R / (V S). So at a given data size, hardware and speed

    - E only falls as S grows, and never below D / V: it has no best scale inside. Read as a cost it always asks for the largest
      model, read as a merit for the smallest;
    - quality is nowhere in it, so it cannot say whether a scale is worth its cost;
    - it adds D / V (seconds) to R / (V S) (FLOPs per sample and parameter): the sum depends on the units chosen, and changes
      its ranking of *different* hardware or speeds when seconds become hours;
    - more hardware (R) raises E although nothing became slower, because V is entered as if it did not depend on R and S.

    With the V that hardware allows, V = R / (k S) (k training FLOPs per parameter and sample, 6 for a dense net), it becomes
    E = k S D / R + k: the training time of one pass plus a constant. In that reading E is a sound cost: it grows with S.

    Args:
        scale: S, parameters, above 0.
        data: D, samples.
        resources: R, FLOP/s.
        speed: V, samples per second.
    Raises:
        InputError: A value that is not above 0.
    """
    for name, value in (("scale", scale), ("data", data), ("resources", resources), ("speed", speed)):
        if not value > 0:
            raise must_be(f"efficiency {name}", "above 0", value, "Give a measured value.")
    training, utilization = scale * data / speed, resources / speed
    return Efficiency(scale, data, resources, speed, training, utilization, (training + utilization) / scale)


WORKED_SCALES = (100e6, 200e6, 150e6, 125e6)
"""The scales of the mission's worked case, in its order."""


def worked_case(scales: Sequence[float] = WORKED_SCALES) -> tuple[Efficiency, ...]:
    """Return the mission's worked case: 10⁷ images, 1000 TFLOPS, 1 image per second, 100 M → 200 M, 150 M, 125 M.

    Example:
        >>> [round(e.value / 1e7, 3) for e in worked_case()]
        [2.0, 1.5, 1.667, 1.8]
    """
    return tuple(efficiency(scale, data=1e7, resources=1e15, speed=1.0) for scale in scales)


def statement(cases: Sequence[Efficiency]) -> str:
    """Say in plain words what these values of E mean and what they do not.

    Raises:
        InputError: No cases.
    """
    if not cases:
        raise must_be("efficiency cases", "at least one", list(cases), "Call `efficiency` for each scale.")
    lines = [f"E = (T + R/V) / S with T = S·D/V, which is D/V + R/(V·S). For {_case(cases[0])}:"]
    lines += [
        f"  S = {c.scale / 1e6:g} M: T = {c.training:.3g}, R/V = {c.utilization:.3g}, E = {c.value:.4g}"
        + (f" ({(c.value / cases[0].value - 1) * 100:+.1f} %)" if c is not cases[0] else "")
        for c in cases
    ]
    if len({(c.data, c.resources, c.speed) for c in cases}) == 1:
        least, most = min(cases, key=lambda c: c.value), max(cases, key=lambda c: c.value)
        lines.append(
            f"At one data size, hardware and speed E only falls as S grows, down to D/V = {cases[0].seconds:.3g}: read as a "
            f"cost it prefers the largest scale ({least.scale / 1e6:g} M here), read as a merit the smallest "
            f"({most.scale / 1e6:g} M)."
        )
    lines += [
        "What it says: how the fixed expense R/V spreads over more parameters.",
        "What it does not say: whether the model is good (quality is not in it), which scale is best (it has no optimum "
        "inside), or how long training takes: T is in parameters × seconds; one pass over the data takes "
        f"D/V = {cases[0].seconds:.3g} s at the given speed, whatever S.",
        "It adds seconds to FLOPs per sample and parameter, so its value depends on the units; and it holds V fixed while S "
        "and R change. With V = R/(k·S), what hardware allows, E = k·S·D/R + k: the training time of one pass plus a constant, "
        "which grows with S. Choose a scale by predicted loss under limits (`decide`), not by E.",
    ]
    return "\n".join(lines)


def _case(c: Efficiency) -> str:
    return f"D = {c.data:.3g} samples, R = {c.resources / 1e12:g} TFLOPS, V = {c.speed:g}/s"
