"""Keeping things in host memory changes no number."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from rank_program import VARIANTS, Case, go, net

from equipoise.training import Recipe
from equipoise.training.distribution import OneProcess
from equipoise.training.distribution.launch import connect
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


def test_one_process_can_shard_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, gradients and optimizer state on the host, and a block at a time on the device: a model larger than it."""
    monkeypatch.delenv("RANK", raising=False)
    where = connect("fsdp", offload=["parameters", "activations"])
    try:
        sharded, plain = (go(Case(lambda made=made: made, **VARIANTS["averaged"]), tmp_path) for made in (where, OneProcess()))
    finally:
        where.close()
    torch.testing.assert_close(sharded.log, plain.log, rtol=1e-6, atol=0)
    torch.testing.assert_close(sharded.model.state_dict(), plain.model.state_dict())


def test_shards_sent_in_bf16_leave_batch_norm_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its running statistics are float32, and no kernel takes them beside weights in bf16."""
    monkeypatch.delenv("RANK", raising=False)
    where = connect("fsdp", offload=["parameters"], precision="bf16")
    how = {"recipe": Recipe(batch=33, lr=1e-2, precision="bf16"), "net": partial(net, batch_norm=True)}
    try:
        sharded, plain = (go(Case(lambda made=made: made, **how), tmp_path) for made in (where, OneProcess()))
    finally:
        where.close()
    torch.testing.assert_close(sharded.log, plain.log, rtol=1e-2, atol=0)
    assert all(value.dtype == torch.float32 for value in sharded.model.state_dict().values() if value.is_floating_point())


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
