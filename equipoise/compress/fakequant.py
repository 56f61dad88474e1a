"""Int8 simulated in floating point: to see what precision costs a layer, and to train through it.

The rounding is that of a static QDQ file: weights symmetric with one scale for each output channel, inputs affine uint8 with
one scale for the tensor. Simulation does not saturate int16 accumulators as some AVX2 kernels do; 7-bit weights cannot
saturate there, and only a run of the real file shows what 8-bit ones do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.batch import Inputs, take
from equipoise.compress.trace import WEIGHTED, Invocation, watch
from equipoise.errors import must_be, unknown

_LEVELS = 255
_SAMPLE, _TRIED = 200_000, 50_000


class FakeQuantized(nn.Module):
    """A mixin for dense layers: the layer computes with rounded input and weight; gradients pass straight through both.

    It is put before the layer's own class, so that the layer keeps its type, its attributes and its forward: code that reads
    `layer.weight.dtype` or `layer.in_features`, and subclasses that pad or standardise, run as they always did.
    """

    input_low: Tensor | None
    input_high: Tensor | None
    weight_bits: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output for rounded input and weight, same shape as the layer's own."""
        axis, bits = 1 if getattr(self, "transposed", False) else 0, self.weight_bits

        def held(weight: Tensor) -> Tensor:
            return round_weight(weight, bits=bits, axis=axis) if bits else weight

        with Rounded(lambda x: round_input(x, self.input_low, self.input_high), held):
            return super().forward(*args, **kwargs)


class Rounded(TorchFunctionMode):
    """Round what every dense product inside reads and holds, however the layer has come by it; of a look-up, the table."""

    def __init__(self, read: Callable[[Tensor], Tensor], held: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._round = {"input": read, "weight": held}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, named = list(args), dict(kwargs or {})
        op = getattr(func, "__name__", "")
        if _is_dense(op) or op == "embedding":
            for place, name in enumerate(("input", "weight")):
                holder: Any = given if place < len(given) else named
                key: Any = place if place < len(given) else name
                if name == "weight" or op != "embedding":
                    holder[key] = self._round[name](holder[key])
        return func(*given, **named)


def fake_quantize(layer: nn.Module, low: float | None, high: float | None, *, weight_bits: int = 8) -> None:
    """Make one layer compute in place as int8 would, its input rounded between `low` and `high`.

    Without them it is rounded in its own range, sample by sample; with no `weight_bits` the weights stay as they are.

    A hook that does nothing keeps `nn.TransformerEncoderLayer` from its fused path, which would read the weights and
    never call the layer.
    """
    device = next((value.device for value in layer.parameters()), None)
    for name, end in (("input_low", low), ("input_high", high)):
        layer.register_buffer(name, None if end is None else torch.tensor(end, device=device))
    layer.weight_bits = weight_bits  # type: ignore[assignment]
    layer.register_forward_pre_hook(stay_seen)
    layer.__class__ = type(f"FakeQuantized{type(layer).__name__}", (FakeQuantized, type(layer)), {})


def simulate(
    model: nn.Module,
    calibration: Inputs,
    *,
    layers: AbstractSet[str] | None = None,
    weight_bits: int = 8,
    ranges: str = "mse",
) -> nn.Module:
    """Return a copy of `model` in which the named layers compute as int8 would.

    Args:
        model: in eval mode, BatchNorm folded; it is not changed.
        calibration: unlabelled inputs `(N, ...)`; they set the range of each layer's input.
        layers: convolution and linear layers to round, by name; None rounds every one that runs.
        weight_bits: 8 (levels ±127) or 7 (±63, exact on CPUs without VNNI).
        ranges: how the input range is read off the calibration inputs: 'mse' (of least squared error, as the file that ships),
            'minmax' or 'percentile' (99.99 %).

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
            raise unknown("layer", name, _input_ranges(model, take(calibration, slice(1)), None, _minmax))
    return rounded(model, seen, weight_bits=weight_bits)


def input_ranges(model: nn.Module, calibration: Inputs, *, ranges: str = "mse") -> dict[str, tuple[float, float]]:
    """Return the input range of every layer that `simulate` can round, read in one pass, for `rounded`."""
    return _input_ranges(model, calibration, None, RANGES[ranges])


def rounded(model: nn.Module, seen: Mapping[str, tuple[float, float]], *, weight_bits: int = 8) -> nn.Module:
    """Return a copy of `model` in which the layers of `seen` compute as int8 would, their inputs rounded in these ranges."""
    copied = copy.deepcopy(model)
    for name, (low, high) in seen.items():
        fake_quantize(copied.get_submodule(name), low, high, weight_bits=weight_bits)
    return copied


def rounding_inputs(model: nn.Module, layers: Sequence[str]) -> nn.Module:
    """Return a copy of `model` in which the named layers round what they read in the range of each sample, weights as they are.

    A runtime takes the range of the whole request: the same for one sample, and wider for many.
    """
    if not layers:
        return model
    copied = copy.deepcopy(model)
    for name in layers:
        fake_quantize(copied.get_submodule(name), None, None, weight_bits=0)
    return copied


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a simulated (and perhaps trained) model whose layers compute in floating point again."""
    bare = copy.deepcopy(model)
    for module in list(bare.modules()):
        if isinstance(module, FakeQuantized):
            module.__class__ = type(module).__bases__[1]
            del module.input_low, module.input_high, module.weight_bits
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is stay_seen]:
                del hooks[key]
    return bare


