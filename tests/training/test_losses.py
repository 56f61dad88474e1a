"""Losses against scipy, torch and closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import nn
from toys import mlp, seeded

from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, fit
from equipoise.training.losses import LOSSES, critic, cross_entropy, loss_of, mse, smoothed, wasserstein

LOGITS = torch.randn(6, 5, generator=seeded())


def test_wasserstein_is_scipys() -> None:
    grades = range(5)
    p = LOGITS.double().softmax(1)
    q = torch.randn(6, 5, generator=seeded(1)).double().softmax(1)
    theirs = [wasserstein_distance(grades, grades, a.numpy(), b.numpy()) for a, b in zip(p, q, strict=True)]
    assert float(wasserstein(LOGITS.double(), q)) == pytest.approx(sum(theirs) / 6)
    labels = torch.tensor([0, 4, 2, 1, 3, 3])
    theirs = [wasserstein_distance(grades, [int(k)], a.numpy()) for a, k in zip(p, labels, strict=True)]
    assert float(wasserstein(LOGITS.double(), labels)) == pytest.approx(sum(theirs) / 6)
    assert float(wasserstein(LOGITS.double(), labels.flip(0))) != pytest.approx(sum(theirs) / 6)  # control


def test_wasserstein_counts_how_far_off_an_answer_is() -> None:
    sure = 50 * F.one_hot(torch.tensor([0]), 5).float()
    assert [float(wasserstein(sure, torch.tensor([k]))) for k in range(5)] == pytest.approx([0, 1, 2, 3, 4])
    with pytest.raises(InputError, match="targets must be labels"):
        wasserstein(LOGITS, torch.rand(6, 4))


def test_wasserstein_trains_ordered_classes() -> None:
    inputs = torch.randn(256, 4, generator=seeded(2))
    data = Samples(inputs, (inputs[:, 0] * 1.5 + 2).round().clamp(0, 4).long())
    done = fit(mlp(outputs=5), data, loss=loss_of("wasserstein"), steps=150, recipe=Recipe(batch=64, lr=0.02))
    assert done.log[-1] < 0.3 * done.log[0]


def test_critic_of_a_straight_line_by_hand() -> None:
    """The slope of w x is |w| everywhere."""
    line = nn.Linear(2, 1)
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[3.0, 4.0]]))
    real, made = torch.randn(8, 2, generator=seeded()), torch.randn(8, 2, generator=seeded(1)) + 1
    expected = float((made.mean(0) - real.mean(0)) @ torch.tensor([3.0, 4.0])) + 10 * (5 - 1) ** 2
    assert critic(line, real, made, generator=seeded()).item() == pytest.approx(expected, rel=1e-5)
    assert critic(line, real, made, generator=seeded(), penalty=0).item() == pytest.approx(expected - 160, abs=1e-4)


def test_trained_critic_finds_the_distance() -> None:
    """Two clouds of one shape 2 apart: the earth is moved by 2."""
    source = seeded()
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=source))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(300):
        real = torch.randn(64, 1, generator=source)
        optimizer.zero_grad()
        critic(net, real, torch.randn(64, 1, generator=source) + 2, generator=source, penalty=10).backward()
        optimizer.step()
    points = torch.linspace(-2, 2, 401)[:, None]
    with torch.no_grad():
        distance = float((net(points) - net(points + 2)).mean())
    assert distance == pytest.approx(2, rel=0.15)


def test_smoothing_is_torchs_also_for_one_logit_and_ignored_labels() -> None:
    labels = torch.tensor([0, 4, -100, 1, 3, 3])
    for share in (0.1, 0.5):
        found = smoothed(F.cross_entropy, share)(LOGITS, labels)
        assert float(found) == pytest.approx(float(F.cross_entropy(LOGITS, labels, label_smoothing=share)))
    tokens, words = torch.randn(2, 7, 3, generator=seeded()), torch.randint(7, (2, 3), generator=seeded())
    expected = F.cross_entropy(tokens, words, label_smoothing=0.2)
    assert float(smoothed(cross_entropy, 0.2)(tokens, words)) == pytest.approx(float(expected))
    one, yes = LOGITS[:, :1], torch.tensor([0, 1, 1, 0, 1, 0])
    both = F.cross_entropy(torch.cat([torch.zeros_like(one), one], 1), yes, label_smoothing=0.2)
    assert float(smoothed(cross_entropy, 0.2)(one, yes)) == pytest.approx(float(both))


def test_mse_broadcasts_nothing() -> None:
    outputs, targets = torch.arange(3.0)[:, None], torch.tensor([0.0, 1.0, 4.0])
    assert float(mse(outputs, targets)) == pytest.approx(4 / 3)
    with pytest.warns(UserWarning, match="broadcast"):
        assert float(F.mse_loss(outputs, targets)) != pytest.approx(4 / 3)  # control: what torch makes of it


def test_names() -> None:
    assert {loss_of(name) for name in LOSSES} == set(LOSSES.values())
    assert loss_of(F.l1_loss) is F.l1_loss
    with pytest.raises(InputError, match="Did you mean 'wasserstein'"):
        loss_of("waserstein")
