"""Keeping things in host memory changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_program import VARIANTS, Case, go, net

from equipoise.training.distribution import OneProcess
from equipoise.training.distribution.offload import Offloaded


@pytest.mark.parametrize("variant", ["accumulated", "averaged", "unfrozen", "norm"])
def test_curve_and_weights_are_the_same(tmp_path: Path, variant: str) -> None:
    def host() -> Offloaded:
        return Offloaded(OneProcess(), activations=True, optimizer=True)

    how = VARIANTS.get(variant, {"net": lambda: net(batch_norm=True)})
    cases = [Case(where, **how) for where in (OneProcess, host)]
    plain, offloaded = (go(case, tmp_path) for case in cases)
    assert offloaded.log == plain.log
    assert offloaded.curve[-1].validation_loss == plain.curve[-1].validation_loss
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(offloaded.model.state_dict()[name], weight), name


def test_a_run_goes_on_without(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        go(Case(lambda: Offloaded(OneProcess(), optimizer=True), path="kept", stop_after=5), tmp_path)
    assert go(Case(OneProcess, path="kept"), tmp_path).log == go(Case(OneProcess), tmp_path).log


def test_the_optimizer_steps_on_the_host_and_the_twin_follows() -> None:
    where = Offloaded(OneProcess(), optimizer=True)
    model = where.place(net())
    twin = where._near(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert twin is not model
    assert not torch.equal(twin.first.weight, model.first.weight)  # planted: not yet refreshed
    assert torch.equal(where._near(model).first.weight, model.first.weight)
