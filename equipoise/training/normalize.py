"""Put BatchNorm back after folded convolutions for training, and fold it away again.

A folded network trains only at small learning rates. Normalising each convolution's output, with the scale and shift set so
that the function is the same, gives the student back the form in which its teacher was trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from equipoise.errors import must_be

_NORMS: dict[type[nn.Module], Callable[[int], _BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


class Normed(nn.Module):
    """A convolution without bias and the BatchNorm after it, in the place of one with bias."""

    def __init__(self, conv: _ConvNd, norm: _BatchNorm) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then normalise."""
        out: Tensor = self.norm(self.conv(x))
        return out


def unfold(model: nn.Module, inputs: Iterable[Tensor], *, names: Sequence[str] | None = None) -> nn.Module:
    """Return a copy of `model` with BatchNorm after its convolutions, computing the same function in evaluation mode.

    The running statistics are those of the convolution's outputs on `inputs`; scale and shift undo them exactly. Each weight is
    brought to the scale of a fresh network (He et al. 2015, https://arxiv.org/abs/1502.01852, section 2.2): normalisation hides
    it from the function, but a step of the optimizer turns a large weight less than a small one.

    Args:
        model: With folded BatchNorm; left as it is.
        inputs: Batches of inputs for the statistics; a few hundred samples do.
        names: Convolutions to take; None takes those with a bias, which is what folding leaves.
    Raises:
        InputError: No inputs, or a name that is not a convolution.
    """
    made = copy.deepcopy(model).eval()
    places = dict(made.named_modules())
    if names is None:
        names = [n for n, m in places.items() if type(m) in _NORMS and getattr(m, "bias", None) is not None]
    for name in names:
        if type(places.get(name)) not in _NORMS:
            raise must_be("names", "convolutions of the model", name, "See model.named_modules().")
    moments = _moments(made, names, inputs)
    for name in names:
        conv = cast(_ConvNd, places[name])
        made.set_submodule(name, _normed(conv, *moments[name]))
    return made


def refold(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every `Normed` is one convolution with bias again, under its old name."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, Normed):
            made.set_submodule(name, _plain(module.conv, module.norm))
    return made


def _moments(model: nn.Module, names: Sequence[str], inputs: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each named convolution's output by channel, its bias included."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def add(module: nn.Module, _: object, output: Tensor) -> None:
            flat = output.double().transpose(0, 1).flatten(1)  # (C, N H W)
            first, second, count = sums.get(name, (torch.zeros(()), torch.zeros(()), 0))
            sums[name] = (first + flat.sum(1), second + flat.square().sum(1), count + flat.shape[1])

        return add

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with torch.no_grad():
            for batch in inputs:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    if unread := [name for name in names if name not in sums]:
        raise must_be(
            "inputs", "batches that reach every convolution", f"nothing at {unread[0]}", "Pass a few batches of inputs."
        )
    return {
        name: (first / count, (second / count - (first / count).square()).clamp_min(0))
        for name, (first, second, count) in sums.items()
    }


def _normed(conv: _ConvNd, mean: Tensor, variance: Tensor) -> Normed:
    """Split `conv` so that (k conv x - k mean) / (k std) * std + mean, bias counted in the mean, gives its output back."""
    bare = copy.deepcopy(conv)
    bias = torch.zeros(len(mean)) if bare.bias is None else bare.bias.detach()
    bare.bias = None
    norm = _NORMS[type(conv)](len(mean)).eval()
    with torch.no_grad():
        k = math.sqrt(2 / bare.weight[0].numel()) / bare.weight.square().mean().sqrt().clamp_min(1e-12)
        bare.weight.mul_(k)
        variance = variance * k.square()
        cast(Tensor, norm.running_mean).copy_((mean - bias) * k)
        cast(Tensor, norm.running_var).copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt() / k)
        norm.bias.copy_(mean)
    return Normed(bare, norm)


def _plain(conv: _ConvNd, norm: _BatchNorm) -> nn.Module:
    """Merge the running statistics into one convolution with bias."""
    merged = copy.deepcopy(conv)
    scale = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
    with torch.no_grad():
        merged.weight = nn.Parameter(conv.weight * scale.reshape(-1, *[1] * (conv.weight.ndim - 1)))
        merged.bias = nn.Parameter(norm.bias - cast(Tensor, norm.running_mean) * scale)
    return merged
