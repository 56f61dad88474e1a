"""How much the weights can tell of one client: Rényi differential privacy of clipped sums with Gaussian noise.

Neighbours are two federations of which one has a client more. The server is trusted, the published weights are not: each round
asks every client by itself with the probability q, clips each change to a norm of C, and adds noise of deviation z C.
"""

from __future__ import annotations

import math

from equipoise.errors import must_be

ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512, 1024)
"""Orders at which the bound is tried; any one of them is a proof, more of them a smaller epsilon."""


def rdp(order: int, *, q: float, noise: float) -> float:
    """Return the Rényi divergence of `order` that one round adds at most.

    Args:
        order: Whole, at least 2.
        q: Probability with which a client is asked; 1 asks all.
        noise: Deviation of the noise over the clipping norm (z); 0 gives infinity.

    References:
        Mironov, Talwar & Zhang 2019, "Rényi differential privacy of the sampled Gaussian mechanism", section 3.3, whole orders;
        for q = 1 Mironov 2017, "Rényi differential privacy", proposition 7.
    """
    if noise == 0:
        return math.inf
    if q == 1:
        return order / (2 * noise**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-q)
        + k * math.log(q)
        + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]
    most = max(terms)
    return max(0.0, (most + math.log(math.fsum(math.exp(term - most) for term in terms))) / (order - 1))


def epsilon(rounds: int, *, q: float, noise: float, delta: float) -> float:
    """Return the epsilon at `delta` after so many rounds; infinity without noise: that is no guarantee at all.

    Args:
        rounds: How many were made; 0 have told nothing.
        q, noise: As of `rdp`.
        delta: Above 0 and below 1.
    Raises:
        InputError: Numbers out of range.

    References:
        Composition: Mironov 2017, proposition 1. To (epsilon, delta): Canonne, Kamath & Steinke 2020, "The discrete Gaussian
        for differential privacy", proposition 12.

    Example:
        >>> round(epsilon(30, q=1.0, noise=10.0, delta=1e-5), 2)
        2.4
    """
    if not 0 < delta < 1:
        raise must_be("delta", "between 0 and 1", delta, "Take less than 1 / clients.")
    if not 0 < q <= 1:
        raise must_be("q", "above 0 and at most 1", q, "It is the share of the clients that a round asks.")
    if rounds == 0:
        return 0.0
    bounds: list[float] = [
        rounds * rdp(order, q=q, noise=noise) + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order in ORDERS
    ]
    return max(0.0, min(bounds))


def statement(rounds: int, *, q: float, noise: float, delta: float) -> str:
    """Return in one sentence what is guaranteed.

    Example:
        >>> statement(30, q=1.0, noise=0.0, delta=1e-5)
        'no privacy guarantee: there is no noise'
    """
    if noise == 0:
        return "no privacy guarantee: there is no noise"
    found = epsilon(rounds, q=q, noise=noise, delta=delta)
    return (
        f"({found:.3g}, {delta:.2g})-differential privacy of a client after {rounds} rounds, towards whoever sees the weights; "
        "not towards the server"
    )
