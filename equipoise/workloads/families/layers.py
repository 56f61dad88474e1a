"""What the convolutional families share: how they meet an input of any resolution, and how their weights are drawn.

Data of fewer than 64 pixels a side meet a stem of stride 1; from 64 pixels the stride is 2, and from 128 it is 4 in the
networks whose originals have 4. The data decide, not the resolution, so that a lower resolution never costs more. After that a
stage halves its map only while it has at least 4 pixels a side, so an 8x8 digit ends as 2x2.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Scale
from equipoise.workloads.task import Shape

RESOLUTION = Dimension("resolution", 1.0, (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5), multiple=None, least=0.25, most=4.0)
"""Side of the image inside the model as a share of the data's; 1 leaves it as it comes."""


LOGITS = 0.1
"""Gain of the last layer; see `fan_in`."""


class Resize(nn.Module):
    """Resize images (N, C, H, W) to (N, C, height, width), bilinear, without aliasing."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized images."""
        return F.interpolate(x, size=self.size, mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        """Tell the size."""
        return f"{self.size}"


class Pool(nn.Module):
    """The mean over all positions: (N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        return x.mean((2, 3))


def named(**layers: nn.Module) -> nn.Sequential:
    """Return the layers one after the other, under their names."""
    return nn.Sequential(OrderedDict(layers))


def front(shape: Shape, scale: Scale, *, multiple: int = 1) -> tuple[dict[str, nn.Module], tuple[int, int]]:
    """Return the layer that resizes the images, if one must, and the height and width behind it.

    Args:
        shape: Of the task: (channels, height, width).
        scale: Its ``resolution`` is a share of the data's height and width.
        multiple: Sides are rounded to this.
    """
    before = shape.sample[1], shape.sample[2]
    height, width = (max(1, round(side * scale["resolution"] / multiple)) * multiple for side in before)
    return ({} if (height, width) == before else {"resize": Resize(height, width)}), (height, width)


def stem_stride(side: int, *, most: Literal[2, 4]) -> Literal[1, 2, 4]:
    """Return by how much the stem shrinks images whose shorter side has `side` pixels; see the head of this file."""
    return 1 if side < 64 else 2 if side < 128 or most == 2 else 4


def strides(side: int, wanted: Iterable[int]) -> list[int]:
    """Return `wanted` strides (1 or 2) for a map of `side` pixels, 1 where it has become too small to halve."""
    found = []
    for stride in wanted:
        found.append(stride if side >= 4 else 1)
        side = -(-side // found[-1])
    return found


def conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Return a convolution without bias, BatchNorm and an activation (None: none); the map keeps its size at stride 1."""
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        "norm": nn.BatchNorm2d(outputs),
    }
    return named(**layers, **({} if act is None else {"act": act()}))


def stem(shape: Shape, width: int, side: int, *, most: Literal[2, 4], kernel: int = 3, **options: Any) -> tuple[nn.Module, int]:
    """Return a first convolution (and a max-pool, for stride 4), and the side of the map that they make of `side` pixels."""
    stride = stem_stride(min(shape.sample[1:]), most=most)
    layers: dict[str, nn.Module] = {"first": conv(shape.sample[0], width, kernel, stride=min(stride, 2), **options)}
    if stride == 4:
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return named(**layers), -(-side // stride)


def to_eight(channels: float) -> int:
    """Return the multiple of 8 nearest to `channels`, at least 8 and at most a tenth below (Sandler et al. 2018)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def share_out(total: int, pattern: Sequence[int]) -> list[int]:
    """Return how many of `total` blocks each stage gets: in proportion to `pattern`, at least one each."""
    exact = [total * part / sum(pattern) for part in pattern]
    given = [max(1, int(share)) for share in exact]
    while (left := total - sum(given)) != 0:
        step = 1 if left > 0 else -1
        open_to = [i for i, n in enumerate(given) if n + step >= 1]
        chosen = max(open_to, key=lambda i: step * (exact[i] - given[i]))
        given[chosen] += step
    return given


def fan_in(model: nn.Module, generator: torch.Generator, *, gain: float = 2.0) -> None:
    """Draw the weights of convolutions and linear layers: normal, variance `gain` / inputs of a unit; biases zero.

    The last layer, which gives the logits, has gain `LOGITS`, so that the loss starts near the one of guessing.

    References:
        He et al. 2015, Delving deep into rectifiers, equation 10 (gain 2, for rectifiers); Glorot and Bengio 2010.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        variance = (LOGITS if layer is layers[-1] else gain) / layer.weight[0].numel()
        layer.weight.normal_(0.0, math.sqrt(variance), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
