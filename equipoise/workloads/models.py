"""The models of the built-in workloads: small, plain and convolutional."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be

Shortcut = Literal["A", "B"]

DEEPEST = 1202
"""Layers of the deepest network in the paper; a slip of the keyboard beyond it would fill the memory."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them.

    Args:
        inputs, outputs: Channels.
        stride: Of the first convolution.
        shortcut: Where the shape changes: ``A`` subsamples and pads channels with zeros equally on both sides (no
            parameters), ``B`` is a strided 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, shortcut: Shortcut = "A") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padded = stride, (outputs - inputs) // 2
        changes = stride != 1 or inputs != outputs
        self.shortcut: nn.Module = nn.Identity()
        if changes and shortcut == "B":
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        self.pads = changes and shortcut == "A"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        around = self.shortcut(x)
        if self.pads:
            around = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padded, self.padded))
        return F.relu(out + around)


class ResNet(nn.Module):
    """The residual network for small images of He et al. 2015, section 4.2.

    Args:
        depth: 6 n + 2 layers: 20, 32, 44, 56, 110.
        classes: Outputs.
        widths: Channels of the three stages.
        shortcut: ``A`` as in the paper, or ``B``; see `ResidualBlock`.
        channels: Of the images.
        stem: Stride before the first stage: 1 as in the paper; 2 in the first convolution, for images of 64 pixels or more; 4
            by a 3x3 max-pool besides, as in the networks for ImageNet.

    Example:
        >>> sum(p.numel() for p in ResNet(20).parameters())
        269722
    """

    def __init__(
        self,
        depth: int = 20,
        *,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Shortcut = "A",
        channels: int = 3,
        stem: Literal[1, 2, 4] = 1,
    ) -> None:
        super().__init__()
        if not 8 <= depth <= DEEPEST or (depth - 2) % 6:
            raise must_be("depth", f"6 n + 2, from 8 to {DEEPEST}", depth, "Use 20, 32, 44, 56 or 110.")
        if shortcut not in ("A", "B"):
            raise must_be("shortcut", "A or B", shortcut, "A pads with zeros, B is a 1x1 convolution.")
        first, second, third = widths
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, first, 3, stride=min(stem, 2), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.pools = stem == 4
        self.layer1 = _stage(first, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.linear = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pools:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride=stride, shortcut=shortcut)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs) for _ in range(blocks - 1)))


class DigitsNet(nn.Module):
    """A small residual net for 8x8 grey digits: 112 k parameters, 2.7 M MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.block1 = ResidualBlock(32, 32)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block2 = ResidualBlock(64, 64)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, 8, 8) in 0..1 to logits (N, 10)."""
        x = self.block1(F.relu(self.bn1(self.conv1(x))))  # (N, 32, 8, 8)
        x = self.block2(F.relu(self.bn2(self.conv2(x))))  # (N, 64, 4, 4)
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def mlp(*widths: int) -> nn.Sequential:
    """Return a multi-layer perceptron with ReLU between its layers.

    Example:
        >>> sum(p.numel() for p in mlp(10, 50, 3).parameters())
        703
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
