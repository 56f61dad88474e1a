"""Losses by name, and the Wasserstein distance: between distributions over ordered classes, and as a critic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be, unknown

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> scalar loss, a mean over the samples."""


Kind = Literal["softmax", "bernoulli", "values"]
KINDS = ("softmax", "bernoulli", "values")
"""What outputs mean: class scores, a yes-or-no score in each output, numbers."""

CONSTANT = 1e-3
"""An output that spreads less than this share of the widest one is counted as constant, and measured by the widest."""


def apart(
    outputs: Tensor,
    wanted: Tensor,
    *,
    kind: Kind,
    axis: int = 1,
    probabilities: bool = False,
    temperature: float = 1.0,
    spread: Tensor | None = None,
) -> Tensor:
    """Return how far `outputs` are from `wanted`: nats for labels, a share of the spread for values; 0 where they are the same.

    Args:
        outputs, wanted: (N, ...), of one shape.
        kind: ``softmax``: KL of the distributions over the classes, mean over the positions. ``bernoulli``: KL of the yes-or-no
            distribution of each output, mean over the outputs. ``values``: squared error over the squared `spread`, mean.
        axis: Where the classes lie.
        probabilities: Outputs are probabilities already; they are not squashed a second time.
        temperature: T, by which logits are divided; the result is multiplied by T^2 (Hinton et al. 2015, section 2.1).
        spread: Of ``values``: standard deviation of each output, in a shape that broadcasts; None takes that of `wanted`.
    """
    if kind == "values":
        return ((outputs - wanted) / (spreads(wanted) if spread is None else spread)).square().mean()
    if probabilities:
        outputs, wanted = (_logits(p, kind) for p in (outputs, wanted))
    ours, theirs = outputs / temperature, wanted / temperature
    if kind == "softmax":
        ours, theirs = F.log_softmax(ours, dim=axis), F.log_softmax(theirs, dim=axis)
        return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=axis).mean()
    sides = ((F.logsigmoid(sign * theirs), F.logsigmoid(sign * ours)) for sign in (1, -1))
    total = torch.stack([p.exp() * (p - q) for p, q in sides]).sum(0)
    return temperature**2 * total.mean()


def spreads(values: Tensor) -> Tensor:
    """Return the standard deviation of each output over the samples, (C,) in a shape that broadcasts over (N, C, ...).

    Each output so counts alike, whatever its unit. One that hardly moves is measured by the widest: its own spread would blow
    its smallest error up.
    """
    values = values.detach().double()
    others = [i for i in range(values.ndim) if i != 1]
    several = math.prod(values.shape[i] for i in others) > 1
    found = values.std(dim=others, correction=int(several), keepdim=True)
    widest = found.max()
    found = torch.where(found < CONSTANT * widest, widest, found)
    return torch.where(found > 0, found, torch.ones_like(found)).float()


def _logits(probabilities: Tensor, kind: Kind) -> Tensor:
    """Logits of probabilities, kept finite."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return p.log() if kind == "softmax" else p.log() - (-p).log1p()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of values; `targets` are given the shape of `outputs`, so nothing is broadcast."""
    return F.mse_loss(outputs, targets.reshape(outputs.shape))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy in nats of logits (N, C, ...), or of one logit (N,) or (N, 1), for labels (N, ...)."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().to(outputs.dtype))
    return F.cross_entropy(outputs, targets)


def wasserstein(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the earth mover's distance of predicted from true distributions over ordered classes, one class being 1 apart.

    In one dimension it is the area between the two cumulative distributions. Unlike cross entropy it counts how far off a
    wrong class is: grades, ages, counts.

    Args:
        outputs: Logits (N, C).
        targets: Labels (N,), or probabilities (N, C).
    Returns:
        The mean over the samples, in classes: from 0 to C - 1.

    References:
        Vallender 1974, "Calculation of the Wasserstein distance between probability distributions on the line".
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[1])
    if targets.shape != outputs.shape:
        shape = tuple(outputs.shape)
        raise must_be("targets", f"labels, or probabilities of shape {shape}", tuple(targets.shape), "One row for each sample.")
    between = (outputs.softmax(dim=1) - targets.to(outputs.dtype)).cumsum(dim=1)  # (N, C), the last column is 0
    return between[:, :-1].abs().sum(dim=1).mean()


def critic(model: nn.Module, real: Tensor, made: Tensor, *, generator: torch.Generator, penalty: float = 10.0) -> Tensor:
    """Return the loss of a critic that estimates the Wasserstein distance of `made` from `real` samples by its dual.

    ``E critic(made) - E critic(real) + penalty * E (|gradient| - 1)^2``, the gradient taken between pairs of samples: it keeps
    the critic's slope at most about 1. Minus the first two terms of a trained critic is the distance; a generator minimizes
    ``-E critic(made)``.

    Args:
        model: Samples (N, ...) -> one value each.
        real, made: Samples (N, ...), as many of each.
        generator: Draws the points between.
        penalty: Weight of the slope's excess.

    References:
        Gulrajani et al. 2017, "Improved training of Wasserstein GANs", equation 3.
    """
    share = torch.rand((len(real), *[1] * (real.ndim - 1)), generator=generator).to(real)
    between = (share * real + (1 - share) * made).detach().requires_grad_()
    slope = torch.autograd.grad(model(between).sum(), between, create_graph=True)[0].flatten(1).norm(dim=1)
    found: Tensor = model(made).mean() - model(real).mean() + penalty * (slope - 1).square().mean()
    return found


def smoothed(loss: Loss, share: float) -> Loss:
    """Return a cross entropy `loss` whose labels are spread: `share` of each evenly over all classes.

    What `loss` does with weights, ignored labels or several dimensions it goes on doing with the rest of the label.

    Raises:
        InputError: (in a step) targets that are values, not labels.

    References:
        Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """

    def spread(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            raise must_be("recipe.label_smoothing", "0 for targets that are values", share, "Leave it out.")
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            even = F.binary_cross_entropy_with_logits(outputs, torch.full_like(outputs, 0.5))
        else:
            even = F.cross_entropy(outputs, targets, label_smoothing=1.0)
        return (1 - share) * loss(outputs, targets) + share * even

    return spread


LOSSES: dict[str, Loss] = {"mse": mse, "cross_entropy": cross_entropy, "wasserstein": wasserstein}
"""Losses by name."""


def loss_of(loss: str | Loss) -> Loss:
    """Return the loss of a name, or the user's own function unchanged.

    Raises:
        InputError: An unknown name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return LOSSES[loss]
