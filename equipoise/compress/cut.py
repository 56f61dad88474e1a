"""Slice layers: keep some channels of one axis of one layer, for every layer kind that can be sliced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.compress.trace import CONVS, NORMS, copied

Axis = str
"""``in`` or ``out`` of a layer with weights; any other is the name of a whole number that a module's code remembers, or of a
tensor that the module itself holds and one of its axes: ``table:1``."""

AXES: tuple[Axis, ...] = ("in", "out")
Keep = Mapping[tuple[str, Axis], Tensor]
"""Kept positions (sorted, int64) for an axis of a named layer; an axis that is not named stays whole."""


def sliced(model: nn.Module, keep: Keep, *, borrow: bool = False) -> nn.Module:
    """Return a copy of `model` in which every named axis holds only its kept positions.

    With `borrow` the tensors that are not cut are the model's own: a quick look that must not be trained or changed.
    """
    own: dict[int, Any] = {id(value): value for value in (*model.parameters(), *model.buffers())}
    smaller = copy.deepcopy(model, own) if borrow else copied(model)
    together = _tied(smaller)
    for (name, axis), positions in keep.items():
        layer = smaller.get_submodule(name)
        if axis not in AXES:
            tensor, _, place = axis.partition(":")
            if place:
                _kept(layer, tensor, int(place), positions)
            else:
                setattr(layer, axis, len(positions))
            continue
        cutter = _cutter(layer)
        if cutter is None:
            raise TypeError(f"{name}: a {type(layer).__name__} cannot be sliced")
        cutter(layer, axis, positions)
    for holders in together:
        values = [module._parameters[held] for module, held in holders]
        if all(value.shape == values[0].shape and torch.equal(value, values[0]) for value in values):
            for module, held in holders:
                module._parameters[held] = values[0]
    return smaller


def _tied(model: nn.Module) -> list[list[tuple[Any, str]]]:
    """Return the modules that hold one parameter, and its name in each: cut alike, they are to hold one again."""
    holders: dict[int, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for held, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, held))
    return [found for found in holders.values() if len(found) > 1]


def axis_size(layer: Any, axis: Axis) -> int:
    """Return how many positions the axis of a layer that can be sliced has now."""
    if axis not in AXES:
        tensor, _, place = axis.partition(":")
        return int(getattr(layer, tensor).shape[int(place)] if place else getattr(layer, axis))
    if isinstance(layer, CONVS):
        return int(getattr(layer, f"{axis}_channels"))
    if isinstance(layer, nn.Linear):
        return int(getattr(layer, f"{axis}_features"))
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return int(layer.normalized_shape[-1])
    if isinstance(layer, nn.Embedding):
        return int(layer.embedding_dim)
    return int(layer.num_parameters if isinstance(layer, nn.PReLU) else layer.num_features)


def refusal(layer: nn.Module) -> str:
    """Return why `layer` cannot be sliced, or "" when it can."""
    if isinstance(layer, CONVS) and layer.groups != 1 and not is_depthwise(layer):
        return f"a convolution in {layer.groups} groups"
    return "" if _cutter(layer) is not None else f"a {type(layer).__name__}"


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether each channel is convolved alone, one filter a channel."""
    return isinstance(layer, CONVS) and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def _cutter(layer: nn.Module) -> Callable[[Any, Axis, Tensor], None] | None:
    """Return the function that slices this kind of layer; subclasses with their own forward are not ours to slice."""
    if isinstance(layer, CONVS):
        return _cut_depthwise if is_depthwise(layer) else _cut_conv
    return next((cutter for kinds, cutter in _CUTTERS if type(layer) in kinds), None)


def _kept(layer: nn.Module, name: str, axis: int, positions: Tensor) -> None:
    """Keep `positions` of one axis of a parameter or buffer that may be absent."""
    value = getattr(layer, name, None)
    if not isinstance(value, Tensor):
        return
    part = value.detach().index_select(axis, positions.to(value.device)).clone()
    setattr(layer, name, nn.Parameter(part, value.requires_grad) if isinstance(value, nn.Parameter) else part)


def _cut_conv(layer: Any, axis: Axis, positions: Tensor) -> None:
    _kept(layer, "weight", int((axis == "in") != layer.transposed), positions)
    if axis == "out":
        _kept(layer, "bias", 0, positions)
    setattr(layer, f"{axis}_channels", len(positions))


def _cut_depthwise(layer: Any, _axis: Axis, positions: Tensor) -> None:
    _kept(layer, "weight", 0, positions)
    _kept(layer, "bias", 0, positions)
    layer.in_channels = layer.out_channels = layer.groups = len(positions)


def _cut_linear(layer: Any, axis: Axis, positions: Tensor) -> None:
    _kept(layer, "weight", int(axis == "in"), positions)
    if axis == "out":
        _kept(layer, "bias", 0, positions)
    setattr(layer, f"{axis}_features", len(positions))


def _cut_norm(layer: Any, _axis: Axis, positions: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _kept(layer, name, 0, positions)
    layer.num_features = len(positions)


def _cut_layer_norm(layer: Any, _axis: Axis, positions: Tensor) -> None:
    for name in ("weight", "bias"):
        _kept(layer, name, -1, positions)
    layer.normalized_shape = (*layer.normalized_shape[:-1], len(positions))


def _cut_prelu(layer: Any, _axis: Axis, positions: Tensor) -> None:
    if layer.num_parameters > 1:
        _kept(layer, "weight", 0, positions)
        layer.num_parameters = len(positions)


def _cut_embedding(layer: Any, _axis: Axis, positions: Tensor) -> None:
    _kept(layer, "weight", 1, positions)
    layer.embedding_dim = len(positions)


_CUTTERS: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Any, Axis, Tensor], None]], ...] = (
    ((nn.Linear,), _cut_linear),
    (NORMS, _cut_norm),
    ((nn.LayerNorm, nn.RMSNorm), _cut_layer_norm),
    ((nn.PReLU,), _cut_prelu),
    ((nn.Embedding,), _cut_embedding),
)
