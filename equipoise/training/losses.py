"""Losses by name, and the Wasserstein distance: between distributions over ordered classes, and as a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.errors import must_be, unknown

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> scalar loss, a mean over the samples."""


class Divergence(Protocol):
    """How far a student's outputs are from its teacher's; a workload knows its own."""

    @property
    def kind(self) -> str:
        """Return what outputs mean: ``softmax`` (class scores), ``bernoulli`` (yes-or-no scores) or ``values``."""
        ...

    def kept(self, inputs: Inputs, targets: Tensor) -> Tensor | None:
        """Return which positions of these samples count; None where all do."""
        ...

    def logits(self, outputs: Tensor) -> Tensor | None:
        """Return class scores (..., C) with the classes last; None where outputs are none."""
        ...

    def spread(self, wanted: Tensor) -> Tensor | None:
        """Return what `loss` is to take for the spread of outputs in every batch, or None."""
        ...

    def loss(
        self,
        outputs: Tensor,
        wanted: Tensor,
        *,
        temperature: float = 1.0,
        spread: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return the divergence of outputs (N, ...) from those wanted, through which gradients go.

        Args:
            temperature: By which logits are divided.
            spread: Standard deviation of each output where they are values; None takes that of `wanted`.
            kept: Which positions count.
        """
        ...


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
            # with places behind the classes it takes four times as long
            rows = outputs.movedim(1, -1).reshape(-1, outputs.shape[1])
            even = F.cross_entropy(rows, targets.reshape(-1), label_smoothing=1.0)
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
