"""Beginning from a trained model: heads, frozen layers, rates by depth, layers set free one by one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import classes, mlp, same_weights, seeded

from equipoise.errors import InputError
from equipoise.training import Recipe, fit
from equipoise.training.blocks import blocks
from equipoise.training.transfer import discriminative, freeze, stages, unfreezing, with_head

DATA = classes()
RECIPE = Recipe(batch=64, optimizer="sgd", lr=0.1)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def resnet() -> nn.Sequential:
    layers = {f"layer{i}": nn.Sequential(Residual(4), Residual(4)) for i in (1, 2)}
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(*layers.values()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def test_blocks_are_the_residual_ones() -> None:
    assert blocks(resnet()) == ["2.0.0", "2.0.1", "2.1.0", "2.1.1"]
    assert blocks(mlp()) == ["0", "1"]
    assert blocks(nn.Sequential(nn.Linear(3, 3), nn.ReLU())) == []


def test_stages_are_stem_blocks_and_head() -> None:
    model = resnet()
    found = stages(model)
    heads = [names[0] for names in found]
    assert heads == ["0.weight", *(f"2.{i}.{j}.conv1.weight" for i in (0, 1) for j in (0, 1)), "5.weight"]
    assert [name for names in found for name in names] == [name for name, _ in model.named_parameters()]
    assert found[0] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_frozen_layers_do_not_move_nor_do_their_statistics() -> None:
    model = mlp(norm=True)
    half = freeze(model, ["0"])
    done = fit(half, DATA, loss=F.cross_entropy, steps=5, recipe=RECIPE)
    assert same_weights(done.model[0], model[0])
    assert not torch.equal(done.model[1][0].weight, model[1][0].weight)
    assert not torch.equal(done.model[1][1].running_mean, model[1][1].running_mean)  # control
    assert all(p.requires_grad for p in model.parameters())
    one = freeze(model, ["0.0.weight"])
    assert [name for name, p in one.named_parameters() if not p.requires_grad] == ["0.0.weight"]
    with pytest.raises(InputError, match="frozen layer must be one of"):
        freeze(model, ["zero"])


def test_new_head_alone_is_new() -> None:
    model = mlp()
    found = with_head(model, 7, generator=seeded())
    assert found(DATA.inputs).shape == (256, 7)
    assert same_weights(found[:2], model[:2])
    assert found[2].out_features == 7
    assert not torch.equal(found[2].weight[:3], model[2].weight)
    assert found[2].weight.abs().max() <= 1 / math.sqrt(16)  # the bound of torch's own layers
    assert same_weights(found, with_head(model, 7, generator=seeded()))
    assert not same_weights(found, with_head(model, 7, generator=seeded(1)))
    assert with_head(resnet(), 9, name="0", generator=seeded())[0].weight.shape == (9, 3, 3, 3)
    with pytest.raises(InputError, match="head must be one of"):
        with_head(model, 7, name="9", generator=seeded())
    with pytest.raises(InputError, match="Name the layer"):
        with_head(nn.ReLU(), 7, generator=seeded())


def test_a_new_head_has_the_same_weights_wherever_the_model_lies() -> None:
    here, there = seeded(), seeded()
    with_head(mlp(), 7, generator=here)
    found = with_head(mlp().to("meta"), 7, generator=there)
    assert found[2].weight.device.type == "meta"
    assert found[2].bias.device.type == "meta"
    assert torch.equal(here.get_state(), there.get_state())  # as many numbers were drawn


def test_transfer_learns_faster_than_a_fresh_start() -> None:
    """The same problem with its classes renamed: the trunk is of use."""
    renamed = replace(DATA, targets=(DATA.targets + 1) % 3)
    trunk = fit(mlp(), DATA, loss=F.cross_entropy, steps=200, recipe=RECIPE).model
    losses = [
        fit(freeze(with_head(start, 3, generator=seeded()), ["0", "1"]), renamed, loss=F.cross_entropy, steps=30, recipe=RECIPE)
        for start in (trunk, mlp())
    ]
    assert losses[0].log[-1] < 0.7 * losses[1].log[-1]


def test_rates_fall_with_the_depth() -> None:
    rates = discriminative(mlp(), 0.5)
    assert rates == {
        **dict.fromkeys(("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"), 0.25),
        **dict.fromkeys(("1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"), 0.5),
        "2.weight": 1.0,
        "2.bias": 1.0,
    }
    with pytest.raises(InputError, match="factor must be"):
        discriminative(mlp(), 2.6)


def trained_at(order: str, *, start: nn.Module | None = None) -> list[set[str]]:
    """Which top modules move in each of ten steps."""
    model = start or mlp(norm=True)
    hook = unfreezing(model, order=order, until=0.6)  # type: ignore[arg-type]
    states: list[nn.Module] = []

    def watch(placed: nn.Module, fraction: float) -> None:
        states.append(copy.deepcopy(placed))
        hook(placed, fraction)

    states.append(fit(model, DATA, loss=F.cross_entropy, steps=10, recipe=RECIPE, before_step=watch).model)
    return [{part for part in "012" if not same_weights(one[int(part)], two[int(part)])} for one, two in pairwise(states)]


def test_gradual_unfreezing_goes_from_the_head_to_the_input() -> None:
    assert trained_at("gradual") == [{"2"}] * 3 + [{"1", "2"}] * 3 + [{"0", "1", "2"}] * 4


def test_greedy_training_goes_block_by_block() -> None:
    assert trained_at("greedy") == [{"0", "2"}] * 3 + [{"1", "2"}] * 3 + [{"0", "1", "2"}] * 4


def test_what_was_frozen_stays_frozen() -> None:
    assert trained_at("gradual", start=freeze(mlp(norm=True), ["0"]))[-1] == {"1", "2"}
    with pytest.raises(InputError, match="until must be"):
        unfreezing(mlp(), until=0)
    with pytest.raises(InputError, match="order must be one of"):
        unfreezing(mlp(), order="random")  # type: ignore[arg-type]


def test_layer_wise_training_learns() -> None:
    model = mlp(norm=True)
    done = fit(
        model, DATA, loss=F.cross_entropy, steps=120, recipe=RECIPE, before_step=unfreezing(model, order="greedy", until=1)
    )
    assert done.log[-1] < 0.3 * done.log[0]


def test_a_hook_serves_the_next_run_as_it_did_the_first() -> None:
    model = mlp()
    hook = unfreezing(model, until=1)
    free = []
    for _ in range(2):
        placed = copy.deepcopy(model)
        hook(placed, 0.0)
        free.append([name for name, parameter in placed.named_parameters() if parameter.requires_grad])
    assert free[0] == free[1]
    assert len(free[0]) < len(list(model.parameters()))


def test_a_transposed_layer_is_no_head() -> None:
    up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 2))
    with pytest.raises(InputError, match="head"):
        with_head(up, 5, name="1", generator=torch.Generator())
    half = with_head(nn.Sequential(nn.Linear(3, 4)).bfloat16(), 5, generator=torch.Generator())
    assert half[0].weight.dtype == torch.bfloat16  # type: ignore[union-attr, index]
