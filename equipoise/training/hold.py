"""What training must keep of a model's weights: zeros that stay zeros, weights that share one value.

What is to be kept is read off the model itself, so a mask or a codebook needs no file of its own: it is in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.errors import must_be, unknown

Hold = Callable[[nn.Module], None]
"""Called with the student after each step of the optimizer, to put back what the step has changed and must not."""

Kept = Literal["zeros", "shared"]
KEPT: tuple[Kept, ...] = ("zeros", "shared")

MOST_SHARED = 256
"""Distinct values of a weight up to which it counts as shared: as many as one byte tells apart."""


def holding(model: nn.Module, kept: Kept | None) -> Hold | None:
    """Return what keeps the zeros of `model`, or the weights that share a value equal, in every copy of it; None for None.

    Biases and norms, which have one dimension, are free. A shared value moves as the mean of the weights that have it, and one
    that is zero stays zero.

    Raises:
        InputError: An unknown word, or a model in which there is nothing of the kind to keep.

    References:
        Han et al. 2016, "Deep compression", section 3: gradients of a shared weight are summed; the mean here is the same
        direction at a rate that does not grow with the number of its members.
    """
    if kept is None:
        return None
    if kept not in KEPT:
        raise unknown("hold", str(kept), KEPT)
    found = _zeros(model) if kept == "zeros" else _shared(model)
    if not found:
        what = "a model with zeros among its weights" if kept == "zeros" else f"weights of at most {MOST_SHARED} values"
        raise must_be("hold", f"None for other than {what}", kept, "Make one with eq.sparsify or eq.share, or leave it out.")

    @torch.no_grad()
    def put_back(student: nn.Module) -> None:
        for name, weight in student.named_parameters():
            if name in found:
                weight.copy_(found[name](weight))

    return put_back


def _zeros(model: nn.Module) -> Mapping[str, Callable[[Tensor], Tensor]]:
    masks = {name: weight != 0 for name, weight in _weights(model)}
    return {name: _masked(mask) for name, mask in masks.items() if not bool(mask.all())}


def _shared(model: nn.Module) -> Mapping[str, Callable[[Tensor], Tensor]]:
    found = {}
    for name, weight in _weights(model):
        values, codes = torch.unique(weight, return_inverse=True)
        if len(values) <= MOST_SHARED and 2 * len(values) <= weight.numel():
            found[name] = _levelled(codes, values == 0)
    return found


def _masked(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight * mask.to(weight.device)


def _levelled(codes: Tensor, zero: Tensor) -> Callable[[Tensor], Tensor]:
    count = torch.bincount(codes.flatten(), minlength=len(zero))

    def level(weight: Tensor) -> Tensor:
        where = codes.to(weight.device)
        sums = torch.zeros(len(count), dtype=torch.float64, device=weight.device)
        means = sums.index_add(0, where.flatten(), weight.double().flatten()) / count.to(weight.device)
        return means.masked_fill(zero.to(weight.device), 0.0).to(weight.dtype)[where]

    return level


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight.detach()) for name, weight in model.named_parameters() if weight.ndim > 1)
