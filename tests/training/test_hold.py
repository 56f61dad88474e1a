"""What training keeps of weights: read off the model, kept through unfolded BatchNorm and an average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.training import Samples
from equipoise.training.distribution.base import OneProcess
from equipoise.training.hold import holding
from equipoise.training.normalize import refold, unfold
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill
from equipoise.workloads.divergence import Divergence

SOURCE = torch.Generator().manual_seed(0)
INPUTS = torch.randn(96, 3, 6, 6, generator=SOURCE)
DATA = Samples(INPUTS, torch.zeros(96, dtype=torch.long))


def net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()


def masked(seed: int) -> nn.Sequential:
    model = net(seed)
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < model[0].weight.abs().median()] = 0
    return model


@pytest.mark.parametrize(
    "recipe", [Recipe(batch=32), Recipe(batch=32, optimizer="sgd", lr=0.05, ema=0.9)], ids=["adamw", "ema"]
)
@pytest.mark.parametrize("hold", ["zeros", None])
def test_zeros_stay_through_batchnorm_that_is_put_back(hold: str | None, recipe: Recipe) -> None:
    student, teacher = masked(0), net(1)
    zeros = student[0].weight == 0
    done = distill(
        unfold(student, [INPUTS]),
        teacher,
        DATA,
        steps=8,
        recipe=recipe,
        divergence=Divergence("softmax"),
        hold=hold,  # type: ignore[arg-type]
    )
    taught = refold(done.model)[0]
    assert bool((taught.weight[zeros] == 0).all()) == (hold == "zeros")
    assert not torch.allclose(taught.weight, student[0].weight)


def test_a_shared_value_moves_as_the_mean_of_its_weights_and_zero_stays() -> None:
    model = nn.Linear(4, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 1, 2, 0], [2, 2, 0, 1]])
    put_back = holding(model, "shared")
    assert put_back is not None
    model.weight.data += torch.tensor([[0.3, 0, 1, 5], [2, 0, 5, 0]])
    put_back(model)
    torch.testing.assert_close(model.weight.data, torch.tensor([[1.1, 1.1, 3, 0], [3, 3, 0, 1.1]]))


def test_where_nothing_is_to_be_kept_nothing_is_done() -> None:
    assert holding(net(0), None) is None
    with pytest.raises(InputError, match=r"eq\.sparsify"):
        holding(net(0), "zeros")


def test_spread_weights_are_refused() -> None:
    class Elsewhere:
        def __init__(self) -> None:
            self.one = OneProcess()

        def __getattr__(self, name: str) -> object:
            return getattr(self.one, name)

    with pytest.raises(InputError, match="spread or offloaded"):
        distill(
            masked(0),
            net(1),
            DATA,
            steps=1,
            divergence=Divergence("softmax"),
            hold="zeros",
            distribution=Elsewhere(),  # type: ignore[arg-type]
        )