def round_weight(weight: Tensor, *, bits: int, axis: int = 0) -> Tensor:
    """Return `weight` rounded to symmetric levels, one scale for each index of `axis`; gradients pass straight through."""
    top = 2 ** (bits - 1) - 1
    others = [other for other in range(weight.dim()) if other != axis]
    scale = (weight.detach().abs().amax(others, keepdim=True) / top).clamp_min(1e-12)
    return straight_through(weight, (weight / scale).round().clamp(-top, top) * scale)


def round_input(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Return `x` clipped to [low, high] and rounded to 256 affine levels of which one is exactly zero.

    Without a range it is that of each sample (N, ...), zero included.
    """
    if low is None or high is None:
        axes = list(range(1, x.dim()))
        low = x.detach().amin(axes, keepdim=True).clamp_max(0.0)
        high = x.detach().amax(axes, keepdim=True).clamp_min(0.0)
    scale = ((high - low) / _LEVELS).clamp_min(1e-12)
    zero = (-low / scale).round()
    bounded = torch.clamp(x, -zero * scale, (_LEVELS - zero) * scale)  # no gradient outside the range
    return straight_through(bounded, (bounded / scale).round() * scale)


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
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
    flat = _thinned(values, most=_TRIED)
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


def _thinned(values: Tensor, *, most: int = _SAMPLE) -> Tensor:
    """Return at most so many of the values, evenly spaced over all of them."""
    flat = values.flatten()
    return flat[:: max(1, -(-len(flat) // most))]


def _input_ranges(
    model: nn.Module, inputs: Inputs, layers: AbstractSet[str] | None, rule: Callable[[Tensor], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return the input range of each dense layer that runs (of the named ones, when named), over all of its calls."""
    found: dict[str, tuple[float, float]] = {}
    modules = dict(model.named_modules())

    def answer(invocation: Invocation) -> Any:
        wanted = layers is None or invocation.layer in layers
        if wanted and _is_dense(invocation.op) and isinstance(modules[invocation.layer], WEIGHTED):
            values = invocation.args[0] if invocation.args else invocation.kwargs["input"]
            low, high = rule(values)
            least, most = found.get(invocation.layer, (low, high))
            found[invocation.layer] = min(least, low), max(most, high)
        return invocation.run()

    watch(copy.deepcopy(model).eval(), inputs, answer)
    return found


def _is_dense(op: str) -> bool:
    return op.startswith(("linear", "conv")) and "weight" not in op


def stay_seen(_module: nn.Module, _inputs: Any) -> None:
    """Do nothing: see `fake_quantize`."""
