"""Dropping blocks: found by their skip, and exact when the block adds nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import TextEncoder, fingerprint, made
from torch import Tensor, nn

from equipoise.compress.blocks import Block, Skip, drop, droppable
from equipoise.compress.builder import Builder
from equipoise.compress.prune import prune
from equipoise.compress.subject import Subject
from equipoise.errors import InputError
from equipoise.records import Plan


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
    assert tuple(droppable(model, inputs[:2])) == blocks
    assert fingerprint(model) == before


def test_encoder_layers_are_found_unless_the_stack_needs_them() -> None:
    model = TextEncoder(layers=3).eval()
    tokens = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    found = droppable(model, tokens)
    assert tuple(found) == ("encoder.layers.1", "encoder.layers.2")  # the stack reads attributes of its first layer
    with torch.no_grad():
        assert drop(model, [found["encoder.layers.1"]])(tokens).shape == (2, 3)


def test_a_block_that_adds_nothing_can_go_without_loss() -> None:
    model, inputs = made("projection")
    last, block = droppable(model, inputs[:2])["5"], model.get_submodule("5")
    before = fingerprint(model)
    with torch.no_grad():
        changed = drop(model, [last])(inputs) - model(inputs)
        assert fingerprint(model) == before
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
        torch.testing.assert_close(drop(model, [last])(inputs), model(inputs))
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
    assert tuple(droppable(Body(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))) == ("inner",)


@pytest.mark.parametrize("name", ["layer9.0", "", "layer1.00"])
def test_unknown_blocks_are_named(name: str) -> None:
    with pytest.raises(InputError, match="block must be one of"):
        drop(made("option_a")[0], [Block({name: Skip()}, ())])


class Branch(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))


class Before(nn.Module):
    """Normalises first: what a branch answers is added outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mix, self.wide = nn.LayerNorm(8), nn.LayerNorm(8), Branch(), Branch()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.wide(self.norm2(x))


class Merge(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(inputs, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        return self.norm(self.dense(x) + around)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.merge = nn.Linear(8, 12), Merge(12)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.merge(torch.tanh(self.into(x)), x), None


class After(nn.Module):
    """Normalises behind the sum; its second branch has no module of its own, and the first gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing, self.widen, self.narrow = Mixing(), nn.Sequential(nn.Linear(8, 12), nn.GELU()), Merge(12)

    def forward(self, x: Tensor) -> Tensor:
        seen, _ = self.mixing(x=x)
        return self.narrow(self.widen(seen), seen)


def stack(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), kind(), kind(), nn.Linear(8, 2)).eval(), torch.randn(6, 5)


PARTS = {
    Before: {"1.mix": ("1.norm1", "1.mix.0", "1.mix.2"), "1.wide": ("1.norm2", "1.wide.0", "1.wide.2")},
    After: {
        "1.mixing": ("1.mixing.into", "1.mixing.merge.dense", "1.mixing.merge.norm"),
        "1.narrow": ("1.widen.0", "1.narrow.dense", "1.narrow.norm"),
    },
}


@pytest.mark.parametrize("kind", [Before, After])
def test_each_branch_of_a_transformer_layer_can_go(kind: type[nn.Module]) -> None:
    model, x = stack(kind)
    found = droppable(model, x)
    wanted = {f"{place}{name[1:]}": {f"{place}{g[1:]}" for g in gone} for place in "12" for name, gone in PARTS[kind].items()}
    assert {name: set(block.gone) for name, block in found.items()} == wanted


@pytest.mark.parametrize(("kind", "name"), [(Before, "1.mix"), (Before, "1.wide"), (After, "1.mixing"), (After, "1.narrow")])
def test_what_is_gone_is_not_needed_and_the_rest_is_as_written(kind: type[nn.Module], name: str) -> None:
    model, x = stack(kind)
    block = droppable(model, x)[name]
    with torch.no_grad():
        without = drop(model, [block])
        answer = without(x)
        layer: Any = model[1]  # type: ignore[index]
        h = model[0](x)  # type: ignore[index]
        by_hand = {
            "1.mix": lambda: h + layer.wide(layer.norm2(h)),
            "1.wide": lambda: h + layer.mix(layer.norm1(h)),
            "1.mixing": lambda: layer.narrow(layer.widen(h), h),
            "1.narrow": lambda: layer.mixing(h)[0],
        }[name]()
        torch.testing.assert_close(answer, model[3](model[2](by_hand)))  # type: ignore[index]
        for owner in block.gone:
            for parameter in model.get_submodule(owner).parameters():
                parameter.fill_(float("nan"))
        torch.testing.assert_close(drop(model, [block])(x), answer)
    left = dict(without.named_modules())
    weighted = [owner for owner in block.gone if "norm" not in owner]
    assert not any(isinstance(left.get(owner), nn.Linear) for owner in weighted)


class Fixed(nn.Module):
    """Attention whose code writes its sizes out, as many people's does: a stand-in must give what the code counts on."""

    shape = (4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.wide = Branch()

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, 8))
        return x + self.wide(x)


class FixedConvs(nn.Module):
    """The same of a depthwise convolution between two of 1x1."""

    shape = (5, 4)

    def __init__(self) -> None:
        super().__init__()
        self.into, self.mix, self.out = nn.Conv1d(8, 12, 1), nn.Conv1d(12, 12, 3, padding=1, groups=12), nn.Conv1d(12, 8, 1)
        self.wide = nn.Sequential(nn.Conv1d(8, 12, 1), nn.GELU(), nn.Conv1d(12, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.mix(self.into(x).view(len(x), 12, -1))
        x = x + self.out(inner.view(len(x), 12, -1))
        return x + self.wide(x)


@pytest.mark.parametrize("kind", [Fixed, FixedConvs])
@pytest.mark.parametrize("blocks", [["1.out"], ["1.out", "2.out", "2.wide"]])
def test_a_block_goes_from_a_narrower_stream(kind: Any, blocks: list[str]) -> None:
    torch.manual_seed(3)
    ends = (nn.Linear(5, 8), nn.Linear(8, 2)) if kind is Fixed else (nn.Conv1d(5, 8, 1), nn.Conv1d(8, 2, 1))
    model, x = nn.Sequential(ends[0], kind(), kind(), ends[1]).eval(), torch.randn(6, *kind.shape)
    subject = Subject.prepare(model, x, x, likes=4)
    assert set(blocks) <= set(subject.blocks)
    plan = Plan({"width.0": 4, **{f"depth.{name}": "drop" for name in blocks}})
    built, alone = Builder(subject).build(plan).model, prune(model, x, blocks=blocks, widths={"0": 4}, round_to=1)
    with torch.no_grad():
        for small in (built, alone):
            assert small(x).shape == model(x).shape
            assert len(small[0].weight) == 4  # type: ignore[index, arg-type]


def test_a_part_that_feeds_more_than_the_sum_does_not_take_others_with_it() -> None:
    """The wide layer is read by a second head too: it is needed after the branch is gone, so too little would go."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.widen, self.narrow = nn.Linear(5, 8), nn.Linear(8, 12), Merge(12)
            self.head, self.other = nn.Linear(8, 2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            wide = torch.relu(self.widen(x))
            return self.head(self.narrow(wide, x)) + self.other(wide)

    assert droppable(Read(), torch.randn(2, 5, generator=torch.Generator().manual_seed(0))) == {}
