"""Training through the rounding: from some step on, layers compute in the schemes that a runtime will hold them in.

A layer's filters are rounded each on a scale of its own, so a normalization after it, which scales filters, leaves the rounding
as it is: a net learns with its BatchNorm in place what it will lose when that is folded away. Embeddings and linear layers are
rounded by group, as their schemes say. Gradients pass straight through (Bengio et al. 2013, section 4); what an input's range
cuts off has none.

What was learned lies on the grid of its scheme in the end (`snapped`), so that rounding it again changes nothing.

References:
    Jacob et al. 2018, *Quantization and training of neural networks for efficient integer-arithmetic-only inference*,
    section 3; there normalizations are folded while the net learns, as its weights have one scale for a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, parts
from equipoise.compress.fakequant import Rounded, input_ranges, round_input, stay_seen, straight_through
from equipoise.compress.rounding import HALVES, kind_of, on_grid
from equipoise.compress.statistics import as_matrix, as_weight
from equipoise.compress.trace import HOLDING, copied, tensors, together
from equipoise.errors import must_be
from equipoise.records import Choice
from equipoise.schemes import SCHEMES, group, scheme, shared, top

LATE = 0.5
"""Share of a training after which layers are settled."""
SETTLED = 96
"""Inputs from which ranges are read: a few photographs have many places, and each takes a dozen seconds a hundred."""
AT_ONCE = 16
"""Of them, in one call."""
WORTH = 3.0
"""Times the distance from the teacher that rounding makes at least where a judge lets it be learned: see docs/techniques.md."""


class Through(nn.Module):
    """A mixin as `fakequant.FakeQuantized`: the layer computes in its scheme once it is settled, and in floats before."""

    choice: Choice
    grid: Choice
    """The scheme of its weights: another where a layer that shares them asks for fewer levels."""
    most: int
    size: int
    settled: Tensor
    """1: it computes in its scheme; 0: not yet; -1: it stays in floats."""
    input_low: Tensor
    input_high: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output, for rounded input and weight where they are rounded."""
        if self.settled <= 0:
            return super().forward(*args, **kwargs)
        with Rounded(self.read, self.held):
            return super().forward(*args, **kwargs)

    def read(self, x: Tensor) -> Tensor:
        """Return an input as the layer reads it."""
        inputs = scheme(self.choice).inputs
        if inputs == "float":
            return x
        if inputs == "half":
            return x.to(HALVES[self.choice]).to(x.dtype)
        return round_input(x, *((self.input_low, self.input_high) if inputs == "static" else (None, None)))

    def held(self, weight: Tensor) -> Tensor:
        """Return weights as the layer holds them; gradients pass straight through."""
        return straight_through(weight, self.on_grid(weight.detach()))

    def on_grid(self, weight: Tensor) -> Tensor:
        """Return weights rounded to the nearest level; the largest of each group is on the last."""
        if self.grid in HALVES:
            return weight.to(HALVES[self.grid]).to(weight.dtype)
        rows = as_matrix(weight) if weight.ndim > 2 else weight
        parts = rows.reshape(len(rows), -1, self.size)
        steps = (parts.abs().amax(2, keepdim=True) / self.most).clamp_min(torch.finfo(weight.dtype).tiny)
        rounded = ((parts / steps).round().clamp(-self.most, self.most) * steps).reshape(rows.shape)
        return as_weight(rounded, weight) if weight.ndim > 2 else rounded


def through(model: nn.Module, schemes: Mapping[str, Choice], *, exact: bool) -> nn.Module:
    """Return a copy of `model` whose named layers will compute in their schemes once `settle` is called.

    Args:
        model: Not changed.
        schemes: Layer -> scheme, by name of `SCHEMES`; floats are left aside.
        exact: As of `rounding.on_grid`.
    Raises:
        InputError: An unknown scheme, or a layer that is not there or has no weights to round.
    """
    made, layers = copied(model), dict(model.named_modules())
    for name, choice in schemes.items():
        if choice not in SCHEMES:
            raise must_be("scheme", f"one of {list(SCHEMES)}", choice, "8 is int8 with static ranges.")
        layer = made.get_submodule(name) if name in layers else None
        if not isinstance(layer, HOLDING):
            raise must_be("layers to round", "convolutions, linear layers and embeddings", name, "See equipoise profile.")
    wanted = {name: choice for name, choice in schemes.items() if scheme(choice).bits < 32}
    for names in together(made, wanted):
        products = [name for name in names if not isinstance(layers[name], nn.Embedding)]
        grid = wanted[names[0]] if len(names) == 1 else shared(wanted[name] for name in names)
        kind = kind_of(layers[(*products, *names)[0]])
        for name in names:
            _await(made.get_submodule(name), wanted[name], grid, kind, exact=exact)
    return made


