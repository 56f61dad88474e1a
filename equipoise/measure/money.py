"""What inference costs in money and what a joule buys."""

from __future__ import annotations

import math
from dataclasses import replace

from equipoise.errors import must_be
from equipoise.records import Reading, estimated, unavailable


def price_per_million(latency: Reading, price_per_hour: float, *, batch: int = 1, streams: int = 1) -> Reading:
    """Return the price in dollars of a million inferences on a machine that is busy without pause.

    Args:
        latency: Seconds a call.
        price_per_hour: Dollars an hour of the machine.
        batch: Inferences a call.
        streams: Calls that the machine serves at the same time, each at this latency.
    Raises:
        InputError: A price that is negative or not finite, or a count under 1.
    Limits:
        An idle machine costs the same: divide by the share of time it is used.
    """
    if not (math.isfinite(price_per_hour) and price_per_hour >= 0):
        raise must_be("price_per_hour", "a number of dollars, 0 or more", price_per_hour, "Write for example 0.4.")
    if batch < 1 or streams < 1:
        raise must_be("money.price_per_million(batch, streams)", "at least 1 each", (batch, streams), "Use 1.")
    factor = price_per_hour / 3600.0 * 1e6 / (batch * streams)
    note = f"${price_per_hour:g}/h, batch {batch}, {streams} at a time, always busy"
    return _scaled(latency, factor, "$", note)


def flops_per_joule(macs: int, energy: Reading) -> Reading:
    """Return FLOPs (2 × MACs) of one inference for each joule of `energy`, with the provenance of the energy.

    Raises:
        InputError: `energy` is known and not positive.
    """
    if energy.value is None:
        return unavailable("1", energy.note)
    if energy.value <= 0:
        raise must_be("money.flops_per_joule(energy)", "positive", energy.value, "Measure it over a longer time.")
    low, high = (2.0 * macs / bound if bound else None for bound in (energy.high, energy.low))
    return replace(energy, value=2.0 * macs / energy.value, unit="1", low=low, high=high)


def _scaled(reading: Reading, factor: float, unit: str, note: str) -> Reading:
    """`reading` times `factor` in another unit, as an estimate; what is unavailable stays so."""
    if reading.value is None:
        return unavailable(unit, reading.note)
    low, high = (None if bound is None else bound * factor for bound in (reading.low, reading.high))
    return estimated(reading.value * factor, unit, low=low, high=high, n=reading.n, note=note)
