"""Suffix evaluation against whole forward passes, on models that are easy and hard to divide."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from nets import Stubborn, TextEncoder, from_timm, made
from torch import Tensor, nn

from equipoise.compress.fold import fold
from equipoise.compress.suffix import Suffixes
from equipoise.compress.trace import WEIGHTED, Invocation


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Mixed(nn.Module):
    """A skip over several layers, work in place, a branch on the data, a size read off the input, attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.leave = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, places = x.shape[0], x.size(1)
        entered = torch.relu_(self.enter(x))
        shift = self.scale.to(x.dtype)
        q, k, v = self.qkv(entered).view(rows, places, 3, 4, 4).permute(2, 0, 3, 1, 4)
        attended = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        mixed = self.out(attended.transpose(1, 2).reshape(rows, places, -1))
        mixed += entered
        if float(mixed.mean()) > 1e9:
            mixed = mixed * 0
        mixed.mul_(shift)
        return self.leave(mixed.mean(1)) + entered[:, 0, :3]


def case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "Mixed":
        return Mixed().eval(), torch.randn(10, 5, 6)
    if name == "Stubborn":
        return Stubborn().eval(), torch.randn(10, 3, 8, 8)
    if name == "TextEncoder":
        return TextEncoder().eval(), torch.randint(0, 20, (10, 7))
    if name == "efficientnet":
        return fold(from_timm("efficientnet_lite0").eval(), x := torch.randn(4, 3, 64, 64)), x
    if name == "vit":
        return from_timm("vit_tiny_patch16_224", img_size=64).eval(), torch.randn(4, 3, 64, 64)
    model, inputs = made(name)
    return fold(model, inputs[:4]), inputs[:10]


CASES = ("Mixed", "TextEncoder", "option_a", "projection", "mobile", "cnn", "Stubborn", "efficientnet", "vit")


def changed(model: nn.Module, layer: str) -> nn.Module:
    other = copy.deepcopy(model)
    other.get_submodule(layer).weight.mul_(0.5)
    return other


@pytest.mark.parametrize("name", CASES)
def test_a_suffix_gives_what_the_whole_model_gives(name: str) -> None:
    model, inputs = case(name)
    suffixes = Suffixes(model, inputs, step=4)
    layers = [layer for layer, part in model.named_modules() if isinstance(part, WEIGHTED)]
    assert len(suffixes.seams) >= len(layers) // 2
    untouched = model(inputs[:4])
    for layer in layers[:: max(1, len(layers) // 8)]:  # some of a large model's
        other = changed(model, layer)
        for batch, rows in enumerate(suffixes.batches):
            found = suffixes.run(other, [layer], batch=batch)
            assert torch.allclose(found, other(inputs[rows]), rtol=1e-6, atol=1e-6), layer
        assert not torch.allclose(other(inputs[:4]), untouched, rtol=1e-6, atol=1e-6), f"{layer}: nothing was changed"


def test_what_comes_before_the_change_is_not_computed() -> None:
    model, inputs = case("option_a")
    suffixes = Suffixes(model, inputs, step=4)
    layer = "layer2.1.conv1"
    ran: list[str] = []

    def answer(invocation: Invocation) -> object:
        ran.append(invocation.layer)
        return invocation.run()

    suffixes.run(changed(model, layer), [layer], answer=answer)
    assert ran[0] == layer
    assert {name for name in ran if name.startswith(("layer1", "layer2.0"))} == set()


def test_a_change_before_the_seam_is_not_seen() -> None:
    """The planted wrong answer: a caller that names the wrong layer is not given the changed model's answer."""
    model, inputs = case("option_a")
    other = changed(model, "layer1.0.conv1")
    assert not torch.allclose(Suffixes(model, inputs, step=4).run(other, ["linear"]), other(inputs[:4]), atol=1e-6)


def test_unknown_layers_and_other_paths_run_the_whole_model() -> None:
    model, inputs = case("option_a")
    other = changed(model, "conv1")
    suffixes = Suffixes(model, inputs, step=4)
    assert torch.allclose(suffixes.run(other, None), other(inputs[:4]))
    assert torch.allclose(suffixes.run(other, ["no such layer"]), other(inputs[:4]))
    other.conv1 = nn.Sequential(other.conv1, nn.Identity())  # steps before the seam are not the untouched model's
    assert torch.allclose(suffixes.run(other, ["linear"]), other(inputs[:4]))


def test_bytes_are_bounded() -> None:
    model, inputs = case("option_a")
    for most in (0, 20_000, 200_000):
        suffixes = Suffixes(model, inputs, step=4, most_bytes=most)
        for batch in range(len(suffixes.batches)):
            suffixes.run(model, ["linear"], batch=batch)
        assert suffixes.held_bytes <= most
        assert torch.allclose(
            suffixes.run(changed(model, "layer2.1.conv2"), ["layer2.1.conv2"]),
            changed(model, "layer2.1.conv2")(inputs[:4]),
            atol=1e-6,
        )


def test_a_random_model_has_no_seam() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x + torch.randn_like(x)) + torch.randn(4)

    assert Suffixes(Noisy(), torch.randn(8, 4), step=4).seams == ()


class Padded(nn.Module):
    """Looks whether anything is padding, as attention masks are often made: another path for a batch without any."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.first, self.second = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        if bool((ids == 0).any()):
            x = x * (ids != 0)[..., None].to(x.dtype)
        out: Tensor = self.second(torch.relu(self.first(x)).mean(1))
        return out


@pytest.mark.parametrize("padded_first", [True, False])
def test_batches_that_take_another_path_run_whole(padded_first: bool) -> None:
    model = Padded().eval()
    full = torch.randint(1, 9, (20, 5), generator=torch.Generator().manual_seed(0))
    padded = torch.where(torch.arange(5) < 3, full, 0)
    suffixes = Suffixes(model, torch.cat([padded, full] if padded_first else [full, padded]), step=20)
    assert suffixes.seams
    student = copy.deepcopy(model)
    student.second.weight.mul_(2.0)
    for batch, ids in enumerate((padded, full) if padded_first else (full, padded)):
        assert torch.equal(suffixes.run(student, ["second"], batch=batch), student(ids))
    assert not torch.equal(model(full), model(padded))
