"""Inverted residuals: MobileNetV2, and EfficientNet with its compound scaling.

At width 32, the full depth and expansion 6 these are the published networks themselves: 3,504,872 and 5,288,548 parameters for
1000 classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import RESOLUTION, Pool, conv, fan_in, front, named, share_out, stem, strides, to_eight
from equipoise.workloads.task import Shape

REFERENCE_WIDTH = 32
"""Channels of the stem in the published networks; all others scale with it, rounded to multiples of 8."""

LAST = 1280 / 32
"""Channels of the last convolution for each channel of the stem."""

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15
"""Growth of depth, width and resolution for one step of compound scaling (Tan and Le 2019, section 3.3): FLOPs double."""


@dataclass(frozen=True)
class Stage:
    """Blocks of one width: output `channels` in the published network, how many, stride of the first one, kernel."""

    channels: int
    blocks: int
    stride: int
    kernel: int = 3


MOBILENET_STAGES = (
    Stage(16, 1, 1),
    Stage(24, 2, 2),
    Stage(32, 3, 2),
    Stage(64, 4, 2),
    Stage(96, 3, 1),
    Stage(160, 3, 2),
    Stage(320, 1, 1),
)
"""Sandler et al. 2018, table 2; the first stage has no expansion."""

EFFICIENTNET_STAGES = (
    Stage(16, 1, 1),
    Stage(24, 2, 2),
    Stage(40, 2, 2, 5),
    Stage(80, 3, 2),
    Stage(112, 3, 1, 5),
    Stage(192, 4, 2, 5),
    Stage(320, 1, 1),
)
"""Tan and Le 2019, table 1."""


class SqueezeExcite(nn.Module):
    """Scale each channel by what a small network makes of all channels' means (Hu et al. 2017)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.SiLU()
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * torch.sigmoid(self.excite(self.act(self.squeeze(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel alone, narrow again; the input is added where the shape stays.

    Args:
        inputs, outputs: Channels.
        stride, kernel: Of the depthwise convolution.
        expansion: How many times the block is wider inside; 1 leaves the first convolution out.
        act: Activation.
        squeezed: Inner channels of a `SqueezeExcite` behind the depthwise convolution; 0 has none.
    """

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, kernel: int, expansion: int, act: type[nn.Module], squeezed: int = 0
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: dict[str, nn.Module] = {} if expansion == 1 else {"widen": conv(inputs, inner, 1, act=act)}
        layers["filter"] = conv(inner, inner, kernel, stride=stride, groups=inner, act=act)
        if squeezed:
            layers["excite"] = SqueezeExcite(inner, squeezed)
        self.body = named(**layers, narrow=conv(inner, outputs, 1, act=None))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.adds else out


@dataclass(frozen=True)
class _Block:
    stage: int
    inputs: int
    outputs: int
    stride: int
    kernel: int
    expansion: int


def _plan(stages: tuple[Stage, ...], scale: Scale) -> list[_Block]:
    """Every block of a scale, in order."""
    plan: list[_Block] = []
    factor, inputs = scale["width"] / REFERENCE_WIDTH, int(scale["width"])
    counts = share_out(int(scale["depth"]), [stage.blocks for stage in stages])
    for number, (stage, count) in enumerate(zip(stages, counts, strict=True)):
        outputs, kernel = to_eight(stage.channels * factor), int(scale.get("kernel", stage.kernel))
        for block in range(count):
            expansion = 1 if number == 0 else int(scale["expansion"])
            plan.append(_Block(number, inputs, outputs, stage.stride if block == 0 else 1, kernel, expansion))
            inputs = outputs
    return plan


def _network(scale: Scale, shape: Shape, stages: tuple[Stage, ...], act: type[nn.Module], *, excite: bool) -> nn.Sequential:
    layers, sides = front(shape, scale)
    layers["stem"], side = stem(shape, int(scale["width"]), min(sides), most=2, act=act)
    plan = _plan(stages, scale)
    parts: list[list[nn.Module]] = [[] for _ in stages]
    for block, stride in zip(plan, strides(side, [block.stride for block in plan]), strict=True):
        squeezed = max(1, block.inputs // 4) if excite else 0
        parts[block.stage].append(
            InvertedResidual(
                block.inputs,
                block.outputs,
                stride=stride,
                kernel=block.kernel,
                expansion=block.expansion,
                act=act,
                squeezed=squeezed,
            )
        )
    layers |= {f"stage{number + 1}": nn.Sequential(*part) for number, part in enumerate(parts)}
    last = to_eight(LAST * scale["width"])
    layers["last"] = conv(plan[-1].outputs, last, 1, act=act)
    return named(**layers, pool=Pool(), head=nn.Linear(last, shape.outputs))


def _mobilenet(scale: Scale, shape: Shape) -> nn.Sequential:
    return _network(scale, shape, MOBILENET_STAGES, nn.ReLU6, excite=False)


def _efficientnet(scale: Scale, shape: Shape) -> nn.Sequential:
    return _network(scale, shape, EFFICIENTNET_STAGES, nn.SiLU, excite=True)


def _weights(block: _Block) -> int:
    inner = block.inputs * block.expansion
    widen = 0 if block.expansion == 1 else block.inputs * inner
    return widen + inner * block.kernel**2 + inner * block.outputs


def _mobilenet_weights(scale: Scale) -> float:
    plan = _plan(MOBILENET_STAGES, scale)
    return sum(map(_weights, plan)) + plan[-1].outputs * LAST * scale["width"]


def _efficientnet_macs(scale: Scale) -> float:
    """Multiplications for each pixel of an input that every stage can halve."""
    total, pixels = 0.0, scale["resolution"] ** 2
    plan = _plan(EFFICIENTNET_STAGES, scale)
    for block in plan:
        widen = 0 if block.expansion == 1 else block.inputs**2 * block.expansion
        total += widen * pixels
        pixels /= block.stride**2
        total += (_weights(block) - widen) * pixels
    return total + plan[-1].outputs * LAST * scale["width"] * pixels


MOBILENET = Family(
    "mobilenet",
    (
        Dimension("width", 16, (8, 16, 24, 32, 40, 48), multiple=8),
        Dimension("depth", 17, (7, 10, 14, 17, 24), least=7),
        Dimension("expansion", 6, (1, 2, 3, 4, 6)),
        Dimension("kernel", 3, (3, 5, 7), multiple=2, offset=1),
        RESOLUTION,
    ),
    build=_mobilenet,
    kinds=("images",),
    cost=_mobilenet_weights,
    growth={"width": 1.0},
    initialize=fan_in,
)
"""MobileNetV2: `width` channels in the stem, `depth` inverted residuals in seven stages."""

EFFICIENTNET = Family(
    "efficientnet",
    (
        Dimension("width", 32, (8, 16, 24, 32, 40, 48), multiple=8),
        Dimension("depth", 16, (7, 12, 16, 20, 26), least=7),
        Dimension("expansion", 6, (1, 2, 3, 4, 6)),
        RESOLUTION,
    ),
    build=_efficientnet,
    kinds=("images",),
    cost=_efficientnet_macs,
    growth={"depth": 1.0, "width": math.log(BETA) / math.log(ALPHA), "resolution": math.log(GAMMA) / math.log(ALPHA)},
    grows="flops",
    initialize=fan_in,
)
"""EfficientNet: B0 by default; `grow` scales depth, width and resolution together, `grow(2)` being about one step."""
