"""Int8 simulated in floating point: to see what precision costs a layer, and to train through it.

The rounding is that of a static QDQ file: weights symmetric with one scale for each output channel, inputs affine uint8 with
one scale for the tensor. Simulation does not saturate int16 accumulators as some AVX2 kernels do; 7-bit weights cannot
saturate there, and only a run of the real file shows what 8-bit ones do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.compress.trace import WEIGHTED, Invocation, watch
from equipoise.errors import must_be, unknown

_LEVELS = 255
_SAMPLE = 200_000


class FakeQuantized(nn.Module):
    """A dense layer that reads rounded inputs and holds rounded weights; gradients pass straight through both."""

    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Module, low: float, high: float, *, weight_bits: int = 8) -> None:
        super().__init__()
        self.layer, self.weight_bits = layer, weight_bits
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for rounded input and weight, same shape as the layer's own."""
        weight: Any = self.layer.weight
        axis = 1 if getattr(self.layer, "transposed", False) else 0
        rounded = {"weight": round_weight(weight, bits=self.weight_bits, axis=axis)}
        output: Tensor = torch.func.functional_call(self.layer, rounded, (round_input(x, self.low, self.high),))
        return output


def simulate(
    model: nn.Module,
    calibration: Tensor,
    *,
    layers: AbstractSet[str] | None = None,
    weight_bits: int = 8,
    ranges: str = "percentile",
) -> nn.Module:
    """Return a copy of `model` in which the named layers compute as int8 would.

    Args:
        model: in eval mode, BatchNorm folded; it is not changed.
        calibration: unlabelled inputs `(N, ...)`; they set the range of each layer's input.
        layers: convolution and linear layers to round, by name; None rounds every one that runs.
        weight_bits: 8 (levels ±127) or 7 (±63, exact on CPUs without VNNI).
        ranges: how the input range is read off the calibration inputs: 'minmax', 'percentile' (99.99 %) or 'mse'.

    Returns:
        A new module. Train it as it is (straight-through gradients), then take `plain` of it.

    Raises:
        InputError: an unknown layer or range rule, or bits other than 7 and 8.
    """
    if weight_bits not in (7, 8):
        raise must_be("weight_bits", "7 or 8", weight_bits, "7 avoids saturation on CPUs without VNNI.")
    if ranges not in RANGES:
        raise unknown("ranges", ranges, RANGES)
    seen = _input_ranges(model, calibration, layers, RANGES[ranges])
    for name in layers or ():
        if name not in seen:
            raise unknown("layer", name, _input_ranges(model, calibration[:1], None, _minmax))
    rounded = copy.deepcopy(model)
    for name, (low, high) in seen.items():
        _replace(rounded, name, FakeQuantized(rounded.get_submodule(name), low, high, weight_bits=weight_bits))
    return rounded


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a simulated (and perhaps trained) model with the floating-point layers back in their places."""
    bare = copy.deepcopy(model)
    for name, module in list(bare.named_modules()):
        if isinstance(module, FakeQuantized):
            _replace(bare, name, module.layer)
    return bare


def round_weight(weight: Tensor, *, bits: int, axis: int = 0) -> Tensor:
    """Return `weight` rounded to symmetric levels, one scale for each index of `axis`; gradients pass straight through."""
    top = 2 ** (bits - 1) - 1
    others = [other for other in range(weight.dim()) if other != axis]
    scale = (weight.detach().abs().amax(others, keepdim=True) / top).clamp_min(1e-12)
    return _straight_through(weight, (weight / scale).round().clamp(-top, top) * scale)


def round_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return `x` clipped to [low, high] and rounded to 256 affine levels of which one is exactly zero."""
    scale = ((high - low) / _LEVELS).clamp_min(1e-12)
    zero = (-low / scale).round()
    bounded = torch.clamp(x, -zero * scale, (_LEVELS - zero) * scale)  # no gradient outside the range
    return _straight_through(bounded, (bounded / scale).round() * scale)


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return the value of `rounded` with the gradient of `exact`."""
    return exact + (rounded - exact).detach()


def _minmax(values: Tensor) -> tuple[float, float]:
    return min(0.0, float(values.min())), max(0.0, float(values.max()))


def _percentile(values: Tensor) -> tuple[float, float]:
    """Return the range that leaves out 0.01 % of the values at each end, on a sample of at most 200,000 of them."""
    flat = _thinned(values).sort().values
    cut = int(len(flat) * 1e-4)
    return min(0.0, float(flat[cut])), max(0.0, float(flat[-1 - cut]))


def _least_error(values: Tensor) -> tuple[float, float]:
    """Return the shrunken min-max range with the least squared rounding error, of 20 tried."""
    low, high = _minmax(values)
    flat = _thinned(values)
    errors = {
        part: float((round_input(flat, torch.tensor(low * part), torch.tensor(high * part)) - flat).square().mean())
        for part in (1.0 - 0.04 * step for step in range(20))
    }
    best = min(errors, key=lambda part: errors[part])
    return low * best, high * best


RANGES: Mapping[str, Callable[[Tensor], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _least_error,
}


def _thinned(values: Tensor) -> Tensor:
    """Return at most 200,000 of the values, evenly spaced over all of them."""
    flat = values.flatten()
    return flat[:: max(1, -(-len(flat) // _SAMPLE))]


def _input_ranges(
    model: nn.Module, inputs: Tensor, layers: AbstractSet[str] | None, rule: Callable[[Tensor], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return the input range of each dense layer that runs (of the named ones, when named)."""
    found: dict[str, tuple[float, float]] = {}
    modules = dict(model.named_modules())

    def answer(invocation: Invocation) -> Any:
        wanted = layers is None or invocation.layer in layers
        if wanted and invocation.op.startswith(("linear", "conv")):
            layer = modules[invocation.layer]
            if isinstance(layer, WEIGHTED) and invocation.layer not in found:
                found[invocation.layer] = rule(invocation.args[0])
        return invocation.run()

    watch(copy.deepcopy(model).eval(), inputs, answer)
    return found


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
