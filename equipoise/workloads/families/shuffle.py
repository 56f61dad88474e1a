"""ShuffleNetV2: half of the channels pass untouched through each unit, then the halves are shuffled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import (
    RESOLUTION,
    Pool,
    conv,
    fan_in,
    front,
    named,
    share_out,
    stem,
    stem_stride,
    strides,
    to_eight,
)
from equipoise.workloads.task import Shape

UNITS = (4, 8, 4)
"""Units of the three stages in the published network (Ma et al. 2018, table 5)."""

LAST = 16
"""Channels of the last convolution for each channel of the first stage."""


class Unit(nn.Module):
    """A unit on half of the channels (Ma et al. 2018, figure 3c), or on all of them where the shape changes (3d).

    Args:
        inputs, outputs: Channels; even.
        stride, kernel: Of the depthwise convolutions.
        changes: Whether both halves of the output are computed, each from all of the input.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, kernel: int, changes: bool) -> None:
        super().__init__()
        half, taken = outputs // 2, inputs if changes else inputs // 2
        self.kept = None
        if changes:
            self.kept = named(
                filter=conv(inputs, inputs, kernel, stride=stride, groups=inputs, act=None), mix=conv(inputs, half, 1)
            )
        self.body = named(
            mix=conv(taken, half, 1),
            filter=conv(half, half, kernel, stride=stride, groups=half, act=None),
            out=conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        kept, taken = x.chunk(2, dim=1) if self.kept is None else (self.kept(x), x)
        both = torch.stack((kept, self.body(taken)), dim=2)  # (N, C / 2, 2, H, W): neighbors come from different halves
        return both.flatten(1, 2)


def shufflenet(
    shape: Shape,
    *,
    side: int,
    first: int,
    widths: Sequence[int],
    units: Sequence[int],
    last: int,
    kernel: int = 3,
) -> dict[str, nn.Module]:
    """Return the named layers of a ShuffleNetV2.

    Args:
        shape: Of the task.
        side: Of the resized image, in pixels.
        first: Channels of the stem.
        widths, units: Channels and units of the stages.
        last: Channels of the last convolution.
        kernel: Of the depthwise convolutions.
    """
    small = stem_stride(min(shape.sample[1:]), most=4) == 1  # then the first stage keeps the size, too
    layers: dict[str, nn.Module] = {}
    layers["stem"], side = stem(shape, first, side, most=4)
    inputs = first
    for number, (width, count, stride) in enumerate(zip(widths, units, strides(side, (1 if small else 2, 2, 2)), strict=True)):
        head = Unit(inputs, width, stride=stride, kernel=kernel, changes=True)
        rest = [Unit(width, width, stride=1, kernel=kernel, changes=False) for _ in range(count - 1)]
        layers[f"stage{number + 1}"], inputs = nn.Sequential(head, *rest), width
    return {**layers, "last": conv(inputs, last, 1), "pool": Pool(), "head": nn.Linear(last, shape.outputs)}


def _widths(scale: Scale) -> tuple[int, int, int]:
    width = int(scale["width"])
    return width, 2 * width, 4 * width


def _shufflenet(scale: Scale, shape: Shape) -> nn.Sequential:
    layers, sides = front(shape, scale)
    widths, units = _widths(scale), share_out(int(scale["depth"]), UNITS)
    first, last = to_eight(widths[0] / 2), LAST * widths[0]
    return named(
        **layers,
        **shufflenet(shape, side=min(sides), first=first, widths=widths, units=units, last=last, kernel=int(scale["kernel"])),
    )


def _weights(scale: Scale) -> float:
    inputs, total, taps = to_eight(scale["width"] / 2), 0.0, scale["kernel"] ** 2
    for width, count in zip(_widths(scale), share_out(int(scale["depth"]), UNITS), strict=True):
        total += inputs * width + width**2 / 4 + taps * (inputs + width / 2)
        total += (count - 1) * (width**2 / 2 + taps * width / 2)
        inputs = width
    return total + inputs * LAST * scale["width"]


SHUFFLENET = Family(
    "shufflenet",
    (
        Dimension("width", 48, (16, 32, 48, 64, 96, 112, 128), multiple=16),
        Dimension("depth", 16, (3, 8, 12, 16, 24), least=3),
        Dimension("kernel", 3, (3, 5, 7), multiple=2, offset=1),
        RESOLUTION,
    ),
    build=_shufflenet,
    kinds=("images",),
    cost=_weights,
    growth={"width": 1.0},
    initialize=fan_in,
)
"""ShuffleNetV2: `width` channels in the first of three stages (the halves are multiples of 8), `depth` units."""
