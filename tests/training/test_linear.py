"""The smallest worked example against the closed form."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LinearRegression
from toys import seeded

from equipoise.errors import EquipoiseError, InputError
from equipoise.training.linear import curvature, descend, solve

INPUTS = torch.randn(80, 3, generator=seeded()).double()
TARGETS = INPUTS @ torch.tensor([2.0, -1.0, 0.5]).double() + 3 + 0.1 * torch.randn(80, generator=seeded(1)).double()


def test_descent_comes_to_the_closed_form_and_to_scikit_learn() -> None:
    found, exact = descend(INPUTS, TARGETS, steps=300), solve(INPUTS, TARGETS)
    assert torch.allclose(found.weights, exact.weights, atol=1e-8)
    theirs = LinearRegression().fit(INPUTS.numpy(), TARGETS.numpy())
    assert exact.weights.tolist() == pytest.approx(theirs.coef_.tolist())
    assert float(exact.bias) == pytest.approx(theirs.intercept_)
    assert (exact(INPUTS) - TARGETS).square().mean() <= (found(INPUTS) - TARGETS).square().mean() + 1e-12
    assert not torch.allclose(descend(INPUTS, TARGETS, steps=2).weights, exact.weights, atol=1e-3)  # control


def test_first_step_by_hand_and_descent_never_climbs() -> None:
    one = descend(INPUTS, TARGETS, steps=1, lr=0.1)
    assert torch.allclose(one.weights, 0.1 * 2 * (INPUTS * TARGETS[:, None]).mean(0))
    assert float(one.bias) == pytest.approx(0.2 * float(TARGETS.mean()))
    losses = descend(INPUTS, TARGETS, steps=50).losses
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))


def test_rate_past_the_curvature_diverges_and_is_told() -> None:
    limit = 2 / curvature(INPUTS)
    assert descend(INPUTS, TARGETS, steps=3000, lr=0.99 * limit).losses[-1] < 0.02
    with pytest.raises(EquipoiseError, match="Lower the rate"):
        descend(INPUTS.float(), TARGETS.float(), steps=3000, lr=1.2 * limit)


def test_shapes_must_fit() -> None:
    with pytest.raises(InputError, match=r"of shapes \(N, D\) and \(N,\)"):
        descend(INPUTS, TARGETS[:, None])


def test_example_runs_and_checks_itself(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(checkout / "examples" / "linear_regression.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert "all agree with the closed form" in text
    assert text.count("#") > 20
