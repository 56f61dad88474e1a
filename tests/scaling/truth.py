"""Synthetic truth for the scaling tests: runs drawn from a known law."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.scaling import Law, Run

SMALL = Law(0.55, 30.0, 60.0, 0.32, 0.36)
"""A law at the scale of small nets: 1e5 params on 2e6 samples lose about 1.6."""


def isoflop_runs(
    law: Law,
    *,
    noise: float,
    rng: np.random.Generator,
    levels: Sequence[float] = (1e12, 3.5e12, 1.225e13),
    sizes: int = 4,
    spacing: float = 2.0,
    offset: float = 0.0,
    scatter: float = 0.0,
    unique: float | None = None,
) -> list[Run]:
    """Runs at compute levels around the law's own optimum, moved by `offset` doublings; forward FLOPs = 2 params."""
    out = []
    for flops in levels:
        best = float(law.optimum(flops).size)
        for k in range(sizes):
            shift = offset + k - (sizes - 1) / 2 + scatter * rng.standard_normal()
            params = best * spacing**shift
            samples = flops / (6.0 * params)
            out.append(run_of(law, params, samples, noise=noise, rng=rng, unique=unique))
    return out


def run_of(
    law: Law, params: float, samples: float, *, noise: float, rng: np.random.Generator, unique: float | None = None
) -> Run:
    """One noisy run of a law over params, with 2 forward FLOPs per parameter."""
    distinct = None if unique is None else min(unique, samples)
    loss = float(law.loss(params, samples, distinct)) * float(np.exp(noise * rng.standard_normal()))
    return Run(params=params, samples=samples, flops_per_sample=2.0 * params, loss=loss, unique=distinct)
