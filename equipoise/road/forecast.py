"""What training will bring: the drop of a plan after some seconds of it, as the plans that were trained tell.

The logarithm of a drop is believed to be linear in that of the loss before training and in that of the seconds, beside what is
a plan's own and chance. Whatever was seen moves these beliefs: a plan that was trained tells of itself most, and of a plan that
was not it tells what its loss lets expect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.records import Evaluation

LEAST_DROP = 0.05
"""Points below which a drop is not told from none."""
AT_LOSS, AT_S = 0.3, 60.0
"""Nats and seconds at which the level of the line is believed."""
LEVEL, SLOPE, DECAY = (1.8, 1.5), (1.0, 0.3), (0.4, 0.15)
"""Of the line, each with its standard deviation. A ResNet-20 on CIFAR-10: points of 0.9 to 7.8 after 59 seconds from losses of
0.045 to 0.70, and exponents of 0.34 to 0.9 where plans were trained on (docs/search.md)."""
OWN, CHANCE = 0.35, 0.2
"""Standard deviations of what is a plan's own, and of what one training does by chance, beside the noise of the sample."""
NEW_LOSS = 1.0
"""Nats that a new model is taken to lose before it is trained."""


class Stand(NamedTuple):
    """Where a plan stood after some training.

    Attributes:
        seconds: Of training in all.
        drop: Points, `LEAST_DROP` or more.
        error: Standard error of the drop.
    """

    seconds: float
    drop: float
    error: float


History = Mapping[str, Sequence[Stand]]
"""Plan digest -> where it stood, oldest first."""


def stand(evaluation: Evaluation, seconds: float) -> Stand:
    """Return where an evaluation that ended well stands after so many seconds of training."""
    drop = evaluation.drop
    error = (drop.high - drop.low) / (2 * 1.96) if drop.low is not None and drop.high is not None else 0.0
    return Stand(seconds, max(drop.get(), LEAST_DROP), error)


@dataclass(frozen=True)
class Forecasts:
    """Forecasts from what was seen.

    Attributes:
        before: Plan digest -> nats that it lost before any training.
        trained: What was trained.
    """

    before: Mapping[str, float]
    trained: History

    def drop(self, plan: str, seconds: float) -> tuple[float, float]:
        """Return the middle of what a plan is believed to drop after `seconds` more, in points, and the spread of its log."""
        history = self.trained.get(plan, ())
        asked = self._place(plan, (history[-1].seconds if history else 0.0) + seconds)
        if not self._seen:
            return math.exp(_mean(asked)), math.sqrt(_shared(asked, asked) + CHANCE**2)
        across = np.array([_shared(asked, place) for place in self._places])
        middle = _mean(asked) + float(across @ self._weights)
        spread = _shared(asked, asked) - float(across @ np.linalg.solve(self._covariance, across)) + CHANCE**2
        return math.exp(middle), math.sqrt(max(spread, CHANCE**2))

    def chance(self, plan: str, seconds: float, most: float) -> float:
        """Return the believed chance that a plan drops `most` points at most after `seconds` more."""
        middle, spread = self.drop(plan, seconds)
        return 0.5 * math.erfc(math.log(middle / most) / (math.sqrt(2) * spread))

    def _place(self, plan: str, seconds: float) -> _Place:
        loss = max(self.before.get(plan, NEW_LOSS), 1e-6)
        return _Place(plan, math.log(loss / AT_LOSS), math.log(max(seconds, 1e-3) / AT_S))

    @cached_property
    def _seen(self) -> list[tuple[str, Stand]]:
        return [(plan, each) for plan, history in self.trained.items() for each in history]

    @cached_property
    def _places(self) -> list[_Place]:
        return [self._place(plan, each.seconds) for plan, each in self._seen]

    @cached_property
    def _covariance(self) -> NDArray[np.float64]:
        shared = np.array([[_shared(a, b) for b in self._places] for a in self._places])
        return shared + np.diag([CHANCE**2 + (each.error / each.drop) ** 2 for _, each in self._seen])

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        off = [math.log(each.drop) - _mean(place) for (_, each), place in zip(self._seen, self._places, strict=True)]
        return np.asarray(np.linalg.solve(self._covariance, np.array(off)))


class _Place(NamedTuple):
    """A plan, and logarithms of what it lost before training and of the seconds."""

    plan: str
    loss: float
    seconds: float


def _mean(place: _Place) -> float:
    return LEVEL[0] + SLOPE[0] * place.loss - DECAY[0] * place.seconds


def _shared(a: _Place, b: _Place) -> float:
    """How far what is believed of one place is believed of the other: the covariance of their logarithms."""
    line = LEVEL[1] ** 2 + SLOPE[1] ** 2 * a.loss * b.loss + DECAY[1] ** 2 * a.seconds * b.seconds
    return line + (OWN**2 if a.plan == b.plan else 0.0)
