"""Fisher information of a gate against one backward pass for each sample, and what a real difference says of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import made
from torch import Tensor, nn

from equipoise.compress.criteria import CRITERIA, gather, ranking
from equipoise.compress.graph import groups
from equipoise.compress.information import information

SOURCE = torch.Generator().manual_seed(0)


def plain() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 16, 4),
    )
    return model.eval(), torch.randn(12, 3, 4, 4, generator=SOURCE)


def loss_of(targets: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda out: F.cross_entropy(out, targets)


@pytest.mark.parametrize(("group", "place", "size"), [("0", 2, 6), ("3", 4, 5)])
def test_it_is_the_square_of_each_samples_slope(group: str, place: int, size: int) -> None:
    model, inputs = plain()
    targets = torch.arange(12) % 4
    chosen = [found for found in groups(model, inputs[:2]) if found.name == group]
    found = information(model, chosen, inputs, loss_of(targets))[group]
    slow = torch.zeros(size)
    together = torch.zeros(size)
    for n in range(12):
        gate = torch.ones(size, 1, 1, requires_grad=True)
        handle = model[place].register_forward_hook(lambda _m, _x, out, gate=gate: out * gate)
        value = F.cross_entropy(model(inputs[n : n + 1]), targets[n : n + 1]) / 12
        handle.remove()
        (slope,) = torch.autograd.grad(value, gate)
        slow += slope.flatten().square()
        together += slope.flatten()
    torch.testing.assert_close(found.float(), slow, rtol=1e-4, atol=1e-9)
    wrong = together.square()  # the planted wrong answer: the square of the mean slope, which is Taylor's
    assert not torch.allclose(found.float(), wrong, rtol=0.2)


def test_a_channel_that_nothing_depends_on_goes_first() -> None:
    model, inputs = plain()
    with torch.no_grad():
        model[3].weight[:, 2] = 0
        model[0].weight[2] *= 100  # the largest weights, for nothing
    (group,) = [found for found in groups(model, inputs[:2]) if found.name == "0"]
    for criterion, first in (("fisher", 2), ("l2", None)):
        evidence = gather(model, [group], criterion=criterion, data=inputs, loss=loss_of(torch.arange(12) % 4))
        last = ranking(group, criterion, evidence)[-1]
        assert (last == 2) == (first == 2)


def test_coupled_and_depthwise_groups_are_judged_by_their_dense_readers() -> None:
    for name in ("projection", "mobile"):
        model, inputs = made(name)
        chosen = [group for group in groups(model, inputs[:2]) if group.prunable]
        found = information(model, chosen, inputs, lambda out: out.square().mean())
        assert found.keys() == {group.name for group in chosen}
        assert all(len(found[group.name]) == group.size and bool(found[group.name].isfinite().all()) for group in chosen)


def test_magnitude_is_another_name_for_the_norm() -> None:
    assert CRITERIA["magnitude"] is CRITERIA["l2"]
