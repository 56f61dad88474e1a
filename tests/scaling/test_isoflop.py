"""Parabolas against the closed optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from truth import SMALL, isoflop_runs

from equipoise.scaling import isoflop
from equipoise.scaling.isoflop import overlap
from equipoise.stats import Interval


def test_minima_and_exponent_are_the_laws() -> None:
    levels = (1e12, 4e12, 1.6e13, 6.4e13)
    runs = isoflop_runs(SMALL, noise=0.0, rng=np.random.default_rng(0), levels=levels, sizes=5)
    found = isoflop(runs, seed=0)
    assert [entry.flops for entry in found.levels] == pytest.approx(levels)
    for entry in found.levels:
        truth = SMALL.optimum(entry.flops)
        assert entry.size.value == pytest.approx(float(truth.size), rel=0.05)
        assert entry.loss.value == pytest.approx(float(truth.loss), rel=1e-3)
    assert found.exponent is not None
    assert found.exponent.value == pytest.approx(float(SMALL.exponent), abs=0.01)
    assert found.size(1e14) == pytest.approx(float(SMALL.optimum(1e14).size), rel=0.1)
    assert found.loss(6.4e13) == pytest.approx(float(SMALL.optimum(6.4e13).loss), rel=0.02)


def test_the_interval_covers_and_widens_with_noise() -> None:
    inside, widths = [], []
    for seed in range(40):
        runs = isoflop_runs(SMALL, noise=0.003, rng=np.random.default_rng(seed), sizes=5)
        found = isoflop(runs, seed=seed, draws=100)
        if found.exponent is not None:
            inside.append(found.exponent.low <= float(SMALL.exponent) <= found.exponent.high)
            widths.append(found.exponent.high - found.exponent.low)
    assert len(inside) > 20
    assert np.mean(inside) > 0.75
    quiet = isoflop(isoflop_runs(SMALL, noise=0.0, rng=np.random.default_rng(0), sizes=5), seed=0)
    assert quiet.exponent is not None
    assert quiet.exponent.high - quiet.exponent.low < np.median(widths)


def test_levels_without_a_minimum_are_skipped_and_said() -> None:
    runs = isoflop_runs(SMALL, noise=0.0, rng=np.random.default_rng(0), offset=6.0)
    found = isoflop(runs, seed=0)
    assert (found.levels, found.exponent, found.size(1e14)) == ((), None, None)
    assert len(found.skipped) == 3


def test_overlap() -> None:
    assert overlap(Interval(0.5, 0.4, 0.6, 3), Interval(0.65, 0.6, 0.7, 3))
    assert not overlap(Interval(0.5, 0.4, 0.6, 3), Interval(0.7, 0.61, 0.8, 3))


def test_a_twin_on_less_data_bends_no_parabola() -> None:
    runs = isoflop_runs(SMALL, noise=0.0, rng=np.random.default_rng(0), sizes=5)
    plain = isoflop(runs, seed=0)
    each = [replace(run, unique=run.samples) for run in runs]
    twin = replace(min(runs, key=lambda run: run.params), loss=9.0)
    for others in (runs, each):
        found = isoflop([*others, replace(twin, unique=twin.samples / 400)], seed=0)
        assert [entry.size.value for entry in found.levels] == pytest.approx([entry.size.value for entry in plain.levels])
