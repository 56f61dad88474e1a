"""Several heads on one trunk."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import classes, mlp, seeded

from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, fit
from equipoise.training.multitask import Head, MultiTask

POINTS = classes()
VALUES = POINTS.inputs[:, 2:] * 10
DATA = Samples(POINTS.inputs, torch.cat([POINTS.targets[:, None].float(), VALUES], dim=1))
RECIPE = Recipe(batch=64, lr=0.02)


def model(*, learn_weights: bool = False, weight: float = 1.0) -> MultiTask:
    heads = {"kind": Head(nn.Linear(8, 3), 3), "where": Head(nn.Linear(8, 2), 2, labels=False, weight=weight)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for head in heads.values():
            head.module.reset_parameters()  # type: ignore[operator]
    return MultiTask(mlp(outputs=8), heads, learn_weights=learn_weights)


def parts(net: MultiTask) -> tuple[float, float]:
    with torch.no_grad():
        found = net.split(net.eval()(DATA.inputs))
    return F.cross_entropy(found["kind"], POINTS.targets).item(), F.mse_loss(found["where"], VALUES).item()


def test_loss_is_the_weighted_sum() -> None:
    net = model(weight=0.25)
    kind, where = parts(net)
    assert net.loss(net(DATA.inputs), DATA.targets).item() == pytest.approx(kind + 0.25 * where, rel=1e-5)
    assert net.loss(net(DATA.inputs), DATA.targets).item() != pytest.approx(kind + where, rel=1e-3)  # control


def test_learned_weights_by_the_formula() -> None:
    net = model(learn_weights=True)
    with torch.no_grad():
        net.log_variance.copy_(torch.tensor([0.3, 2.0]))  # type: ignore[union-attr]
    kind, where = parts(net)
    expected = math.exp(-0.3) * kind + 0.15 + 0.5 * math.exp(-2) * where + 1
    assert net.train().loss(net(DATA.inputs), DATA.targets).item() == pytest.approx(expected, rel=1e-5)
    assert net.eval().loss(net(DATA.inputs), DATA.targets).item() == pytest.approx(kind + where, rel=1e-5)


def test_fit_trains_both_tasks_and_their_weights() -> None:
    start = model(learn_weights=True)
    done = fit(start, DATA, loss=start.loss, steps=300, recipe=RECIPE, validation=DATA, evaluate_steps=150)
    net = done.model
    assert isinstance(net, MultiTask)
    for now, before in zip(parts(net), parts(start), strict=True):
        assert now < 0.6 * before
    values = net.log_variance
    assert values is not None
    assert values[1] > values[0]  # the loss of the values is far larger, so its variance is
    assert torch.equal(start.log_variance, torch.zeros(2))  # type: ignore[arg-type]
    assert done.curve[-1].validation_loss == pytest.approx(sum(parts(net)), rel=1e-4)


def test_best_variance_is_the_loss_itself() -> None:
    """Second oracle: with the outputs held fixed, L / (2 v) + log(v) / 2 is least at v = L."""
    log_variance = torch.zeros(1, requires_grad=True)
    net = MultiTask(nn.Identity(), {"a": Head(nn.Identity(), 4, labels=False)}, learn_weights=True)
    optimizer = torch.optim.SGD([log_variance], lr=0.5)
    outputs, targets = torch.zeros(5, 4), torch.full((5, 4), 3.0)
    for _ in range(200):
        optimizer.zero_grad()
        net.loss(torch.cat([outputs, log_variance.expand(5, 1)], dim=1), targets).backward()
        optimizer.step()
    assert log_variance.exp().item() == pytest.approx(9, rel=1e-3)


def test_bad_targets_and_tasks_are_told() -> None:
    net = model()
    with pytest.raises(InputError, match=r"of shape \(N, 3\)"):
        net.loss(net(DATA.inputs), DATA.targets[:, :2])
    with pytest.raises(InputError, match="task must be one of"):
        net.targets_of("size", DATA.targets)
    with pytest.raises(InputError, match="heads must be"):
        MultiTask(mlp(), {})
    generator = seeded()
    assert torch.equal(net.targets_of("kind", DATA.targets), POINTS.targets)
    assert torch.equal(net.targets_of("where", DATA.targets), VALUES)
    assert torch.randn(1, generator=generator).shape == (1,)
