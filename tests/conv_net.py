"""A small convolutional net with BatchNorm that has seen data, for the techniques that work alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_net(inputs: Tensor, *, widths: tuple[int, int] = (16, 16), classes: int = 4) -> nn.Sequential:
    """Return the net (N, 3, 8, 8) -> (N, classes) in evaluation mode, its statistics of `inputs`; the same each time."""
    first, second = widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(second, classes),
        )
        model.train()(inputs)
    return model.eval()


def off(model: nn.Module, of: nn.Module, inputs: Tensor) -> float:
    """Return the mean square by which a model's answers are off another's, beside their variance."""
    with torch.no_grad():
        wanted = of(inputs)
        return float((model(inputs) - wanted).square().mean() / wanted.var())
