"""Plain families: multi-layer perceptron, convolutions in a row, and the residual network."""

from __future__ import annotations

import math

from torch import nn

from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import RESOLUTION, Pool, conv, fan_in, front, named, share_out, stem, stem_stride
from equipoise.workloads.models import ResNet, mlp
from equipoise.workloads.task import Shape

STAGES = (1, 1, 1)
"""The plain network has three stages of equal depth; each doubles the channels and halves the map."""


def _mlp(scale: Scale, shape: Shape) -> nn.Sequential:
    """Rectified hidden layers of one width; an input of any shape is flattened first."""
    layers = mlp(math.prod(shape.sample), *[int(scale["width"])] * int(scale["depth"]), shape.outputs)
    return layers if len(shape.sample) == 1 else nn.Sequential(nn.Flatten(), *layers)


def _cnn(scale: Scale, shape: Shape) -> nn.Sequential:
    """Convolutions with BatchNorm in three stages, a max-pool between two stages, a linear layer on the mean."""
    layers, sides = front(shape, scale)
    width, kernel, side = int(scale["width"]), int(scale["kernel"]), min(sides)
    layers["stem"], side = stem(shape, width, side, most=4, kernel=kernel)
    channels = width
    for number, count in enumerate(share_out(int(scale["depth"]), STAGES)):
        stage: list[nn.Module] = []
        if number and side >= 4:
            stage, side = [nn.MaxPool2d(2)], side // 2
        for _ in range(count - (number == 0)):  # the stem is the first layer of the first stage
            stage.append(conv(channels, width << number, kernel))
            channels = width << number
        layers[f"stage{number + 1}"] = nn.Sequential(*stage)
    return named(**layers, pool=Pool(), head=nn.Linear(channels, shape.outputs))


def _cnn_weights(scale: Scale) -> float:
    counts = share_out(int(scale["depth"]), STAGES)
    inner = sum((n - 1) * 4**number for number, n in enumerate(counts))  # between layers of one stage
    return float((inner + 2 + 8) * scale["width"] ** 2 * scale["kernel"] ** 2)


def _resnet(scale: Scale, shape: Shape) -> nn.Module:
    """`ResNet` with 1x1 convolutions where the shape changes: its graph can be pruned, which zero-padding cannot."""
    layers, _ = front(shape, scale)
    width, stride = int(scale["width"]), stem_stride(min(shape.sample[1:]), most=4)
    widths = (width, 2 * width, 4 * width)
    channels, depth = shape.sample[0], int(scale["depth"])
    net = ResNet(depth, classes=shape.outputs, widths=widths, shortcut="B", channels=channels, stem=stride)
    return named(**layers, net=net) if layers else net


def _resnet_weights(scale: Scale) -> float:
    blocks = (scale["depth"] - 2) / 6  # of two layers, in each stage; a stage's first layer reads half the channels
    return scale["width"] ** 2 * (9 * (2 * blocks * (1 + 4 + 16) - 2 - 8) + 2 + 8)


MLP = Family(
    "mlp",
    (
        Dimension("width", 64, (8, 16, 32, 64, 128, 256, 512, 1024)),
        Dimension("depth", 2, (1, 2, 3, 4, 6)),
    ),
    build=_mlp,
    kinds=("vectors", "images", "arrays"),
    cost=lambda scale: scale["width"] ** 2 * max(scale["depth"] - 1, 1),
    growth={"width": 1.0},
    initialize=fan_in,
)
"""Multi-layer perceptron: `depth` hidden layers of `width` units. `grow` counts the weights between hidden layers."""

CNN = Family(
    "cnn",
    (
        Dimension("width", 32, (8, 16, 24, 32, 48, 64, 96, 128), multiple=8),
        Dimension("depth", 6, (3, 6, 9, 12), least=3),
        Dimension("kernel", 3, (3, 5, 7), multiple=2, offset=1),
        RESOLUTION,
    ),
    build=_cnn,
    kinds=("images",),
    cost=_cnn_weights,
    growth={"width": 1.0},
    initialize=fan_in,
)
"""Plain network (Simonyan and Zisserman 2014, with BatchNorm): `depth` convolutions, `width` channels in the first stage."""

RESNET = Family(
    "resnet",
    (
        Dimension("width", 16, (8, 16, 24, 32, 48, 64), multiple=8),
        Dimension("depth", 20, (8, 14, 20, 32, 44, 56, 110), multiple=6, offset=2),
        RESOLUTION,
    ),
    build=_resnet,
    kinds=("images",),
    cost=_resnet_weights,
    growth={"width": 1.0},
    initialize=fan_in,
)
"""Residual network (He et al. 2015, section 4.2): `depth` 6 n + 2 layers, `width` channels in the first of three stages."""
