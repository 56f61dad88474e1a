"""Put BatchNorm back after folded convolutions for training, and fold it away again.

A folded network trains only at small learning rates. Normalising each convolution's output, with the scale and shift set so
that the function is the same, gives the student back the form in which its teacher was trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from equipoise.batch import Inputs, call
from equipoise.errors import must_be

_NORMS: dict[type[nn.Module], Callable[[int], _BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


SAME = 1e-4
"""Largest difference by rounding between a model and its unfolded form, as a fraction of the largest output."""


class Normed(nn.Module):
    """A convolution without bias and the BatchNorm after it, in the place of one with bias.

    Attributes that it does not have are the convolution's, for code that reads `conv.weight.dtype` or `conv.out_channels`.
    """

    def __init__(self, conv: _ConvNd, norm: _BatchNorm) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("conv", "norm"):
                raise
            return getattr(super().__getattr__("conv"), name)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then normalise."""
        out: Tensor = self.norm(self.conv(x))
        return out


def unfold(model: nn.Module, inputs: Iterable[Inputs], *, names: Sequence[str] | None = None) -> nn.Module:
    """Return a copy of `model` with BatchNorm after its convolutions, computing the same function in evaluation mode.

    The running statistics are those of the convolution's outputs on `inputs`; scale and shift undo them exactly. Each weight is
    brought to the scale of a fresh network (He et al. 2015, https://arxiv.org/abs/1502.01852, section 2.2): normalisation hides
    it from the function, but a step of the optimizer turns a large weight less than a small one.

    Args:
        model: With folded BatchNorm; left as it is.
        inputs: Batches of inputs for the statistics; a few hundred samples do.
        names: Convolutions to take; None takes those with a bias, which is what folding leaves.
    Returns:
        The model; what was not taken has its old type. A convolution stays as it is where its weight is held elsewhere too,
        and where the answers to the first batch would differ (code that reads its weight, or hooks that change its output).
    Raises:
        InputError: No inputs, or a name that is not a convolution.
    """
    original = copy.deepcopy(model).eval()
    places = dict(original.named_modules())
    if names is None:
        names = [n for n, m in places.items() if type(m) in _NORMS and getattr(m, "bias", None) is not None]
    for name in names:
        if type(places.get(name)) not in _NORMS:
            raise must_be("names", "convolutions of the model", name, "See model.named_modules().")
    batches = list(inputs)
    moments = _moments(original, names, batches)
    alone = [name for name in names if not _shared(original, places[name])]

    def build(chosen: Sequence[str]) -> nn.Module:
        made = copy.deepcopy(original)
        for name in chosen:
            made.set_submodule(name, _normed(cast(_ConvNd, made.get_submodule(name)), *moments[name]))
        return made

    return build(_faithful(alone, build, original, batches[0]) if alone else [])


def _faithful(
    names: Sequence[str], build: Callable[[Sequence[str]], nn.Module], original: nn.Module, batch: Inputs
) -> Sequence[str]:
    """Return the names that can be taken together without changing an answer, found by halving."""
    if not names or _agree(build(names), original, batch):
        return names
    if len(names) == 1:
        return []
    half = len(names) // 2
    good = [n for part in (names[:half], names[half:]) for n in _faithful(part, build, original, batch)]
    return good if _agree(build(good), original, batch) else []


def _agree(model: nn.Module, original: nn.Module, batch: Inputs) -> bool:
    """Whether both answer alike, chance (if the model has any) starting from one seed."""
    found = []
    for each in (model, original):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append([leaf for leaf in tree_leaves(call(each, batch)) if isinstance(leaf, Tensor)])
    return all(
        float((new.double() - old.double()).abs().max()) <= SAME * float(old.double().abs().max()) + 1e-12
        for new, old in zip(*found, strict=True)
    )


def _shared(model: nn.Module, conv: nn.Module) -> bool:
    """Whether the convolution, or one of its parameters, is held in more than one place."""
    held = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return any(held.count(id(p)) > 1 for p in conv.parameters())


def refold(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every `Normed` is one convolution with bias again, under its old name."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, Normed):
            made.set_submodule(name, _plain(module.conv, module.norm))
    return made


def _moments(model: nn.Module, names: Sequence[str], inputs: Iterable[Inputs]) -> dict[str, tuple[Tensor, Tensor]]:
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
                call(model, batch)
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
    bias = torch.zeros_like(mean) if bare.bias is None else bare.bias.detach()
    bare.bias = None
    norm = _NORMS[type(conv)](len(mean)).eval().to(bare.weight.device, bare.weight.dtype)
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
