"""Layers that do more than their type says: whatever folding takes, the answers are those of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import from_timm, settled
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from equipoise.compress.fold import fold, folded
from equipoise.compress.proof import difference
from equipoise.compress.subject import Subject

INPUTS = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class PlainNorm(nn.BatchNorm2d):
    """Adds a word and no mathematics."""

    note = "ours"


class NormAct(nn.BatchNorm2d):
    """Its activation and a dropout built in, as timm does it."""

    def __init__(self, wide: int) -> None:
        super().__init__(wide)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class NormFunction(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.01)


class NormDoubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class OtherEps(nn.BatchNorm2d):
    """Writes one eps down and uses another."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, 0.3)


class PositiveNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        gain = 1 + self.weight.abs()
        return F.batch_norm(x, self.running_mean, self.running_var, gain, self.bias, self.training, 0.1, self.eps)


class FrozenNorm(nn.Module):
    """Buffers only, written out: as detection models have it."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(wide, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class SameConv(nn.Conv2d):
    """Pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 1)


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class SignConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.sign(), self.bias)


class PenalisedConv(nn.Conv2d):
    """Its plain product is right; that it reads its weight a second time is not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1 + self.weight.square().mean()))


def hooked(form: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(*args: Any, **options: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return form(nn.Conv2d(*args, **options))

    return make


def conv_with_hook(*args: Any, **options: Any) -> nn.Module:
    layer = nn.Conv2d(*args, **options)
    layer.register_forward_hook(lambda _m, _x, y: y.clamp(-0.5, 0.5))
    return layer


def norm_with_hook(wide: int) -> nn.Module:
    norm = nn.BatchNorm2d(wide)
    norm.register_forward_hook(lambda _m, _x, y: y.clamp_min(0))
    return norm


def net(conv: Callable[..., nn.Module], norm: Callable[[int], nn.Module]) -> nn.Module:
    layers = (conv(3, 8, 3, padding=1), norm(8), nn.Tanh(), conv(8, 6, 3, padding=1), norm(6))
    return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), INPUTS)


FOLDED: dict[str, tuple[Callable[..., nn.Module], Callable[[int], nn.Module]]] = {
    "plain": (nn.Conv2d, nn.BatchNorm2d),
    "a subclass that changes nothing": (nn.Conv2d, PlainNorm),
    "activation built in": (nn.Conv2d, NormAct),
    "synchronised": (nn.Conv2d, nn.SyncBatchNorm),
    "without affine": (nn.Conv2d, lambda wide: nn.BatchNorm2d(wide, affine=False)),
    "padding of its own": (SameConv, nn.BatchNorm2d),
    "padding given as a word": (lambda a, b, k, padding: nn.Conv2d(a, b, k, padding="same"), nn.BatchNorm2d),
    "circular padding": (lambda a, b, k, padding: nn.Conv2d(a, b, k, padding=1, padding_mode="circular"), nn.BatchNorm2d),
}
LEFT: dict[str, tuple[Callable[..., nn.Module], Callable[[int], nn.Module], str]] = {
    "activation as a function": (nn.Conv2d, NormFunction, "NormFunction that does more than normalise"),
    "input changed": (nn.Conv2d, NormDoubled, "NormDoubled that does more than normalise"),
    "another eps": (nn.Conv2d, OtherEps, "when it is folded into 0, its outputs differ"),
    "gain made positive": (nn.Conv2d, PositiveNorm, "PositiveNorm that normalises with numbers of its own making"),
    "no statistics": (nn.Conv2d, lambda wide: nn.BatchNorm2d(wide, track_running_stats=False), "it has no running statistics"),
    "weight standardised": (StandardisedConv, nn.BatchNorm2d, "0 computes its weight or bias"),
    "sign": (SignConv, nn.BatchNorm2d, "0 computes its weight or bias"),
    "weight read twice": (PenalisedConv, nn.BatchNorm2d, "0 shares its weight or bias"),
    "weight_norm": (hooked(parametrizations.weight_norm), nn.BatchNorm2d, "0 computes its weight or bias"),
    "weight_norm by hooks": (hooked(torch.nn.utils.weight_norm), nn.BatchNorm2d, "0 computes its weight or bias"),
    "spectral_norm by hooks": (hooked(torch.nn.utils.spectral_norm), nn.BatchNorm2d, "0 computes its weight or bias"),
    "a hook on the convolution": (conv_with_hook, nn.BatchNorm2d, "it does not follow a convolution"),
    "a hook on the norm": (nn.Conv2d, norm_with_hook, "BatchNorm2d that does more than normalise"),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_proven_is_folded(name: str) -> None:
    model = net(*FOLDED[name])
    done = folded(model, INPUTS[:2], data=INPUTS)
    with torch.no_grad():
        torch.testing.assert_close(done.model(INPUTS), model(INPUTS), atol=1e-5, rtol=1e-5)
    assert done.left == {}
    assert not any(isinstance(module, _BatchNorm) for module in done.model.modules())


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_is_left_and_says_why(name: str) -> None:
    conv, norm, reason = LEFT[name]
    model = net(conv, norm)
    done = folded(model, INPUTS[:2])
    with torch.no_grad():
        torch.testing.assert_close(done.model(INPUTS), model(INPUTS), atol=1e-5, rtol=1e-5)
    assert list(done.left) == ["1", "4"]
    assert reason in done.left["1"]


def test_norms_that_are_no_batch_norms_stay() -> None:
    model = net(nn.Conv2d, FrozenNorm)
    with torch.no_grad():
        torch.testing.assert_close(fold(model, INPUTS[:2])(INPUTS), model(INPUTS))


@pytest.mark.parametrize("shape", [(3, 12), (3, 6, 6, 6)], ids=["1-D", "3-D"])
def test_activations_built_into_norms_of_other_dimensions_stay(shape: tuple[int, ...]) -> None:
    bases: tuple[Any, Any] = (nn.Conv1d, nn.BatchNorm1d) if len(shape) == 2 else (nn.Conv3d, nn.BatchNorm3d)
    norm = type("Norm", (bases[1],), {"forward": lambda self, x: bases[1].forward(self, x).clamp_min(0)})
    inputs = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    model = settled(nn.Sequential(bases[0](3, 8, 3), norm(8), bases[0](8, 4, 3), bases[1](4)), inputs)
    done = folded(model, inputs[:2])
    with torch.no_grad():
        torch.testing.assert_close(done.model(inputs), model(inputs), atol=1e-5, rtol=1e-5)
    assert list(done.left) == ["1"]


class Peeks(nn.Module):
    """Reads a weight of its norm, so that the norm cannot go; the other one can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.na(self.a(x)))
        x = self.nb(self.b(x)).to(self.nb.weight.dtype)
        return x.mean((2, 3))


