"""The last layer on frozen features: against another library's optimum, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from equipoise.training import Samples, frozen
from equipoise.training.frozen import Fitted, fit_head, read_fitted
from equipoise.training.progress import Progress

CLASSES = 3


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 16, CLASSES)
        )
    made[1].running_mean.fill_(0.1)
    return made.train()


@pytest.fixture(scope="module")
def data() -> tuple[Samples, Samples]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(260, 1, 6, 6, generator=draw)
    y = (x[:, 0, :2].sum((1, 2)) > 0).long() + (x[:, 0, 4:].sum((1, 2)) > 0).long()
    flip = torch.rand(len(y), generator=draw) < 0.1
    y = torch.where(flip, 0, y)
    return Samples(x[:200], y[:200]), Samples(x[200:], y[200:])


def fitted(data: tuple[Samples, Samples], **options: object) -> Fitted:
    return fit_head(net(), "5", *data, loss=nn.functional.cross_entropy, **options)  # type: ignore[arg-type]


def test_it_is_the_optimum_of_logistic_regression(data: tuple[Samples, Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "PENALTIES", (0.1,))
    found = fitted(data)
    train = data[0]
    with torch.no_grad():
        features = net().eval()[:5](train.inputs)
    scale = float(features.var(0, correction=0).mean())
    ours = found.model[5].weight.detach().numpy()  # type: ignore[index]

    def theirs(penalty: float) -> np.ndarray:
        strength = 1 / (penalty * scale * len(train))
        return LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(features.numpy(), train.targets.numpy()).coef_

    assert np.abs(ours - theirs(0.1)).max() < 0.02 * np.abs(ours).max()
    assert np.abs(ours - theirs(0.2)).max() > 0.05 * np.abs(ours).max()  # control: another penalty


def test_nothing_else_moves(data: tuple[Samples, Samples]) -> None:
    before = net()
    found = fit_head(before, "5", *data, loss=nn.functional.cross_entropy)
    for name, value in found.model.state_dict().items():
        same = torch.equal(value, before.state_dict()[name])
        assert same is not name.startswith("5."), name  # BatchNorm's statistics too; the last layer alone is another
    assert all(map(torch.equal, before.state_dict().values(), net().state_dict().values()))
    assert before.training
    with torch.no_grad():
        before(data[0].inputs)
    assert not torch.equal(before[1].running_mean, found.model[1].running_mean)  # control: training mode would move them
    assert not any(module._forward_pre_hooks for module in found.model.modules())


def test_the_penalty_is_that_of_the_least_validation_loss(
    data: tuple[Samples, Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(data)
    alone = []
    for penalty in frozen.PENALTIES:
        with monkeypatch.context() as patch:
            patch.setattr(frozen, "PENALTIES", (penalty,))
            alone.append(fitted(data).point.validation_loss)
    assert found.point.validation_loss == pytest.approx(min(alone), rel=1e-3)
    assert max(alone) > 1.05 * min(alone)  # it matters
    with torch.no_grad():
        again = float(nn.functional.cross_entropy(found.model(data[1].inputs), data[1].targets))
    assert found.point.validation_loss == pytest.approx(again, rel=1e-5)


def test_short_of_time_fewer_samples_are_read(data: tuple[Samples, Samples]) -> None:
    told: list[Progress] = []
    assert fitted(data, on_step=told.append).samples == 200
    assert [p.fraction for p in told] == sorted(p.fraction for p in told)
    assert told[-1].fraction == 1
    assert "100 % of the samples read" in str(told[-1])
    short = fitted(data, seconds=1e-9)
    assert short.samples == frozen.BATCH
    assert short.point.validation_loss != fitted(data).point.validation_loss


def test_written_and_read_again(data: tuple[Samples, Samples], tmp_path: Path) -> None:
    found = fitted(data)
    (tmp_path / "f").write_bytes(found.packed("5"))
    again = read_fitted(net(), "5", tmp_path / "f")
    assert again is not None
    assert again.point == found.point
    assert all(map(torch.equal, again.model.state_dict().values(), found.model.state_dict().values()))
    (tmp_path / "f").write_bytes(found.packed("5")[:-9])
    assert read_fitted(net(), "5", tmp_path / "f") is None
    assert read_fitted(net(), "5", tmp_path / "none") is None
