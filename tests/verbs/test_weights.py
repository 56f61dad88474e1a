"""eq.sparsify and eq.factorize in one line: what they promise of the copy, of training and of bad asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conv_net import conv_net, off
from torch import nn

import equipoise as eq
from equipoise.compress import statistics
from equipoise.compress.factorize import tucker
from equipoise.compress.rank import Rank
from equipoise.compress.subject import Subject
from equipoise.errors import InputError

INPUTS = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    return conv_net(INPUTS)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in model.named_parameters() if weight.ndim > 1}


def test_the_copy_is_sparse_and_repaired_and_the_model_is_not_touched() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare = eq.sparsify(model, INPUTS[:2], rate=0.75)
    best = eq.sparsify(model, INPUTS[:2], rate=0.75, criterion="obs", data=INPUTS)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for found in (bare, best):
        assert found.sparsity == pytest.approx(0.75, abs=1e-3)
        assert found.layers == pytest.approx(dict.fromkeys(("0", "3", "7"), 0.75), abs=1e-3)
        counted = zeros(found.model)
        assert sum(int(z.sum()) for z in counted.values()) / sum(z.numel() for z in counted.values()) == found.sparsity
        assert "neither faster" in found.notes[0]
    assert off(best.model, model, INPUTS) < 0.3 * off(bare.model, model, INPUTS)


def test_a_threshold_and_a_pattern() -> None:
    model = net()
    found = eq.sparsify(model, INPUTS[:2], threshold=0.1, layers=["3"])
    assert torch.equal(found.model[3].weight == 0, model[3].weight.abs() < 0.1)
    assert set(found.layers) == {"3"}
    found = eq.sparsify(model, INPUTS[:2], pattern="2:4", criterion="activation", data=INPUTS)
    assert found.layers == {"3": 0.5, "7": 0.5}
    assert "no multiple of 4" in found.left["0"]
    assert bool(((found.model[7].weight != 0).view(-1, 4).sum(1) == 2).all())


def test_precision_is_given_back() -> None:
    found = eq.sparsify(net().double(), INPUTS[:2].double(), rate=0.5, criterion="obs", data=INPUTS.double())
    assert {p.dtype for p in found.model.parameters()} == {torch.float64}
    assert found.sparsity == pytest.approx(0.5, abs=1e-3)


def test_steps_train_on_the_way_with_the_zeros_held() -> None:
    model, seen = net(), []

    def learn(made: nn.Module) -> nn.Module:
        masks = zeros(made)
        taught = eq.distill(made, model, INPUTS, steps=20, hold="zeros", lr=3e-3)
        assert all(bool((zeros(taught)[name] >= mask).all()) for name, mask in masks.items())  # none came back
        free = eq.distill(made, model, INPUTS, steps=2, lr=3e-3)
        assert any(not bool((zeros(free)[name] >= mask).all()) for name, mask in masks.items())  # they would have
        seen.append(sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values()))
        return taught

    found = eq.sparsify(model, INPUTS[:2], rate=0.8, steps=3, train=learn)
    assert seen == pytest.approx([0.8 * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)], abs=2e-3)
    assert found.sparsity == pytest.approx(0.8, abs=1e-3)
    assert off(found.model, model, INPUTS) < 0.5 * off(eq.sparsify(model, INPUTS[:2], rate=0.8).model, model, INPUTS)


def test_training_that_does_not_hold_them_is_masked_after() -> None:
    def learn(made: nn.Module) -> None:
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.01)

    assert eq.sparsify(net(), INPUTS[:2], rate=0.5, train=learn).sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rate, threshold or pattern must be given"),
        ({"rate": 0.5, "pattern": "2:4"}, "one of them"),
        ({"rate": 1.0}, r"rate must be .* \[0, 1\)"),
        ({"threshold": -1.0}, "above 0"),
        ({"threshold": 0.1, "criterion": "obs", "data": INPUTS}, "criterion must be 'magnitude' with a threshold"),
        ({"pattern": "4:2"}, "n:m"),
        ({"pattern": "half"}, "rate=0.5"),
        ({"rate": 0.5, "scope": "all"}, "scope"),
        ({"rate": 0.5, "criterion": "wanda"}, "criterion"),
        ({"rate": 0.5, "criterion": "obs"}, "data must be"),
        ({"rate": 0.5, "layers": ["nine"]}, "layer"),
        ({"rate": 0.5, "steps": 3}, "train must be given"),
        ({"pattern": "2:4", "steps": 3, "train": lambda m: m}, "steps must be 1"),
        ({"rate": 0.5, "train": lambda m: nn.Linear(2, 2)}, "train must be a function that returns the model"),
    ],
)
def test_bad_asks_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eq.sparsify(net(), INPUTS[:2], **options)


def test_what_cannot_be_held_is_told() -> None:
    model = net()
    for hold, message in (("zeros", "a model with zeros"), ("shared", "at most 256 values"), ("masks", "hold")):
        with pytest.raises(InputError, match=message):
            eq.distill(model, model, INPUTS, steps=1, hold=hold)


def held(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_factorize_keeps_what_is_asked_and_repairs() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare, best = (
        eq.factorize(model, INPUTS[:2], ratio=0.6, data=INPUTS, round_to=1, layers=["3"], repair=repair)
        for repair in (False, True)
    )
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert held(bare[3]) < 0.45 * held(model[3])
    assert off(best, model, INPUTS) < 0.8 * off(bare, model, INPUTS)
    assert off(eq.factorize(model, INPUTS[:2], energy=0.99, data=INPUTS, round_to=1), model, INPUTS) < 0.02
    halves = eq.factorize(model, INPUTS[:2], rank=4, data=INPUTS)
    assert [tuple(part.kernel_size) for part in halves[3]] == [(3, 1), (1, 3)]
    core = eq.factorize(model, INPUTS[:2], rank={"3": (4, 6)}, data=INPUTS)
    assert [tuple(part.weight.shape[:2]) for part in core[3]] == [(4, 16), (6, 4), (16, 6)]
    assert isinstance(core[7], nn.Linear)
    assert [len(part) for part in eq.factorize(model, INPUTS[:2], rank=4, form="tucker", layers=["3"])[3:4]] == [3]


def test_what_would_not_pay_is_left_and_told() -> None:
    with pytest.warns(UserWarning, match="nothing was factorized"):
        assert off(eq.factorize(net(), INPUTS[:2], rank=64, data=INPUTS), net(), INPUTS) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rank, energy or ratio must be given"),
        ({"rank": 4, "ratio": 0.5}, "one of them"),
        ({"ratio": 1.0}, r"ratio must be a share in \(0, 1\)"),
        ({"energy": 0.0}, "energy"),
        ({"rank": 0}, "at least 1"),
        ({"rank": 4, "form": "cp"}, "form"),
        ({"rank": {"nine": 4}}, "layer"),
        ({"rank": {"3": 400}}, r"in \[1, 48\]"),
        ({"rank": {"3": 4}, "form": "tucker"}, "Two numbers ask for Tucker"),
        ({"ratio": 0.5, "round_to": 0}, "round_to"),
        ({"ratio": 0.5, "layers": ["1"]}, "layer"),
    ],
)
def test_bad_asks_of_factorize_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eq.factorize(net(), INPUTS[:2], **options)


def test_a_layer_too_wide_for_its_second_moment_is_factorized_all_the_same() -> None:
    wide = statistics.WIDEST + 8
    model, x = nn.Sequential(nn.Linear(wide, 24), nn.ReLU(), nn.Linear(24, 4)).eval(), torch.randn(6, wide)
    made = eq.factorize(model, x, rank=8, layers=["0"], repair=False)
    assert [tuple(part.weight.shape) for part in made[0]] == [(8, wide), (24, 8)]
    whole, values = model[0].weight.detach().double(), torch.linalg.svdvals(model[0].weight.detach().double())
    product = (made[0][1].weight @ made[0][0].weight).detach().double()
    torch.testing.assert_close((product - whole).square().sum(), values[8:].square().sum(), rtol=1e-3, atol=0)
    for options in ({"energy": 0.3}, {"ratio": 0.8}):
        assert held(eq.factorize(model, x, layers=["0"], repair=False, **options)) < held(model)
    assert [o.place for o in Rank().offers(Subject.prepare(model, x[:2], x)) if o.place == "0"] == []


def test_a_kernel_too_wide_for_its_second_moment_has_a_core() -> None:
    channels = statistics.WIDEST // 9 + 8
    model, x = nn.Sequential(nn.Conv2d(channels, 16, 3, bias=False)).eval(), torch.randn(2, channels, 4, 4)
    made = eq.factorize(model, x, rank={"0": (16, 12)}, repair=False)
    assert [tuple(part.weight.shape[:2]) for part in made[0]] == [(16, channels), (12, 16), (16, 12)]
    with torch.no_grad():
        torch.testing.assert_close(tucker(model[0], (144, 16), None)(x), model(x), rtol=1e-3, atol=1e-4)
