"""The sizes of a family along its own rule of growth, and how quickly each of them trains here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from equipoise.errors import InputError
from equipoise.scaling import Available
from equipoise.scaling.decide import REACH
from equipoise.scaling.runs import BACKWARD
from equipoise.workloads.families import Family, Scale

LADDER = 0.5
"""Doublings from one size of the family's own rule to the next."""


@dataclass(frozen=True)
class Rates:
    """Training seconds of a sample at a few sizes.

    Attributes:
        work: Forward FLOPs of a sample, ascending.
        sample_s: Seconds of a sample in a training step.
    """

    work: tuple[float, ...]
    sample_s: tuple[float, ...]

    def flops_per_s(self, size: Available) -> float:
        """Return training FLOP/s at a size: a sample of a small one takes no less than that of the smallest measured."""
        at = size.flops_per_sample
        each = np.interp(at, self.work, self.sample_s) if at <= self.work[-1] else self.sample_s[-1] * at / self.work[-1]
        return float(BACKWARD * at / each)

    def seconds(self, size: Available, samples: float) -> float:
        """Return the seconds in which a size is trained on `samples`."""
        return BACKWARD * size.flops_per_sample * samples / self.flops_per_s(size)


@dataclass(frozen=True)
class Sizes:
    """The sizes that a family has.

    Attributes:
        family: Its dimensions and its rule of growth.
        count: Counts a scale; always the same for the same.
    """

    family: Family
    count: Callable[[Scale], Available]
    _counted: dict[tuple[tuple[str, float], ...], Available] = field(default_factory=dict, repr=False, compare=False)

    def available(self, scale: Scale) -> Available:
        """Return a scale counted, once."""
        key = tuple(scale.items())
        if key not in self._counted:
            self._counted[key] = self.count(scale)
        return self._counted[key]

    def grown(self, factor: float) -> Available | None:
        """Return the size of `factor` times the usual; None where the family does not reach that far."""
        try:
            return self.available(self.family.grow(factor))
        except InputError:
            return None

    def trainable(self, rates: Rates, samples: float, most_s: float) -> tuple[Available, ...]:
        """Return the sizes of the family's own rule, ascending, from the smallest timed up to where `samples` take `most_s`."""
        sizes = self._ladder(20, lambda size: rates.seconds(size, samples) > most_s)
        return tuple(size for size in sizes if size.flops_per_sample >= 0.99 * rates.work[0])

    def reachable(self, runs: Sequence[float]) -> tuple[Available, ...]:
        """Return the sizes of the family's own rule, ascending, up to twice beyond what may be recommended.

        The best of them may then lie out of reach, and be refused for it, instead of being cut off unseen.

        Args:
            runs: Forward FLOPs of a sample in each run that was made.
        """
        most = 2 * REACH * max(runs)
        return self._ladder(30, lambda size: size.flops_per_sample > most)

    def _ladder(self, last: int, too_large: Callable[[Available], bool]) -> tuple[Available, ...]:
        """The sizes of the family's own rule, ascending, up to `last` rungs above the usual or the first that is too large."""
        sizes: dict[float, Available] = {}
        for number in range(-20, last + 1):
            size = self.grown(2.0 ** (LADDER * number))
            if size is None:
                continue
            if too_large(size):
                break
            sizes[size.flops_per_sample] = size
        return tuple(sizes[work] for work in sorted(sizes))
