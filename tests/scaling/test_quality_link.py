"""Loss to metric, and error as a bounded power."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from truth import SMALL, isoflop_runs, run_of

from equipoise.errors import InputError
from equipoise.scaling import ErrorLaw, fit, fit_error, link
from equipoise.scaling.fit import spread


def accuracy(loss: float) -> float:
    return 100.0 / (1.0 + np.exp(-(2.0 - 3.0 * np.log(loss))))


@pytest.mark.slow
def test_accuracy_of_a_larger_model_is_covered() -> None:
    inside, errors = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        runs = [
            dataclasses.replace(r, quality=accuracy(r.loss * np.exp(0.01 * rng.standard_normal())))
            for r in isoflop_runs(SMALL, noise=0.004, rng=rng)
        ]
        fitted = fit(runs, seed=seed, size="params", starts=8, bootstraps=100)
        found = link(runs, bounds=(0.0, 100.0), seed=seed)
        assert found is not None
        params = 3.0 * max(r.params for r in runs)
        target = run_of(SMALL, params, 1e8, noise=0.004, rng=rng)
        draws = spread(fitted, np.asarray(fitted.draws.loss(params, 1e8)).reshape(-1, 1), params, 1e8)
        said = found.predict(draws, float(fitted.law.loss(params, 1e8)))
        seen = accuracy(target.loss * np.exp(0.01 * rng.standard_normal()))
        inside.append(said.low <= seen <= said.high)
        errors.append(abs(said.value - seen))
        assert 0 <= said.low <= said.high <= 100
    assert np.mean(inside) >= 0.8
    assert np.median(errors) < 1.0


def test_an_unbounded_metric_is_a_line_in_log_loss() -> None:
    runs = [
        dataclasses.replace(r, quality=30.0 - 12.0 * np.log(r.loss))
        for r in isoflop_runs(SMALL, noise=0.004, rng=np.random.default_rng(0))
    ]
    found = link(runs, bounds=None, seed=0)
    assert found is not None
    assert (found.offset, found.slope) == pytest.approx((30.0, -12.0), rel=1e-3)
    assert found.quality(1.5) == pytest.approx(30.0 - 12.0 * np.log(1.5), rel=1e-3)


def test_few_or_wrong_qualities() -> None:
    runs = isoflop_runs(SMALL, noise=0.0, rng=np.random.default_rng(0))
    assert link(runs, bounds=None, seed=0) is None
    with pytest.raises(InputError, match="between the bounds"):
        link([dataclasses.replace(r, quality=120.0) for r in runs], bounds=(0.0, 100.0), seed=0)


def test_the_error_law_comes_back_and_saturates() -> None:
    law = ErrorLaw(0.06, 3e3, 0.4, 5e9)
    x = np.geomspace(1e9, 1e14, 14)
    rng = np.random.default_rng(0)
    found = fit_error(x.tolist(), (law.error(x) * np.exp(0.01 * rng.standard_normal(14))).tolist(), seed=0)
    for at in (3e9, 1e12, 4e14):
        said = found.predict(at)
        assert said.value == pytest.approx(float(law.error(at)), rel=0.05)
        assert said.low < float(law.error(at)) < said.high
    straight = np.exp(np.polyval(np.polyfit(np.log(x), np.log(law.error(x)), 1), np.log(4e14)))
    assert abs(straight / law.error(4e14) - 1) > 0.1  # the negative control: a line in logarithms is far off


def test_published_resnets_at_twice_the_size() -> None:
    """Test error of CIFAR ResNets 20, 32, 44 (He et al. 2016, table 6) foretells 56; three depths cannot bound 1202."""
    params = [0.27e6, 0.46e6, 0.66e6, 0.85e6]
    error = [8.75, 7.51, 7.17, 6.97]
    found = fit_error(params, error, seed=0)
    assert found.predict(1.7e6).low < 6.43 < found.predict(1.7e6).high  # ResNet-110
    wide = found.predict(19.4e6)
    assert wide.high / wide.low > 1.3


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 1, 1]), ([1, 2, 3, 4], [1, 1, 1]), ([1, 2, 3, 0], [1, 1, 1, 1])])
def test_bad_points(x: list[float], y: list[float]) -> None:
    with pytest.raises(InputError, match="equally long"):
        fit_error(x, y, seed=0)
