"""Learning rates against closed forms and torch's own schedulers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.training import Recipe


def of_torch(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.3)
    scheduler, rates = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step is made: only the rates are wanted
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


@pytest.mark.parametrize("rise", [0.3, 0.1])
def test_onecycle_is_torchs(rise: float) -> None:
    total = 101
    theirs = of_torch(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=total, pct_start=rise), total - 1)
    recipe = Recipe(lr=0.3, schedule="onecycle", rise_share=(rise * total - 1) / (total - 1))
    mine = [recipe.lr_at(step, step / (total - 1)) for step in range(total - 1)]
    assert mine == pytest.approx(theirs, rel=1e-9)
    assert mine != pytest.approx(of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100), 100), rel=0.1)


def test_cosine_is_torchs() -> None:
    theirs = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 50)
    recipe = Recipe(lr=0.3, schedule="cosine", warmup=0)
    assert [recipe.lr_at(step, step / 50) for step in range(50)] == pytest.approx(theirs, rel=1e-6)


def test_wsd_by_hand() -> None:
    recipe = Recipe(lr=2.0, schedule="wsd", warmup=3, decay_share=0.25)
    assert [recipe.lr_at(step, step / 100) for step in (0, 1, 3, 40, 75)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    for step in (76, 80, 99, 100):
        assert recipe.lr_at(step, step / 100) == pytest.approx(2 * (1 - math.sqrt((step - 75) / 25)))
    trunk = Recipe(lr=2.0, schedule="wsd", warmup=0, decay_share=0.0)
    assert {trunk.lr_at(step, step / 100) for step in range(101)} == {2.0}


def test_settings_out_of_range_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        Recipe(
            optimizer="muom",
            schedule="one-cycle",
            precision="fp8",
            ema=1.0,
            accumulate=0,
            patience=0,
            rise_share=1.5,  # type: ignore[arg-type]
            label_smoothing=1.0,
            l1=-1,
        )
    text = str(caught.value)
    for name in ("optimizer", "schedule", "precision", "ema", "accumulate", "patience", "rise_share", "label_smoothing", "l1"):
        assert f"recipe.{name} must be" in text
    assert "Did you mean 'muon'" in text
    assert "Did you mean 'onecycle'" in text
