"""ConvNeXt: large depthwise kernels, LayerNorm and pointwise layers, in the shape of a transformer block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import RESOLUTION, Pool, fan_in, front, named, share_out, stem_stride, strides
from equipoise.workloads.task import Shape

BLOCKS = (3, 3, 9, 3)
"""Blocks of the four stages of ConvNeXt-T (Liu et al. 2022, section 2.2)."""


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class Block(nn.Module):
    """A depthwise convolution and two pointwise layers around a GELU; the input is added.

    The published block also scales its result by 1e-6 at first, for networks of hundreds of layers; ours does not.

    Args:
        channels: In and out.
        kernel: Of the depthwise convolution.
        expansion: How many times the block is wider inside.
    """

    def __init__(self, channels: int, *, kernel: int, expansion: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, expansion * channels)
        self.act = nn.GELU()
        self.narrow = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        out: Tensor = x + self.narrow(self.act(self.widen(y))).permute(0, 3, 1, 2)
        return out


def convnext(
    shape: Shape, *, side: int, width: int, blocks: Sequence[int], kernel: int = 7, expansion: int = 4
) -> dict[str, nn.Module]:
    """Return the named layers of a ConvNeXt.

    Args:
        shape: Of the task.
        side: Of the resized image, in pixels.
        width: Channels of the first stage; each further stage doubles them and halves the map.
        blocks: Of each stage.
        kernel, expansion: Of the blocks.
    """
    patch = stem_stride(min(shape.sample[1:]), most=4)
    first = nn.Conv2d(shape.sample[0], width, 3, padding=1) if patch == 1 else _halving(shape.sample[0], width, patch)
    layers: dict[str, nn.Module] = {"stem": nn.Sequential(first, ChannelNorm(width))}
    steps = strides(side // patch, [1] + [2] * (len(blocks) - 1))
    for number, (count, stride) in enumerate(zip(blocks, steps, strict=True)):
        channels = width << number
        begin = [ChannelNorm(channels // 2), _halving(channels // 2, channels, stride)] if number else []
        stage = (Block(channels, kernel=kernel, expansion=expansion) for _ in range(count))
        layers[f"stage{number + 1}"] = nn.Sequential(*begin, *stage)
    channels = width << (len(blocks) - 1)
    return {**layers, "pool": Pool(), "norm": nn.LayerNorm(channels, eps=1e-6), "head": nn.Linear(channels, shape.outputs)}


def _halving(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A convolution whose patches touch and do not overlap."""
    return nn.Conv2d(inputs, outputs, stride, stride=stride)


def _convnext(scale: Scale, shape: Shape) -> nn.Sequential:
    layers, sides = front(shape, scale)
    return named(
        **layers,
        **convnext(
            shape,
            side=min(sides),
            width=int(scale["width"]),
            blocks=share_out(int(scale["depth"]), BLOCKS),
            kernel=int(scale["kernel"]),
            expansion=int(scale["expansion"]),
        ),
    )


def _weights(scale: Scale) -> float:
    total = 0.0
    for number, count in enumerate(share_out(int(scale["depth"]), BLOCKS)):
        channels = scale["width"] * 2**number
        total += count * (2 * scale["expansion"] * channels**2 + scale["kernel"] ** 2 * channels)
        total += 4 * channels**2 / 2 if number else 0
    return total


def _initialize(model: nn.Module, generator: torch.Generator) -> None:
    """As `fan_in`, gain 1: LayerNorm, not a rectifier, stands before each layer."""
    fan_in(model, generator, gain=1.0)


CONVNEXT = Family(
    "convnext",
    (
        Dimension("width", 32, (16, 24, 32, 48, 64, 96), multiple=8),
        Dimension("depth", 6, (4, 6, 9, 12, 18), least=4),
        Dimension("expansion", 4, (1, 2, 3, 4)),
        Dimension("kernel", 7, (3, 5, 7, 9), multiple=2, offset=1),
        RESOLUTION,
    ),
    build=_convnext,
    kinds=("images",),
    cost=_weights,
    growth={"width": 1.0},
    initialize=_initialize,
)
"""ConvNeXt: `width` channels in the first of four stages, `depth` blocks; 96 and 18 are ConvNeXt-T."""
