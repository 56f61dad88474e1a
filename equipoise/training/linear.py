"""Linear regression by gradient descent: the smallest worked example of training, in plain tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.errors import EquipoiseError, must_be


@dataclass(frozen=True, eq=False)
class Line:
    """``targets ~ inputs @ weights + bias``.

    Attributes:
        weights: (D,).
        bias: ().
        losses: Mean squared error before each step; empty for the closed form.
    """

    weights: Tensor
    bias: Tensor
    losses: tuple[float, ...] = ()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the predicted values (N,) of `inputs` (N, D)."""
        return inputs @ self.weights + self.bias


def descend(inputs: Tensor, targets: Tensor, *, steps: int = 200, lr: float | None = None) -> Line:
    """Fit a line by gradient descent on the mean squared error, from zero.

    Args:
        inputs: (N, D).
        targets: (N,).
        steps: Gradient steps.
        lr: Learning rate; descent converges below twice the default, which is one over the largest curvature. None takes that.
    Raises:
        InputError: Shapes that do not fit together.
        EquipoiseError: The rate is too large and the error grows without bound.
    """
    _check(inputs, targets)
    n = len(inputs)
    weights, bias, losses = inputs.new_zeros(inputs.shape[1]), inputs.new_zeros(()), []
    rate = 1 / curvature(inputs) if lr is None else lr
    for step in range(steps):
        error = inputs @ weights + bias - targets  # (N,)
        losses.append(float(error.square().mean()))
        if not math.isfinite(losses[-1]):
            raise EquipoiseError(
                f"the loss must stay finite; got {losses[-1]} at step {step + 1}. Lower the rate ({rate:.3g})."
            )
        weights = weights - rate * 2 / n * (inputs.T @ error)
        bias = bias - rate * 2 * error.mean()
    return Line(weights, bias, tuple(losses))


def curvature(inputs: Tensor) -> float:
    """Return the largest second derivative of the mean squared error: twice the top eigenvalue of the inputs' moments."""
    padded = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)  # (N, D + 1): the bias is a weight of ones
    return 2 * float(torch.linalg.matrix_norm(padded, 2)) ** 2 / len(inputs)


def solve(inputs: Tensor, targets: Tensor) -> Line:
    """Return the line of least squares in closed form: what descent must come to."""
    _check(inputs, targets)
    padded = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    found = torch.linalg.lstsq(padded, targets[:, None]).solution[:, 0]
    return Line(found[:-1], found[-1])


def _check(inputs: Tensor, targets: Tensor) -> None:
    if inputs.ndim != 2 or targets.ndim != 1 or len(inputs) != len(targets) or not len(inputs):
        shapes = (tuple(inputs.shape), tuple(targets.shape))
        raise must_be("inputs and targets", "of shapes (N, D) and (N,)", shapes, "One row of inputs for each target.")