def test_a_norm_whose_attributes_are_read_is_left_and_no_other() -> None:
    model = settled(Peeks(), INPUTS)
    done = folded(model, INPUTS[:2])
    assert list(done.left) == ["nb"]
    assert "it no longer runs: AttributeError" in done.left["nb"]
    with torch.no_grad():
        torch.testing.assert_close(done.model(INPUTS), model(INPUTS), atol=1e-5, rtol=1e-5)


class Branches(nn.Module):
    """Takes another way through the same layers on some inputs: the trace of one example does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.norm(x) if len(x) <= 2 else x).mean((2, 3))


def test_real_inputs_show_what_the_example_hides() -> None:
    model = settled(Branches(), INPUTS[:2])
    assert list(folded(model, INPUTS[:2]).left) == []
    done = folded(model, INPUTS[:2], data=INPUTS)
    assert "the model is not the same" in done.left["norm"]
    with torch.no_grad():
        torch.testing.assert_close(done.model(INPUTS), model(INPUTS))


def test_frozen_layers_stay_frozen_and_the_layout_is_kept() -> None:
    model = net(nn.Conv2d, nn.BatchNorm2d).to(memory_format=torch.channels_last)
    model[0].requires_grad_(False)
    done = fold(model, INPUTS[:2])
    assert [p.requires_grad for p in done[0].parameters()] == [False, False]
    assert done[3].weight.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(done(INPUTS), model(INPUTS), atol=1e-5, rtol=1e-5)


def test_chance_in_the_model_is_no_difference() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    model = net(nn.Conv2d, nn.BatchNorm2d)
    assert folded(nn.Sequential(model, Noisy()), INPUTS[:2]).left == {}


def test_tuples_and_dictionaries_are_compared_through() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(nn.Conv2d, nn.BatchNorm2d)

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.net(x)
            return {"logits": y, "all": (y, y.argmax(1))}

    done = folded(Two(), INPUTS[:2])
    assert done.left == {}
    assert done.model(INPUTS)["logits"].shape == (40, 4)


def test_the_prepared_model_carries_the_reasons() -> None:
    model = net(StandardisedConv, nn.BatchNorm2d)
    prepared = Subject.prepare(model, INPUTS[:2], INPUTS)
    assert list(prepared.left) == ["1", "4"]


def test_a_difference_is_a_difference() -> None:
    one = torch.ones(3)
    assert difference([one], [one + 1e-6]) == ""
    assert "differ by 50 %" in difference([one], [2 * one])
    assert difference([one], [one, one]) == "its outputs have another shape"
    assert difference([one], [torch.tensor([1.0, torch.nan, 1.0])]) == "its outputs are not finite in other places"
    assert "100 %" in difference([torch.tensor([1])], [torch.tensor([2])])


TIMM = ("densenet121", "tf_efficientnet_lite0", "mobilenetv3_small_050", "regnetx_002", "ese_vovnet19b_dw", "resnetv2_50")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_real_architectures_answer_the_same(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = from_timm(name, num_classes=7), torch.randn(4, 3, 64, 64)
        model = settled(model, inputs)
    done = folded(model, inputs[:2], data=inputs)
    with torch.no_grad():
        found, wanted = done.model(inputs), model(inputs)
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    stay = sum(isinstance(module, _BatchNorm) for module in done.model.modules())
    assert len(done.left) == stay < norms  # norms before an activation and a convolution have no layer to go into
    assert stay == 0 or name.startswith(("densenet", "resnetv2"))
