"""A device's peak is a product's, a share of it is a quotient, and memory that is not told apart is no number."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from equipoise.measure.device import finish, forget_peak, peak_flops, peak_memory, utilization
from equipoise.records import measured, unavailable

CPU = torch.device("cpu")


def test_peak_is_two_flops_a_multiplication() -> None:
    """By a clock on which each product takes 1 s: read before and after it, and once more at the end of a block."""
    ticks = (0.5 * i for i in count())
    found = peak_flops(CPU, side=10, block_s=0.1, clock=lambda: next(ticks))
    assert found.value == pytest.approx(2 * 10**3)
    assert found.unit == "1/s"
    assert found.n == 8
    assert "10 x 10" in found.note


def test_real_peak_is_that_of_a_computer() -> None:
    assert 1e9 < peak_flops(CPU, side=256, blocks=2).get() < 1e14


def test_utilization_is_the_share_of_the_peak_and_keeps_its_interval() -> None:
    found = utilization(6e9, 2.0, measured(1e10, "1/s", low=0.5e10, high=2e10, note="product"))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.15, 0.6))
    assert found.provenance == "estimated"
    assert not utilization(6e9, 2.0, unavailable("1/s", "no device")).known


def test_memory_of_a_cpu_is_no_number() -> None:
    forget_peak(CPU)
    finish(CPU)
    assert not peak_memory(CPU).known
