"""Changes in 8 bits: right on the average, within a step, a quarter of the bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.federated import int8


@given(st.integers(0, 1000), st.sampled_from([1e-30, 1e-4, 1.0, 1e6]))
def test_no_number_moves_by_more_than_a_step(seed: int, size: float) -> None:
    value = {
        "w": size * torch.randn(60, generator=torch.Generator().manual_seed(seed)),
        "zero": torch.zeros(3),
        "none": torch.zeros(0),
    }
    sent, steps = int8.rounded(value, torch.Generator().manual_seed(seed))
    back = int8.restored(sent, steps)
    assert sent["w"].dtype == torch.int8
    assert steps["w"] == pytest.approx(float(value["w"].abs().max()) / 127)
    assert float((back["w"] - value["w"]).abs().max()) <= steps["w"] * (1 + 1e-6)
    assert back["zero"].tolist() == [0, 0, 0]


def test_the_mean_of_many_roundings_is_the_number() -> None:
    value = {"w": torch.linspace(-1, 1, 41)}
    draws = torch.Generator().manual_seed(0)
    found = torch.stack([int8.restored(*int8.rounded(value, draws))["w"] for _ in range(4000)])
    error = (found.mean(0) - value["w"]).abs()
    assert float(error.max()) < 5 * (1 / 127) / 2 / 4000**0.5  # five times the largest standard error
    nearest = ((value["w"] * 127).round() / 127 - value["w"]).abs()
    assert float(nearest.max()) > float(error.max())  # which rounding to the nearest would not do
