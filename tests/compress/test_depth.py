"""Dropping blocks: found by their skip, and exact when the block adds nothing."""

from __future__ import annotations

import pytest
import torch
from nets import TextEncoder, fingerprint, made
from torch import Tensor, nn

from equipoise.compress.blocks import drop, droppable
from equipoise.errors import InputError


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("option_a", ("layer1.0", "layer1.1", "layer2.1")),
        ("projection", ("3", "5")),
        ("cnn", ()),
        ("mlp", ()),
    ],
)
def test_blocks_with_an_identity_shortcut_are_found(name: str, blocks: tuple[str, ...]) -> None:
    model, inputs = made(name)
    before = fingerprint(model)
    assert droppable(model, inputs[:2]) == blocks
    assert fingerprint(model) == before


def test_encoder_layers_are_found_unless_the_stack_needs_them() -> None:
    model = TextEncoder(layers=3).eval()
    tokens = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    assert droppable(model, tokens) == ("encoder.layers.1", "encoder.layers.2")  # the stack reads attributes of its first layer
    with torch.no_grad():
        assert drop(model, ["encoder.layers.1"])(tokens).shape == (2, 3)


def test_a_block_that_adds_nothing_can_go_without_loss() -> None:
    model, inputs = made("projection")
    block = model.get_submodule("5")
    before = fingerprint(model)
    with torch.no_grad():
        changed = drop(model, ["5"])(inputs) - model(inputs)
        assert fingerprint(model) == before
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
        torch.testing.assert_close(drop(model, ["5"])(inputs), model(inputs))
    assert float(changed.abs().max()) > 1e-3


class Body(nn.Module):
    """A shape-keeping part with no shortcut of its own inside a block that has one: only the block may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.block = nn.ModuleDict({"body": nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))})
        self.inner = Residual()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def test_the_level_that_holds_the_skip_is_the_one_that_goes() -> None:
    assert droppable(Body(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0))) == ("inner",)


@pytest.mark.parametrize("name", ["layer9.0", "", "layer1.00"])
def test_unknown_blocks_are_named(name: str) -> None:
    with pytest.raises(InputError, match="block must be one of"):
        drop(made("option_a")[0], [name])
