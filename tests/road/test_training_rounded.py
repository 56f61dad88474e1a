"""A plan of few bits is recovered as it will be rounded: what comes back lies on the grid, and scoring it moves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise.compress.rounding import on_grid
from equipoise.records import Plan
from equipoise.road import training
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.study.store import Store
from equipoise.workloads import Workload

pytestmark = pytest.mark.slow  # exports
BITS = "4-weights"


def workload() -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 4))
        x = torch.randn(300, 3, 6, 6)
        net(x)
    net.eval()
    with torch.no_grad():
        y = net(x).argmax(1)
    return Workload(model=net, train=(x[:200], y[:200]), validation=(x[200:250], y[200:250]), test=(x[250:], y[250:]))


def test_what_is_recovered_lies_on_the_grid_where_rounding_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(workload(), (Target("onnxruntime"),), store.blob)
        plan = Plan({f"bits.{name}": BITS for name in bench.builder.subject.ops})
        draft = bench.build(plan)
        assert set(draft.request.values()) == {BITS}

        def moved(leg: int) -> float:
            done = training.train(bench, plan, draft, seconds=1.0, checkpoint=tmp_path / str(leg), leg=leg, seed=0)
            again = on_grid(done.model, draft.request, exact=True, calibration=torch.from_numpy(bench.calibration))
            pairs = zip(again.parameters(), done.model.parameters(), strict=True)
            assert [name for name, _ in done.model.named_modules()] == [name for name, _ in draft.model.named_modules()]
            return max(float((new - old).detach().abs().max()) for new, old in pairs)

        assert moved(1) < 1e-5  # the student is the teacher, so that rounding is all it loses
        monkeypatch.setattr("equipoise.compress.through.WORTH", 1e9)
        assert moved(2) > 1e-3  # in floats to the end
