"""What the search steers by: costs predicted from the tables for whole populations, refitted as evaluations come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.budget import Budget
from equipoise.records import Evaluation, Reading
from equipoise.road.sensitivity import Features
from equipoise.search import CostFit, Genomes, Space, fit_cost
from equipoise.search.costs import Floats

PRIOR_LATENCY = np.array([0.0, 1.0, 1.0, 0.0, 0.0])
"""Believed before any whole net is timed: latency is the sum of the isolated operators."""
PRIOR_SIZE = np.array([0.0, 4.0, 1.0, 0.0])
"""Four bytes a float parameter, one an int8 parameter."""


@dataclass(frozen=True)
class Cost:
    """One predicted cost; where the runtime is a knob, with features and weights of its own for each runtime.

    Attributes:
        axis: ``latency_s`` or ``size_bytes``.
        features: Runtime name -> features of its look-up table.
        fits: Runtime name -> fitted weights.
    """

    axis: str
    space: Space
    features: Mapping[str, Features]
    fits: Mapping[str, CostFit]

    def many(self, genomes: Genomes) -> Floats:
        """Return the predicted costs ``(n,)`` in base units."""
        rows = self.space.canonical(genomes)
        out = np.empty(len(rows))
        names = self._runtimes(rows)
        for name in self.fits:
            mask = names == name
            if mask.any():
                out[mask] = self.rows(name, rows[mask]) @ self.fits[name].weights
        return np.maximum(out, 1e-12)

    def rows(self, runtime: str, genomes: Genomes) -> np.ndarray[Any, Any]:
        """Return the features of genomes that run on `runtime`."""
        source = self.features[runtime]
        return source.latency(genomes) if self.axis == "latency_s" else source.size(genomes)

    def _runtimes(self, rows: Genomes) -> np.ndarray[Any, Any]:
        at = self.space.positions.get("runtime")
        if at is None:
            return np.full(len(rows), next(iter(self.features)))
        return np.array([str(c) for c in self.space.knobs[at].menu])[rows[:, at]]


def fit(axis: str, space: Space, features: Mapping[str, Features], evaluations: Sequence[Evaluation]) -> Cost:
    """Fit the cost of `axis` on what was measured; a runtime without measurements keeps the prior."""
    prior = PRIOR_LATENCY if axis == "latency_s" else PRIOR_SIZE
    unfitted = Cost(axis, space, features, {})
    fits = {}
    for runtime in features:
        known = [e for e in evaluations if e.ok and e.details["runtime"] == runtime]
        if known:
            rows = unfitted.rows(runtime, space.encode_all([e.plan for e in known]))
            values = np.array([e.axis(axis).get() for e in known])
            noise = np.array([_noise(e.axis(axis)) for e in known])
            fits[runtime] = fit_cost(rows, values, noise=noise, prior=prior)
        else:
            fits[runtime] = CostFit(prior, None, 0)
    return Cost(axis, space, features, fits)


def _noise(reading: Reading) -> float:
    """Relative standard error that the interval of a reading tells; 0 where it has none, as counts and sizes do."""
    if reading.low is None or reading.high is None:
        return 0.0
    return (reading.high - reading.low) / (2 * 1.96) / reading.get()


def excess(budget: Budget) -> Any:
    """Return the function that tells the search by how much predicted costs break the bounds on latency and size."""
    bounds = [(i, budget.bound(word)) for i, word in enumerate(("latency", "size"))]
    active = [(i, b) for i, b in bounds if b is not None]

    def over(costs: Floats, _losses: Floats) -> Floats:
        if not active:
            return np.zeros((len(costs), 0))
        return np.stack([np.maximum(costs[:, i] / b - 1.0, 0.0) for i, b in active], axis=1)

    return over
