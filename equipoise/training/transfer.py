"""Begin from a trained model: another head, frozen layers, smaller rates for early layers, layers set free one by one."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from equipoise.errors import must_be, unknown
from equipoise.training.blocks import blocks
from equipoise.training.loop import train_mode
from equipoise.training.recipe import Recipe


def with_head(model: nn.Module, outputs: int, *, name: str | None = None, generator: torch.Generator) -> nn.Module:
    """Return a copy of `model` whose last layer is a fresh one with `outputs` outputs.

    Args:
        model: Left as it is.
        outputs: Classes, or values for each sample.
        name: The layer to replace, linear or convolution; None takes the last linear one.
        generator: Draws its weights, as torch draws those of a new layer.
    Raises:
        InputError: No such layer.
    """
    found = copy.deepcopy(model)
    layers = {
        key: part
        for key, part in found.named_modules()
        if isinstance(part, (nn.Linear, _ConvNd)) and not getattr(part, "transposed", False)
    }
    linear = [key for key, part in layers.items() if isinstance(part, nn.Linear)]
    if name is None and not linear:
        raise must_be("model", "one with a linear layer", type(model).__name__, "Name the layer to replace.")
    key = linear[-1] if name is None else name
    if key not in layers:
        raise unknown("head", key, layers)
    head = layers[key]
    fresh = torch.empty(outputs, *head.weight.shape[1:], device=generator.device)
    nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
    head.weight = nn.Parameter(fresh.to(head.weight))
    if head.bias is not None:
        bound = 1 / math.sqrt(fresh[0].numel())
        drawn = fresh.new_empty(outputs).uniform_(-bound, bound, generator=generator)
        head.bias = nn.Parameter(drawn.to(head.bias))
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", outputs)
    return found


def freeze(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a copy of `model` in which what is named is not trained; its BatchNorm layers keep their running statistics.

    Args:
        model: Left as it is.
        names: Modules (with all that they hold) or single parameters.
    Raises:
        InputError: An unknown name.
    """
    found = copy.deepcopy(model)
    parameters = dict(found.named_parameters())
    valid = {*parameters, *(key for key, _ in found.named_modules() if key)}
    for name in names:
        if name not in valid:
            raise unknown("frozen layer", name, valid)
    for key, parameter in parameters.items():
        if any(key == name or key.startswith(name + ".") for name in names):
            parameter.requires_grad_(False)
    return found


def stages(model: nn.Module) -> list[list[str]]:
    """Return the parameters' names by depth, input side first: each block is a stage, and each weight outside of blocks.

    Norms and biases belong to the weight before them. The order is that of registration.
    """
    found: list[list[str]] = []
    last = ""
    names = blocks(model)
    for name, parameter in model.named_parameters():
        block = next((b for b in names if name.startswith(b + ".")), "")
        if not found or (block and block != last) or (not block and (parameter.ndim > 1 or last in names)):
            found.append([])
        last = block
        found[-1].append(name)
    return found


def discriminative(model: nn.Module, factor: float) -> dict[str, float]:
    """Return a factor on the learning rate for each parameter: 1 in the last stage, times `factor` for each before it.

    Pass it to `fit` as `rates`.

    Args:
        model: Its `stages` count.
        factor: In (0, 1]; 0.4 is what the reference uses.
    Raises:
        InputError: `factor` out of range.

    References:
        Howard & Ruder 2018, "Universal language model fine-tuning", section 3.2.
    """
    if not 0 < factor <= 1:
        raise must_be("factor", "above 0 and at most 1", factor, "0.4 divides the rate by 2.5 from stage to stage.")
    depths = stages(model)
    return {name: factor ** (len(depths) - 1 - depth) for depth, names in enumerate(depths) for name in names}


def unfreezing(
    model: nn.Module,
    *,
    until: float = 0.5,
    order: Literal["gradual", "greedy"] = "gradual",
    recipe: Recipe | None = None,
) -> Callable[[nn.Module, float], None]:
    """Return a hook that trains the stages of `model` one after another; pass it to `fit` as `before_step`.

    Args:
        model: As it will be trained; what is frozen in it stays so.
        until: Share of the run after which the last stage is reached; all stages get equal shares before it.
        order: ``gradual`` begins with the last stage and sets free one more at a time, toward the input, for a trained model.
            ``greedy`` trains one stage at a time from the input on, with the last stage always beside it: layer-wise training
            of a fresh one. After `until` it trains all.
        recipe: The run's, for its `frozen_norm`.
    Raises:
        InputError: `until` out of range, or an unknown order.

    References:
        Howard & Ruder 2018, section 3.3 (gradual). Bengio et al. 2006, "Greedy layer-wise training of deep networks".
    """
    if not 0 < until <= 1:
        raise must_be("until", "above 0 and at most 1", until, "Give a share of the run.")
    if order not in ("gradual", "greedy"):
        raise unknown("order", order, ("gradual", "greedy"))
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths = [[name for name in names if name in free] for names in stages(model)]
    depths = [names for names in depths if names]
    last: Any = None  # the copy that is trained, and what is open in it: another run has another copy
    settings = recipe or Recipe()

    def before_step(placed: nn.Module, fraction: float) -> None:
        nonlocal last
        wanted = _open(len(depths), fraction / until, order)
        if last is not None and last[0]() is placed and last[1] == wanted:
            return
        last = (weakref.ref(placed), wanted)
        trained = {name for depth in wanted for name in depths[depth]}
        for name, parameter in placed.named_parameters():
            if name in free:
                parameter.requires_grad_(name in trained)
        train_mode(placed, settings)

    return before_step


def _open(count: int, way: float, order: str) -> frozenset[int]:
    """Return the stages to train when the share `way` of the unfreezing is done."""
    if order == "gradual":
        first = max(0, count - 1 - math.floor(way * (count - 1)))
        return frozenset(range(first, count))
    if way >= 1:
        return frozenset(range(count))
    return frozenset({math.floor(way * max(1, count - 1)), count - 1})
