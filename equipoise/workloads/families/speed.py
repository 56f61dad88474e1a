"""A small convolutional net that learns images in few passes on a CPU.

Four choices make it quick to train: a first layer that whitens patches and is never trained, convolutions that begin as the
identity, BatchNorm without a scale, and pooling before it, where there is less to normalize.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.workloads.families.base import Dimension, Family, Scale
from equipoise.workloads.families.layers import RESOLUTION, front, named, stem_stride
from equipoise.workloads.task import Shape

EPSILON = 0.05
"""Added to each variance of a whitening; directions with less variance than this (noise) are not blown up.

For images of variance 1. Of 5e-4, 0.01 and 0.05, the last learned a JPEG copy of CIFAR-10 best in its first pass (one seed)."""


def patch_whitening(images: Tensor, *, size: int = 2, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """Return weights and bias of a convolution that makes the patches of `images` uncorrelated, of mean 0 and variance 1.

    Args:
        images: (N, C, H, W) as the net will take them; a thousand are enough.
        size: Side of the patches, in pixels.
        epsilon: Added to each variance before its root is taken.

    Returns:
        Weights (2 C size^2, C, size, size), directions of large variance first, and then the same ones negated, so that the
        rectifier behind them loses nothing; bias (2 C size^2,).

    References:
        Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.2.
    """
    patches = F.unfold(images.float(), size).transpose(0, 1).flatten(1)  # (C size^2, N L)
    if patches.shape[1] < 2:
        raise must_be("images", f"at least two patches of {size}x{size}", tuple(images.shape), "Give more or larger images.")
    variances, directions = torch.linalg.eigh(torch.cov(patches))  # ascending
    weights = (directions / (variances.clamp_min(0) + epsilon).sqrt()).T.flip(0)  # (filters, C size^2)
    bias = -weights @ patches.mean(1)
    shape = (-1, images.shape[1], size, size)
    return torch.cat([weights, -weights]).reshape(shape), torch.cat([bias, -bias])


def identity_(weight: Tensor) -> Tensor:
    """Make the first filters of a convolution's `weight` (out, in, k, k), k odd, pass their channel on; return it.

    The filters beyond the number of input channels stay as they are. A deep net then starts out as a shallow one.
    """
    with torch.no_grad():
        nn.init.dirac_(weight[: weight.shape[1]])
    return weight


class SpeedBlock(nn.Module):
    """Convolution, 2x2 max pooling, then norm and GELU; then `depth` - 1 convolutions at half the resolution.

    With three convolutions or more, a shortcut leads around those behind the pooling.

    Args:
        inputs, outputs: Channels.
        depth: Convolutions.
        pool: Whether to halve the map.
    """

    def __init__(self, inputs: int, outputs: int, *, depth: int = 2, pool: bool = True) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * depth
        self.convs = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False) for i in range(depth))
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, momentum=0.2) for _ in range(depth))
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H // 2, W // 2)."""
        x = around = F.gelu(self.norms[0](self.pool(self.convs[0](x))))
        last = len(self.convs) - 1
        for i in range(1, last + 1):
            x = self.norms[i](self.convs[i](x))
            x = F.gelu(x + around if i == last > 1 else x)
        return x


class SpeedNet(nn.Module):
    """The net: a patch layer and a rectifier, one `SpeedBlock` per width, the largest value of each map, a linear head.

    Args:
        widths: Channels of the blocks; multiples of 8 suit AVX2.
        classes: Outputs.
        channels, side: Of the images, and their shorter side in pixels.
        depth: Convolutions in a block, at least 2.
        identity: Start convolutions as the identity.
        scale: Factor on the logits, which sets how far a step at the common learning rate moves them: 4 / width (None) suits
            AdamW beside Muon, 1/9 plain SGD.

    Example:
        >>> net = SpeedNet()
        >>> net.whiten(torch.randn(8, 3, 32, 32))
        >>> tuple(net(torch.zeros(2, 3, 32, 32)).shape)
        (2, 10)
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 128, 128),
        *,
        classes: int = 10,
        channels: int = 3,
        side: int = 32,
        depth: int = 2,
        identity: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise must_be("depth", "at least 2", depth, "A block has one convolution before its pooling and some behind it.")
        stride = stem_stride(side, most=4)
        patch = max(2, stride)
        features, side = 2 * channels * patch**2, (side - patch) // stride + 1
        self.patches = nn.Conv2d(channels, features, patch, stride=stride)
        blocks = []
        for inputs, outputs in itertools.pairwise((features, *widths)):
            blocks.append(SpeedBlock(inputs, outputs, depth=depth, pool=side >= 4))
            side = side // 2 if side >= 4 else side
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.scale = scale or 4 / widths[-1]
        nn.init.normal_(self.head.weight, std=0.1)  # the loss starts near the one of guessing
        if identity:
            for module in self.blocks.modules():
                if isinstance(module, nn.Conv2d):
                    identity_(module.weight)

    def whiten(self, images: Tensor) -> None:
        """Let the first layer whiten the patches of `images` (N, C, H, W), and freeze it.

        A layer that is not trained needs no gradient, nor does what lies before it. Without this call it stays as random as the
        others, and learns as they do.
        """
        weights, bias = patch_whitening(images, size=self.patches.weight.shape[-1])
        self.patches.load_state_dict({"weight": weights, "bias": bias})
        self.patches.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images (N, C, H, W), of half the side that the net was made for or more, to logits (N, classes)."""
        x = self.blocks(F.relu(self.patches(x)))
        out: Tensor = self.head(x.amax((2, 3))) * self.scale
        return out


def _speed(scale: Scale, shape: Shape) -> nn.Module:
    layers, sides = front(shape, scale)
    width, depth = int(scale["width"]), int(scale["depth"]) // 3
    widths = (width, 4 * width, 4 * width)
    net = SpeedNet(widths, classes=shape.outputs, channels=shape.sample[0], side=min(sides), depth=depth)
    return named(**layers, net=net) if layers else net


def _speed_weights(scale: Scale) -> float:
    behind = scale["depth"] / 3 - 1  # convolutions of a block behind its pooling
    return 9 * scale["width"] ** 2 * (4 + 16 + behind * (1 + 16 + 16))


SPEED = Family(
    "speed",
    (
        Dimension("width", 32, (8, 16, 24, 32, 48, 64, 96), multiple=8),
        Dimension("depth", 6, (6, 9), multiple=3, least=6),
        RESOLUTION,
    ),
    build=_speed,
    kinds=("images",),
    cost=_speed_weights,
    growth={"width": 1.0},
)
"""Quick to train (Jordan 2024): `depth` convolutions in three blocks of `width`, four and four times `width` channels."""
