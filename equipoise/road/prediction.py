"""What the search steers by: costs predicted from the tables for whole populations, refitted as evaluations come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.axes import AXES
from equipoise.budget import Budget
from equipoise.meters import Meters
from equipoise.records import Evaluation, Reading
from equipoise.road.facts import TARGET
from equipoise.road.features import PRIORS, Features
from equipoise.search import CostFit, Genomes, Space, fit_cost
from equipoise.search.costs import Floats

TRADED = ("latency_s", "size_bytes")
"""Costs that the search trades off against the loss; others that the budget bounds are kept within their bound."""


@dataclass(frozen=True)
class Cost:
    """One predicted cost; where the target is a knob, with features and weights of its own for each target.

    Attributes:
        axis: Key of the axis.
        features: Target -> features of its look-up table.
        fits: Target -> fitted weights.
    """

    axis: str
    space: Space
    features: Mapping[str, Features]
    fits: Mapping[str, CostFit]

    def many(self, genomes: Genomes) -> Floats:
        """Return the predicted costs ``(n,)`` in base units."""
        rows = self.space.canonical(genomes)
        out = np.empty(len(rows))
        names = self._targets(rows)
        for name, fit in self.fits.items():
            mask = names == name
            if mask.any():
                out[mask] = self.features[name].of(self.axis, rows[mask]) @ fit.weights
        return np.maximum(out, 1e-12)

    def by_layer(self, genome: Genomes) -> Floats:
        """Return the predicted seconds of each layer `(layers,)` under one genome; what a call takes at all is not in them."""
        rows = self.space.canonical(genome[None])
        name = str(self._targets(rows)[0])
        return np.asarray(self.features[name].by_layer(rows)[0] @ self.fits[name].weights)

    def _targets(self, rows: Genomes) -> np.ndarray[Any, Any]:
        at = self.space.positions.get(TARGET)
        if at is None:
            return np.full(len(rows), next(iter(self.features)))
        return np.array([str(c) for c in self.space.knobs[at].menu])[rows[:, at]]


def fit(axis: str, space: Space, features: Mapping[str, Features], evaluations: Sequence[Evaluation]) -> Cost:
    """Fit the cost of `axis` on what was measured; a target without measurements keeps the prior."""
    fits = {}
    for target, source in features.items():
        known = [e for e in evaluations if e.ok and e.program and e.program.target == target and e.axis(axis).known]
        if known:
            rows = source.of(axis, space.canonical(space.encode_all([e.plan for e in known])))
            values = np.array([e.axis(axis).get() for e in known])
            noise = np.array([_noise(e.axis(axis)) for e in known])
            fits[target] = fit_cost(rows, values, noise=noise, prior=PRIORS[axis])
        else:
            fits[target] = CostFit(PRIORS[axis], None, 0)
    return Cost(axis, space, features, fits)


def _noise(reading: Reading) -> float:
    """Relative standard error that the interval of a reading tells; 0 where it has none, as counts and sizes do."""
    if reading.low is None or reading.high is None:
        return 0.0
    return (reading.high - reading.low) / (2 * 1.96) / reading.get()


def bounds(budget: Budget, meters: Meters) -> dict[str, float]:
    """Return key -> the most allowed, of every axis that the tables predict; of several bounds on one the tightest.

    A price and a throughput are bounds on the latency that they follow from, carbon one on the energy.
    """
    out: dict[str, float] = {}
    for constraint in budget.constraints:
        if AXES[constraint.word].predicted:
            word, most = meters.on_base(constraint.word, constraint.bound)
            key = AXES[word].key
            out[key] = min(most, out.get(key, most))
    return out


@dataclass(frozen=True)
class Bounded:
    """Predicted costs held to their bounds: how far each genome is beyond them."""

    costs: tuple[Cost, ...]
    most: tuple[float, ...]

    def excess(self, genomes: Genomes) -> Floats:
        """Return by how much each bound is broken, relative to it, ``(n, bounds)``; 0 where it holds."""
        if not self.costs:
            return np.zeros((len(genomes), 0))
        over = [np.maximum(cost.many(genomes) / most - 1.0, 0.0) for cost, most in zip(self.costs, self.most, strict=True)]
        return np.stack(over, axis=1)
