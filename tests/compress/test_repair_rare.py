"""Repair must not harm: what an input column hardly ever did on the calibration inputs must not decide a weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import made
from torch import Tensor, nn

from equipoise.compress import repair as repairing
from equipoise.compress.cut import sliced
from equipoise.compress.fold import fold
from equipoise.compress.graph import groups, keeping
from equipoise.compress.repair import RIDGE, repair, solve
from equipoise.compress.statistics import decomposed


def problem(*, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A layer near its target, and 400 rows of which column 5 moves in one alone, by a hundredth."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(400, 6, generator=generator)
    rows[:, 5] = 0.0
    rows[17, 5] = 0.01
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 6, generator=generator))
        target = layer(rows) + 0.1 * torch.randn(400, 3, generator=generator)
    return layer, rows, target


def closed_form(layer: nn.Linear, rows: Tensor, target: Tensor, *, second: bool) -> np.ndarray:
    """The weights that minimize |missing - x d|² + ridge · (d² x² + m d²/w²), by NumPy's least squares on stacked rows."""
    x, before = rows.double().numpy(), layer.weight.detach().double().numpy()
    x = x - x.mean(0)
    y = target.double().numpy()
    power = (x**2).sum(0)
    does = power * (before**2).mean(0)
    middle = np.sort(does)[(len(does) - 1) // 2]  # torch's median
    price = RIDGE * (power + (middle / (before**2).mean(0) if second else 0.0))
    stacked = np.concatenate([x, np.diag(np.sqrt(price))])
    missing = np.concatenate([y - y.mean(0) - x @ before.T, np.zeros((6, 3))])
    return before + np.linalg.lstsq(stacked, missing, rcond=None)[0].T


@pytest.mark.parametrize("seed", range(3))
def test_solve_is_its_closed_form(seed: int) -> None:
    layer, rows, target = problem(seed=seed)
    wanted, without = (closed_form(layer, rows, target, second=second) for second in (True, False))
    assert solve(layer, rows, target)
    np.testing.assert_allclose(layer.weight.detach().numpy(), wanted, atol=1e-4)
    assert np.abs(layer.weight.detach().numpy() - without).max() > 1  # the former ridge: the planted wrong answer


@pytest.mark.parametrize("seed", range(3))
def test_units_of_a_column_do_not_matter(seed: int) -> None:
    scale = torch.tensor([1e-3, 1e3, 1.0, 30.0, 0.1, 1e2])
    layer, rows, target = problem(seed=seed)
    other = nn.Linear(6, 3)
    with torch.no_grad():
        other.weight.copy_(layer.weight / scale)
        other.bias.copy_(layer.bias)
    solve(layer, rows, target)
    solve(other, rows * scale, target)
    torch.testing.assert_close(other.weight * scale, layer.weight, atol=1e-4, rtol=1e-4)


def test_a_column_that_moved_once_keeps_its_weight_and_the_others_are_fitted() -> None:
    layer, rows, target = problem()
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[:, 0] += 1.0  # what the data does decide
    solve(layer, rows, target)
    moved = (layer.weight.detach() - before).abs().amax(0)
    assert float(moved[5]) < 0.05
    assert float(moved[:5].max()) < 0.05


def test_dead_columns_do_not_take_the_guard_away() -> None:
    layer, rows, target = problem()
    wide = nn.Linear(30, 3)
    with torch.no_grad():
        wide.weight[:, :6], wide.bias[:] = layer.weight, layer.bias
    before = wide.weight.detach().clone()
    solve(wide, torch.cat([rows, torch.zeros(400, 24)], 1), target)
    assert float((wide.weight.detach() - before)[:, 5].abs().max()) < 0.05
    assert torch.equal(wide.weight.detach()[:, 6:], before[:, 6:])


class Rare(nn.Module):
    """A hidden unit that fires for few inputs, and a linear layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back, self.last = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.back(torch.relu(self.wide(x)))))  # type: ignore[no-any-return]


def rare(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The net, 256 inputs on which its last hidden unit fires once, weakly, and 2,000 on which it also fires for good."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Rare().eval()
    inputs, fresh = (torch.randn(n, 8, generator=generator) for n in (256, 2000))
    with torch.no_grad():
        towards = net.wide.weight[23] @ inputs.T
        net.wide.bias[23] = -towards[:200].max() + 0.003  # one of those that are fitted
    return net, inputs, fresh


def losses(seed: int) -> tuple[float, float]:
    """Squared error on fresh inputs, cut alone and repaired."""
    net, inputs, fresh = rare(seed)
    keep = keeping(net, groups(net, inputs[:2]), {"wide": [*range(20), 23]})
    cut = sliced(net, keep)
    mended = repairing.refit(
        cut, inputs, targets=repairing.collect(net, inputs).targets, kept={"wide": keep["wide", "out"]}, held=0.125
    )
    with torch.no_grad():
        exact = net(fresh)
        found = [float((model(fresh) - exact).square().mean()) for model in (cut, mended)]
    return found[0], found[1]


def test_the_former_ridge_harms_a_net_and_this_one_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [losses(seed) for seed in range(4)]
    monkeypatch.setattr(repairing, "decomposed", lambda moment, ridge, *, each: decomposed(moment, ridge))
    before = [losses(seed) for seed in range(4)]
    assert all(mended < 0.7 * cut for cut, mended in now), now
    assert any(mended > cut for cut, mended in before), before


@pytest.mark.parametrize("name", ["cnn", "option_a"])
def test_nothing_is_lost_where_every_channel_fires(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = made(name)
    teacher = fold(model, inputs[:2])
    found = [group for group in groups(teacher, inputs[:2]) if group.prunable and not group.coupled]
    keep = keeping(teacher, found, {group.name: range(0, group.size, 2) for group in found})
    cut = sliced(teacher, keep)

    def loss() -> float:
        kept = {layer: places for (layer, axis), places in keep.items() if axis == "out"}
        mended = repair(cut, teacher, inputs[: len(inputs) // 2], kept=kept)
        with torch.no_grad():
            rest = inputs[len(inputs) // 2 :]
            return float((mended(rest) - teacher(rest)).square().mean())

    now = loss()
    monkeypatch.setattr(repairing, "decomposed", lambda moment, ridge, *, each: decomposed(moment, ridge))
    assert now < 1.05 * loss()
