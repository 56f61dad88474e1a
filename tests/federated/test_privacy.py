"""The accountant against closed forms, an integral, and values that others published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad  # type: ignore[import-untyped,unused-ignore]
from scipy.optimize import brentq  # type: ignore[import-untyped,unused-ignore]
from scipy.stats import norm  # type: ignore[import-untyped,unused-ignore]

from equipoise.errors import InputError
from equipoise.federated.privacy import ORDERS, epsilon, rdp, statement


@pytest.mark.parametrize("order", [2, 3, 17, 64])
@pytest.mark.parametrize("noise", [0.5, 1.0, 10.0])
def test_without_sampling_it_is_the_gaussian_mechanism(order: int, noise: float) -> None:
    assert rdp(order, q=1.0, noise=noise) == pytest.approx(order / (2 * noise**2))
    assert rdp(order, q=1 - 1e-12, noise=noise) == pytest.approx(order / (2 * noise**2), rel=1e-6)


@pytest.mark.parametrize(("order", "q", "noise"), [(2, 0.1, 1.0), (5, 0.01, 0.8), (8, 0.3, 2.0), (16, 0.004, 1.1)])
def test_the_sum_is_the_integral_that_it_stands_for(order: int, q: float, noise: float) -> None:
    def ratio(x: float) -> float:
        mixed = math.log1p(-q) + math.log1p(q / (1 - q) * math.exp((2 * x - 1) / (2 * noise**2)))
        return math.exp(order * (mixed - math.log(1)) + norm.logpdf(x, scale=noise))

    found, _ = quad(ratio, -12 * noise, order + 12 * noise, limit=500, points=[0, 1, order])
    assert rdp(order, q=q, noise=noise) == pytest.approx(math.log(found) / (order - 1), rel=1e-6)
    assert rdp(order, q=q, noise=noise) < rdp(order, q=1.0, noise=noise)
    assert q**2 * rdp(order, q=1.0, noise=noise) != pytest.approx(rdp(order, q=q, noise=noise), rel=1e-3)  # a rule of thumb


PUBLISHED = [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)]
"""(noise, epochs, epsilon) of the tutorials of TensorFlow Privacy: 60,000 samples in batches of 256, delta 1e-5."""


@pytest.mark.parametrize(("noise", "epochs", "wanted"), PUBLISHED)
def test_published_values_are_met_by_their_conversion_and_bettered_by_ours(noise: float, epochs: int, wanted: float) -> None:
    rounds, q, delta = epochs * 60_000 // 256, 256 / 60_000, 1e-5
    theirs = min(rounds * rdp(order, q=q, noise=noise) + math.log(1 / delta) / (order - 1) for order in ORDERS)
    assert theirs == pytest.approx(wanted, rel=0.02)  # whole orders alone
    assert 0.7 * wanted < epsilon(rounds, q=q, noise=noise, delta=delta) < theirs


@pytest.mark.parametrize("noise", [1.0, 3.0, 10.0])
def test_it_is_never_below_the_exact_epsilon_of_one_gaussian_and_near_it(noise: float) -> None:
    """Balle & Wang 2018, "Improving the Gaussian mechanism", theorem 8: the exact curve of one release."""
    delta = 1e-5

    def gap(eps: float) -> float:
        return float(norm.cdf(0.5 / noise - eps * noise) - np.exp(eps) * norm.cdf(-0.5 / noise - eps * noise) - delta)

    exact = brentq(gap, 1e-6, 50)
    found = epsilon(1, q=1.0, noise=noise, delta=delta)
    assert exact < found < 1.2 * exact


def test_more_rounds_more_clients_asked_and_less_noise_cost_more() -> None:
    base = epsilon(50, q=0.2, noise=1.5, delta=1e-4)
    assert epsilon(51, q=0.2, noise=1.5, delta=1e-4) > base
    assert epsilon(50, q=0.3, noise=1.5, delta=1e-4) > base
    assert epsilon(50, q=0.2, noise=1.4, delta=1e-4) > base
    assert epsilon(50, q=0.2, noise=1.5, delta=1e-5) > base
    assert epsilon(0, q=0.2, noise=1.5, delta=1e-4) == 0


def test_no_noise_is_no_guarantee() -> None:
    assert epsilon(1, q=0.5, noise=0.0, delta=1e-5) == math.inf
    assert statement(1, q=0.5, noise=0.0, delta=1e-5) == "no privacy guarantee: there is no noise"
    told = statement(30, q=1.0, noise=10.0, delta=1e-5)
    assert told.startswith("(2.4, 1e-05)-differential privacy")
    assert "not towards the server" in told


@pytest.mark.parametrize(("name", "value"), [("delta", 0.0), ("delta", 1.0), ("q", 0.0), ("q", 1.5)])
def test_numbers_out_of_range_are_told(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        epsilon(1, **{"q": 0.5, "noise": 1.0, "delta": 1e-5, name: value})