def _await(layer: Any, choice: Choice, grid: Choice, kind: str, *, exact: bool) -> None:
    """Make a layer one that can be settled (in place), its weights on the grid that all layers which share them have."""
    for name in ("settled", "input_low", "input_high"):  # a checkpoint holds them
        layer.register_buffer(name, layer.weight.new_zeros(()))
    layer.choice, layer.grid, layer.most = choice, grid, top(grid, exact=exact)
    if scheme(grid).inputs == "static" and not exact:
        layer.most //= 2
    layer.size = group(grid, kind, layer.weight[0].numel())
    layer.register_forward_pre_hook(stay_seen)
    layer.__class__ = type(f"Through{type(layer).__name__}", (Through, type(layer)), {})


def waiting(model: nn.Module) -> bool:
    """Return whether it is still to be decided if the layers of `model` are settled."""
    return any(isinstance(layer, Through) and layer.settled == 0 for layer in model.modules())


@torch.no_grad()
def settle(model: nn.Module, calibration: Inputs, *, exact: bool) -> None:
    """Let the layers of a model from `through` compute in their schemes from now on (in place).

    Weights are put on the grid as a file would hold them, in the order of second moments: what learning begins with is what
    rounding alone gives. Ranges are those of least squared error.

    Args:
        calibration: Unlabelled inputs (N, ...), a few hundred.
        exact: As of `rounding.on_grid`.
    """
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, Through)}
    floats, schemes = plain(model).eval(), {name: layer.choice for name, layer in found.items()}
    static = {name for name, choice in schemes.items() if scheme(choice).inputs == "static"}
    ranges = input_ranges(floats, calibration, ranges="mse") if static else {}
    held = on_grid(floats, schemes, exact=exact, calibration=calibration)
    for name, layer in found.items():
        own: Any = held.get_submodule(name)
        cast(Tensor, layer.weight).copy_(own.weight)
        if getattr(layer, "bias", None) is not None:
            cast(Tensor, layer.bias).copy_(own.bias)
        low, high = ranges.get(name, (0.0, 0.0))
        layer.input_low.fill_(low)
        layer.input_high.fill_(high)
        layer.settled.fill_(1.0 if name in ranges or name not in static else -1.0)  # what never ran stays in floats


Judge = tuple[Callable[[Inputs], Any], Callable[[Any, Any], float]]
"""What the model learns to answer, and how far some answers are from others."""


def late(
    calibration: Inputs, *, exact: bool, judge: Judge | None = None, start: float = LATE
) -> Callable[[nn.Module, float], None]:
    """Return what settles the layers of a model from `through` once the share `start` of its training is done.

    Args:
        calibration: As of `settle`.
        exact: As of `rounding.on_grid`.
        judge: Layers are settled where rounding puts the model `WORTH` times as far from what it learns, on the calibration
            inputs, and else stay in floats: learning through rounding is the slower one. None settles them anyway.
        start: 0 from the first step on, below 1.
    Returns:
        A function of the model and of the share that is done, for before each step.
    """

    @torch.no_grad()
    def before_step(model: nn.Module, fraction: float) -> None:
        if fraction < start or not waiting(model):
            return
        tried = copy.deepcopy(model)
        settle(tried, calibration, exact=exact)
        if judge is None or _far(tried, calibration, judge) >= WORTH * _far(model, calibration, judge):
            model.load_state_dict(tried.state_dict())
            return
        for layer in model.modules():
            if isinstance(layer, Through):
                layer.settled.fill_(-1.0)

    return before_step


def _far(model: nn.Module, inputs: Inputs, judge: Judge) -> float:
    """Return how far the model is, as it now computes, from what it learns."""
    asked, between = judge
    evaluated = copy.deepcopy(model).eval()
    pairs = [(asked(few), next(tensors(call(evaluated, few)))) for few in parts(inputs, AT_ONCE)]
    wanted, found = (torch.cat([answer.cpu() for answer in answers]) for answers in zip(*pairs, strict=True))
    return between(wanted, found)


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a model from `through` whose layers compute in floats, their weights as they are."""
    bare = copy.deepcopy(model)
    for module in list(bare.modules()):
        if isinstance(module, Through):
            module.__class__ = type(module).__bases__[1]
            for name in ("settled", "input_low", "input_high", "choice", "grid", "most", "size"):
                delattr(module, name)
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is stay_seen]:
                del module._forward_pre_hooks[key]
    return bare


@torch.no_grad()
def snapped(model: nn.Module) -> nn.Module:
    """Return a plain copy of a model from `through`, its weights where it was trained to hold them."""
    bare = plain(model)
    for name, layer in model.named_modules():
        if isinstance(layer, Through) and scheme(layer.choice).encoded and layer.settled > 0:
            held: Any = bare.get_submodule(name)
            held.weight.copy_(layer.on_grid(held.weight))
    return bare
