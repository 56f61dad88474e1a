"""Simulated int8 against torch's own fake quantization and against whole-number arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from nets import EASY, fingerprint, made
from torch import nn

from equipoise.compress.fakequant import RANGES, FakeQuantized, fake_quantize, plain, round_input, round_weight, simulate
from equipoise.compress.fold import fold
from equipoise.errors import InputError


@pytest.mark.parametrize(("bits", "top"), [(8, 127), (7, 63)])
def test_weights_round_as_torch_does(bits: int, top: int) -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax((1, 2, 3)) / top
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(6, dtype=torch.int32), 0, -top, top)
    ours = round_weight(weight, bits=bits)
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, round_weight(weight, bits=15 - bits))
    assert len((ours[0] / scale[0]).round().unique()) <= 2 * top + 1


def test_inputs_round_as_torch_does_and_zero_stays_zero() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    low, high = torch.tensor(-1.3), torch.tensor(2.1)
    scale = (high - low) / 255
    theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int((-low / scale).round()), 0, 255)
    ours = round_input(x, low, high)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert float(ours[0]) == 0.0
    assert not torch.allclose(ours, x, atol=1e-4)


def test_a_linear_layer_computes_what_whole_numbers_compute() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(16, 5)
    x = torch.rand(20, 16, generator=generator)
    rounded = copy.deepcopy(layer)
    fake_quantize(rounded, 0.0, 1.0, weight_bits=8)
    weight, bias = layer.weight.detach().numpy().astype(np.float64), layer.bias.detach().numpy()
    scales = np.abs(weight).max(1) / 127
    whole_w = np.rint(weight / scales[:, None]).astype(np.int64)
    whole_x = np.rint(x.numpy().astype(np.float64) * 255).astype(np.int64)
    expected = (whole_x @ whole_w.T) * scales / 255 + bias
    np.testing.assert_allclose(rounded(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("name", EASY)
def test_a_simulated_net_stays_near_and_plain_gives_it_back(name: str, ranges: str) -> None:
    model, inputs = made(name)
    model = fold(model, inputs[:2])
    before = fingerprint(model)
    rounded = simulate(model, inputs, ranges=ranges)
    assert fingerprint(model) == before
    assert fingerprint(plain(rounded)) == before
    with torch.no_grad():
        exact, coarse, coarser = model(inputs), rounded(inputs), simulate(model, inputs, weight_bits=7)(inputs)
    spread = float(exact.std())
    assert 1e-5 * spread < float((coarse - exact).std()) < 0.1 * spread
    assert float((coarser - exact).std()) > 1e-5 * spread


def test_only_the_named_layers_are_rounded() -> None:
    model, inputs = made("cnn")
    rounded = simulate(model, inputs, layers={"4"})
    assert [name for name, module in rounded.named_modules() if isinstance(module, FakeQuantized)] == ["4"]
    with pytest.raises(InputError, match="layer must be one of"):
        simulate(model, inputs, layers={"5"})
    with pytest.raises(InputError, match="weight_bits must be 7 or 8"):
        simulate(model, inputs, weight_bits=4)
    with pytest.raises(InputError, match="ranges must be one of"):
        simulate(model, inputs, ranges="max")


def test_an_outlier_is_clipped_by_percentile_and_error_but_not_by_min_max() -> None:
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    values[7] = 50.0
    assert RANGES["minmax"](values)[1] == 50.0
    assert RANGES["percentile"](values)[1] < 1.0
    assert RANGES["mse"](values)[1] < 50.0


def test_gradients_pass_straight_through() -> None:
    layer = nn.Linear(4, 3)
    x = torch.rand(10, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fake_quantize(layer, 0.0, 1.0)
    layer(x).sum().backward()
    weight_slope = layer.weight.grad
    assert weight_slope is not None
    torch.testing.assert_close(weight_slope, round_input(x.detach(), torch.tensor(0.0), torch.tensor(1.0)).sum(0).expand(3, 4))
    torch.testing.assert_close(x.grad, round_weight(layer.weight.detach(), bits=8).sum(0).expand(10, 4))


def test_training_through_rounding_lowers_the_loss() -> None:
    model, inputs = made("mlp")
    rounded = simulate(fold(model, inputs[:2]), inputs, weight_bits=7)
    target = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(rounded.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (rounded(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


class ReadsAttributes(nn.Module):
    """Looks at its layers as the encoders of transformers do: the type of a weight, a width."""

    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.wi(x.to(self.wi.weight.dtype)))
        assert hidden.shape[-1] == self.wo.in_features == self.wo.weight.shape[1]
        return self.wo(hidden.to(self.wo.weight.device))


class Standardised(nn.Conv2d):
    """Transforms its weight and pads by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), weight, self.bias, self.stride)


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


HOLDERS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "attributes": (ReadsAttributes, (6,), 2),
    "encoder": (lambda: encoder(False), (5, 8), 4),
    "encoder, norm first": (lambda: encoder(True), (5, 8), 4),
    "convolution of one's own": (lambda: Standardised(3, 4, 3), (3, 6, 6), 1),
    "hooked weight": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), (6,), 0),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_rounded_layers_keep_type_attributes_and_forward(name: str) -> None:
    make, shape, layers = HOLDERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = make().eval(), torch.randn(40, *shape)
    with torch.no_grad():
        exact = model(inputs)
        rounded = simulate(model, inputs)
        coarse = rounded(inputs)
        found = [part for part in rounded.modules() if isinstance(part, FakeQuantized)]
        assert len(found) >= layers
        assert all(isinstance(part, (nn.Linear, nn.Conv2d)) for part in found)
        spread = float(exact.std())
        assert 1e-4 * spread < float((coarse - exact).std()) < 0.05 * spread  # rounded, and not by a fused path's raw weights
        back = plain(rounded)
        torch.testing.assert_close(back(inputs), exact)
    assert [type(part) for part in back.modules()] == [type(part) for part in model.modules()]
    assert list(back.state_dict()) == list(model.state_dict())


def test_what_is_rounded_is_the_weight_that_is_multiplied() -> None:
    layer, x = Standardised(3, 4, 3).eval(), torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    by_hand = copy.deepcopy(layer)
    fake_quantize(layer, 0.0, 1.0)
    with torch.no_grad():
        weight = by_hand.weight - by_hand.weight.mean((1, 2, 3), keepdim=True)
        padded = nn.functional.pad(round_input(x, torch.tensor(0.0), torch.tensor(1.0)), (1, 1, 1, 1))
        wanted = nn.functional.conv2d(padded, round_weight(weight, bits=8), by_hand.bias)
        torch.testing.assert_close(layer(x), wanted)


def test_a_layer_that_runs_twice_has_the_range_of_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x) + self.line(10 * x)

    x = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    rounded = simulate(Twice().eval(), x, ranges="minmax")
    assert float(rounded.line.input_high) == pytest.approx(float(10 * x.max()))
