"""Fold BatchNorm into the layer before it, so that pruning and repair act on weights and biases alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from equipoise.compress.trace import NORMS, WEIGHTED, Tape, record


def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy in eval mode whose BatchNorms are folded into the convolution or linear layer they follow.

    A stale running mean is the commonest way in which pruning ruins a network; without BatchNorm there is none. Outputs
    are those of `model.eval()` up to rounding (about 1e-6 of their size).

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts; it decides which layer feeds which BatchNorm.

    Returns:
        A new module with the same layer names, folded BatchNorms replaced by `nn.Identity`.

    Limits:
        A BatchNorm stays where its input is used elsewhere too, where it or its layer runs more than once, where it has
        no running statistics, or where the layer's weight is shared or parametrized.
    """
    folded = copy.deepcopy(model).eval()
    for layer, norm in pairs(folded, record(folded, example)):
        _absorb(folded.get_submodule(layer), folded.get_submodule(norm))
        parent, _, leaf = norm.rpartition(".")
        setattr(folded.get_submodule(parent), leaf, nn.Identity())
    return folded


def pairs(model: nn.Module, tape: Tape) -> tuple[tuple[str, str], ...]:
    """Return the names of (layer, BatchNorm) that can become one, in execution order."""
    modules = dict(model.named_modules())
    maker = {value: call for call in tape.calls for value in call.outputs}
    shared = shared_parameters(model)
    found = []
    for call in tape.calls:
        norm = modules.get(call.layer)
        if not isinstance(norm, NORMS) or norm.running_mean is None or tape.call_of(call.layer) is not call or not call.inputs:
            continue
        value = call.inputs[0]
        source = maker.get(value)
        if source is None or tape.call_of(source.layer) is not source:
            continue
        if value in tape.outputs or tape.consumers(value) != (call,):
            continue
        layer = modules[source.layer]
        if not isinstance(layer, WEIGHTED) or parametrize.is_parametrized(layer) or id(layer.weight) in shared:
            continue
        if isinstance(layer, nn.Linear) and len(tape.shapes[value]) != 2:  # the norm would run over another axis
            continue
        if getattr(layer, "transposed", False) and layer.groups != 1:
            continue
        found.append((source.layer, call.layer))
    return tuple(found)


def shared_parameters(model: nn.Module) -> frozenset[int]:
    """Return the ids of parameters that more than one module (or more than one name) holds."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (twice if id(parameter) in seen else seen).add(id(parameter))
    return frozenset(twice)


def _absorb(layer: Any, norm: Any) -> None:
    """Scale the layer's output channels and shift its bias as the BatchNorm would."""
    mean, variance = norm.running_mean, norm.running_var
    gain = torch.ones(norm.num_features) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros(norm.num_features) if norm.bias is None else norm.bias.detach()
    weight = layer.weight.detach()
    scale = gain.double() / torch.sqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()
    axis = 1 if getattr(layer, "transposed", False) else 0
    along = [1] * weight.dim()
    along[axis] = -1
    layer.weight = nn.Parameter((weight.double() * scale.view(along)).to(weight.dtype), layer.weight.requires_grad)
    layer.bias = nn.Parameter(((bias - mean.double()) * scale + shift.double()).to(weight.dtype), layer.weight.requires_grad)
