"""The smallest worked example: a line through noisy points by gradient descent, then the same by the trainer.

    python examples/linear_regression.py

Prints the learning curve and checks the answers against the closed form. Takes a few seconds.
"""

from __future__ import annotations

import torch
from torch import nn

from equipoise.training import Recipe, Samples, fit
from equipoise.training.linear import descend, solve
from equipoise.training.losses import mse


def main() -> None:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 3, generator=source) * torch.tensor([1.0, 0.5, 0.3])  # a narrow valley
    targets = inputs @ torch.tensor([2.0, -1.0, 0.5]) + 3 + 0.1 * torch.randn(200, generator=source)

    exact = solve(inputs, targets)
    line = descend(inputs, targets, steps=100)
    print("gradient descent in plain tensors:")
    for step in (0, 1, 2, 4, 8, 16, 32, 99):
        print(f"  step {step:2d}  mean squared error {line.losses[step]:8.4f}  {'#' * round(5 * line.losses[step])}")
    print(f"  weights {line.weights.tolist()}, bias {line.bias:.4f}")
    print(f"  closed form {exact.weights.tolist()}, bias {exact.bias:.4f}")
    assert torch.allclose(line.weights, exact.weights, atol=1e-3)

    recipe = Recipe(optimizer="sgd", lr=0.1, schedule="constant", weight_decay=0.0, clip=None, batch=200, warmup=0)
    trained = fit(nn.Linear(3, 1), Samples(inputs, targets), loss=mse, steps=200, recipe=recipe)
    weights = trained.model.get_parameter("weight")[0].detach()
    print(f"the same by equipoise.training.fit: weights {weights.tolist()}, last loss {trained.log[-1]:.4f}")
    assert torch.allclose(weights, exact.weights, atol=1e-3)
    print("all agree with the closed form to 0.001")


if __name__ == "__main__":
    main()
