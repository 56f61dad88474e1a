"""A cut model made by hand, to hold cuts to: the whole model, in which nothing is read of the channels that are gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.compress.graph import Group, keeping
from equipoise.compress.group_proof import silence


def unseen(size: int, seed: int) -> list[int]:
    """A pattern of a size and order that the proof does not use."""
    generator = torch.Generator().manual_seed(90_000 + seed)
    count = int(torch.randint(1, size, (1,), generator=generator))
    return sorted(torch.randperm(size, generator=generator)[:count].tolist())


def silenced(model: nn.Module, chosen: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """The same model by hand: readers hold zero weights for what is gone, norms average over what is kept."""
    quiet = copy.deepcopy(model)
    for (name, axis), spots in keeping(model, chosen, kept).items():
        layer: Any = quiet.get_submodule(name)
        if axis == "in":
            silence(layer, spots)
        elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            layer.forward = over(layer, spots)
    return quiet


def over(layer: nn.LayerNorm | nn.RMSNorm, spots: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        part = x[..., spots]
        if isinstance(layer, nn.RMSNorm):
            root = (part.square().mean(-1, keepdim=True) + (layer.eps or torch.finfo(x.dtype).eps)).sqrt()
            even, bias = part / root, None
        else:
            even = (part - part.mean(-1, keepdim=True)) / (part.var(-1, keepdim=True, correction=0) + layer.eps).sqrt()
            bias = layer.bias
        affine = even if layer.weight is None else even * layer.weight[spots]
        return torch.zeros_like(x).index_copy(-1, spots, affine if bias is None else affine + bias[spots])

    return forward
