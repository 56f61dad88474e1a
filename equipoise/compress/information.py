"""How much the loss knows of each channel: the empirical Fisher information of a gate on it, in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, arguments, size
from equipoise.compress.cut import is_depthwise
from equipoise.compress.graph import Group

Loss = Callable[[Tensor], Tensor]


def information(model: nn.Module, chosen: Sequence[Group], data: Inputs, loss: Loss) -> dict[str, Tensor]:
    """Return Σₙ (∂L/∂mₙ)² `(size,)` by group: mₙ, which is 1, gates the channel in sample n alone, where it is read.

    A gate of each sample's own gives every sample's slope in one backward pass of the whole batch: Σ value · gradient over what
    the sample's readers see. A group that no linear layer or convolution reads is left out.

    Args:
        loss: of the model's output on `data`; a mean or a sum over the samples, whose terms do not mix.
    """
    readers = {cut.layer for group in chosen for cut in group.cuts if cut.axis == "in"}
    read = _slopes(model, {name for name in readers if not is_depthwise(model.get_submodule(name))}, data, loss)
    found = {}
    for group in chosen:
        seen = [(cut, read[cut.layer]) for cut in group.cuts if cut.axis == "in" and cut.layer in read]
        if seen:
            slopes = [slope[:, torch.tensor(cut.positions)].sum(2) for cut, slope in seen]  # each (N, size)
            found[group.name] = torch.stack(slopes).sum(0).square().sum(0)
    return found


def _slopes(model: nn.Module, layers: set[str], data: Inputs, loss: Loss) -> dict[str, Tensor]:
    """Return Σ value · gradient `(N, channels)` of what each layer reads, over its places and calls."""
    taken: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any], Any]:
        def hook(_layer: nn.Module, args: Any) -> Any:
            if not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
                return None
            own = args[0].clone()  # what is changed in place after is another tensor
            taken.append((name, own))
            return (own, *args[1:])

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in sorted(layers)]
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    try:
        with torch.enable_grad():
            value = loss(torch.func.functional_call(model, leaves, *arguments(data)))
            slopes = torch.autograd.grad(value, [tensor for _, tensor in taken], allow_unused=True) if taken else ()
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for (name, tensor), slope in zip(taken, slopes, strict=True):
        if slope is not None:
            part = _by_sample(tensor.detach() * slope, model.get_submodule(name), size(data))
            found[name] = found[name] + part if name in found else part
    return found


def _by_sample(product: Tensor, layer: nn.Module, samples: int) -> Tensor:
    """Return the sums over places, `(N, channels)`; a layer that reads several rows of a sample has them added."""
    channels = product if isinstance(layer, nn.Linear) else product.movedim(1, -1)
    rows = channels.reshape(len(channels), -1, channels.shape[-1]).sum(1)
    whole = rows.reshape(samples, -1, rows.shape[-1]).sum(1) if len(rows) % samples == 0 else rows
    return whole.double()
