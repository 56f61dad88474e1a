"""Metrics and losses of the user's own, through the whole road: a bound means what it says, and the right thing is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from torch import Tensor, nn

from equipoise.budget import parse_budget
from equipoise.compress.technique import Draft
from equipoise.records import Plan
from equipoise.road import proposals, training
from equipoise.road.walk import optimize
from equipoise.workloads import Metric, Workload
from equipoise.workloads.divergence import Divergence
from equipoise.workloads.scoring import drop_reading


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Let a round try one or two plans, so that a search converges in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "FIRST", 2)
        patch.setattr(proposals, "ROUND", 1)
        yield


def trained(loss: Any, outputs: int, x: Tensor, y: Tensor, after: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)]
    net = nn.Sequential(*parts, *([after] if after else []))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(120):
        adam.zero_grad()
        loss(net(x[:400]), y[:400]).backward()
        adam.step()
    return net


X = torch.randn(700, 12, generator=torch.Generator().manual_seed(1))


def work(net: nn.Module, y: Tensor, metric: Any, **changes: Any) -> Workload:
    splits = {"train": (X[:400], y[:400]), "validation": (X[400:550], y[400:550]), "test": (X[550:], y[550:])}
    return Workload(model=net, metric=metric, name="own", **splits, **changes)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


@pytest.mark.slow
def test_one_point_of_a_fraction_is_one_in_a_hundred(tmp_path: Path) -> None:
    y = (X[:, :3].sum(1) > 0).long() + (X[:, 3] > 0.5).long()
    net = trained(F.cross_entropy, 3, X, y)
    study = optimize(work(net, y, top1), budget="drop<=1", time=8, store=tmp_path / "own", recovery=False)
    base = study.baseline.quality
    assert base.get() > 60  # points of 100, not a fraction
    assert study.header.metric["point"] == "one point is 0.01 of top1"
    assert study.header.metric["scale"] == 100
    for found in study.evaluations:
        if not found.ok or found.fidelity == "untouched":
            continue
        assert found.drop.get() == pytest.approx(base.get() - found.quality.get(), abs=1e-3)
        assert found.drop.low is not None
        assert found.quality.low is not None
    assert study.best.drop.get() <= 1 or not study.met
    metric, targets = work(net, y, top1).metric, y[400:550]
    good = F.one_hot(targets, 3).float().numpy()
    bad = good.copy()
    bad[:30] = bad[:30][:, [1, 2, 0]]  # control: one answer in five is wrong, which the bound must not allow
    assert parse_budget("drop<=1").constraints[0].excess(drop_reading(metric, good, bad, targets).get()) > 0


@pytest.mark.slow
def test_a_sigmoid_is_scored_as_one(tmp_path: Path) -> None:
    y = (X[:, :3].sum(1) > 0).long()
    net = trained(lambda o, t: F.binary_cross_entropy(o[:, 0], t.float()), 1, X, y, nn.Sigmoid())
    study = optimize(work(net, y, "accuracy"), time=8, store=tmp_path / "sigmoid", recovery=False)
    assert study.baseline.quality.get() > 85
    for found in study.evaluations:
        assert not found.ok or found.drop.get() > -5  # no "gain" by another threshold


@pytest.mark.slow
def test_r_squared_and_several_values(tmp_path: Path) -> None:
    y = torch.stack([X[:, 0], 100 * X[:, 1], X[:, 2] + X[:, 3]], 1)
    net = trained(lambda o, t: ((o - t) / t.std(0)).square().mean(), 3, X, y)
    metric = Metric("r2", True, lambda o, t: r2_score(t, o))
    study = optimize(work(net, y, metric), time=8, store=tmp_path / "r2", recovery=False)
    assert study.header.metric["scale"] == 100
    assert study.baseline.quality.get() == pytest.approx(100 * r2_score(y[400:550], net(X[400:550]).detach()), abs=0.1)
    assert all(found.drop.low is not None for found in study.evaluations if found.ok and found.fidelity != "untouched")


@pytest.mark.slow
def test_several_labels_are_won_back_as_such() -> None:
    """Recovery learns a yes or no for each label; the softmax between labels would lose what is common to them."""
    y = torch.stack([X[:, 0] + X[:, 1] + 0.1 * X[:, i] > 0 for i in range(6)], 1).float()
    net = trained(F.binary_cross_entropy_with_logits, 6, X, y).eval()
    several = work(net, y, "accuracy", loss=lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets))
    assert several.divergence.kind == "bernoulli"
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 6))

    def answers(inputs: Any) -> Any:
        return net(inputs).detach()

    bench: Any = SimpleNamespace(
        work=several, calibration=X[:64].numpy(), remembered=answers, answers=answers, classes=0, device=torch.device("cpu")
    )

    def recovered(path: Path) -> float:
        done = training.train(bench, Plan({}), Draft(student), seconds=4.0, checkpoint=path, leg=1, seed=0)
        return several.quality(done.model, split=several.test)

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "FOLDED", replace(training.FOLDED, lr=1e-2))
        right = recovered(Path(folder) / "right")
        several.__dict__["divergence"] = Divergence("softmax")  # control: the wrong thing
        wrong = recovered(Path(folder) / "wrong")
    assert right > several.quality(split=several.test) - 4
    assert wrong < right - 5
