"""The layers of a model as operators with shapes, seen in one run of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.batch import Inputs, call
from equipoise.compress.trace import record, tensors
from equipoise.ops import Op

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def operators(model: nn.Module, example: Inputs) -> dict[str, Op]:
    """Return module name -> operator for every convolution, linear layer and embedding that the outputs need.

    Args:
        model: BatchNorm folded, so that a rectifier is seen to follow its convolution. Not changed.
        example: (N, ...) inputs, one tensor or several by name.

    Limits:
        1-D and 2-D convolutions with zero padding (the former as one of a single row), linear layers, and embeddings that only
        look up. A layer that runs more than once counts once. What feeds an output that is not judged, or makes a constant of
        constants, is no operator of what ships.
    """
    found: dict[str, Op] = {}
    outputs: dict[int, tuple[str, Tensor]] = {}

    def note(name: str, layer: nn.Module, given: Any, output: Tensor) -> None:
        read = next(tensors(given), None)  # by position or by name; a table of places may be asked by a shape alone
        if read is None:
            return
        found[name] = _spec(layer, read)
        outputs[id(output)] = (name, output)  # the tensor is kept, so that its id is not given away

    class Rectifiers(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("relu", "relu_") and args and id(args[0]) in outputs:
                name = outputs[id(args[0])][0]
                found[name] = replace(found[name], relu=True)
            return func(*args, **(kwargs or {}))

    hooks = [
        layer.register_forward_hook(
            lambda layer, given, named, output, name=name: note(name, layer, (given, named), output), with_kwargs=True
        )
        for name, layer in model.named_modules()
        if _counted(layer)
    ]
    try:
        with torch.no_grad(), Rectifiers():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    tape = record(model, example)
    needed, fed = tape.needed() or found.keys(), tape.fed()
    return {name: op for name, op in found.items() if name in needed and (name in fed or op.kind == "embedding")}


def _counted(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None
    return isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTIONS) and layer.padding_mode == "zeros")


def _spec(layer: nn.Module, inputs: Tensor) -> Op:
    """The operator of a layer, from its attributes and one input."""
    if isinstance(layer, nn.Linear):
        return Op("linear", layer.in_features, layer.out_features, height=_places(inputs, layer.in_features))
    if isinstance(layer, nn.Embedding):
        return Op("embedding", layer.num_embeddings, layer.embedding_dim, height=_places(inputs))
    if not isinstance(layer, CONVOLUTIONS):
        raise TypeError(type(layer).__name__)
    kernel, stride, dilation = (_pair(each, 1) for each in (layer.kernel_size, layer.stride, layer.dilation))
    padding = (0, 0) if isinstance(layer.padding, str) else _pair(layer.padding, 0)
    if layer.padding == "same":
        padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    height = inputs.shape[-2] if isinstance(layer, nn.Conv2d) else 1
    shape = (layer.groups, height, inputs.shape[-1])
    return Op("conv", layer.in_channels, layer.out_channels, kernel, stride, padding, dilation, *shape)


def _pair(sizes: tuple[int, ...], height: int) -> tuple[int, int]:
    """(height, width) of what a convolution has for each of its axes."""
    return (height if len(sizes) == 1 else sizes[0], sizes[-1])


def _places(inputs: Tensor, width: int = 1) -> int:
    """Rows of `width` in each sample; one where no sample came this way."""
    return max(1, inputs.numel() // max(1, len(inputs)) // width)
