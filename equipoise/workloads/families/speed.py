"""A small convolutional net that learns images in few passes on a CPU.

Four choices make it quick to train: a first layer that whitens patches and is never trained, convolutions that begin as the
identity, BatchNorm without a scale, and pooling before it, where there is less to normalize.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be

EPSILON = 5e-4
"""Added to each variance of a whitening; directions with less variance than this (noise) are not blown up."""


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
    """

    def __init__(self, inputs: int, outputs: int, *, depth: int = 2) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * depth
        self.convs = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 3, padding=1, bias=False) for i in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, momentum=0.2) for _ in range(depth))
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H // 2, W // 2)."""
        x = pooled = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](x), 2)))
        last = len(self.convs) - 1
        for i in range(1, last + 1):
            x = self.norms[i](self.convs[i](x))
            x = F.gelu(x + pooled if i == last > 1 else x)
        return x


class SpeedNet(nn.Module):
    """The net: whitened patches, one `SpeedBlock` per width, the largest value of each map, a linear head.

    Args:
        widths: Channels of the blocks; multiples of 8 suit AVX2.
        classes: Outputs.
        channels: Of the images.
        depth: Convolutions in a block, at least 2.
        images: Training images (N, C, H, W) whose patches are whitened; None leaves the first layer as random as the others,
            and trains it.
        identity: Start convolutions as the identity.
        patch: Side of the patches of the first layer.
        scale: Factor on the logits; None is 1 over the width of the head. The head's weights begin with variance 1, and `scale`
            sets how far a step at the common learning rate moves the logits: 1 / width suits AdamW beside Muon, 1/9 plain SGD.

    Example:
        >>> net = SpeedNet(images=torch.randn(8, 3, 32, 32))
        >>> tuple(net(torch.zeros(2, 3, 32, 32)).shape)
        (2, 10)
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 128, 128),
        *,
        classes: int = 10,
        channels: int = 3,
        depth: int = 2,
        images: Tensor | None = None,
        identity: bool = True,
        patch: int = 2,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise must_be("depth", "at least 2", depth, "A block has one convolution before its pooling and some behind it.")
        features = 2 * channels * patch**2
        self.whiten = nn.Conv2d(channels, features, patch)
        ends = [features, *widths]
        self.blocks = nn.Sequential(
            *(SpeedBlock(inputs, outputs, depth=depth) for inputs, outputs in zip(ends, widths, strict=False))
        )
        self.head = nn.Linear(ends[-1], classes, bias=False)
        self.scale = scale or 1 / ends[-1]
        nn.init.normal_(self.head.weight)
        if identity:
            for module in self.blocks.modules():
                if isinstance(module, nn.Conv2d):
                    identity_(module.weight)
        if images is not None:
            weights, bias = patch_whitening(images, size=patch)
            with torch.no_grad():
                self.whiten.weight.copy_(weights)
                self.whiten.bias.copy_(bias)  # type: ignore[union-attr]
            self.whiten.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images (N, C, H, W), at least 18 pixels a side, to logits (N, classes)."""
        x = self.blocks(F.relu(self.whiten(x)))
        out: Tensor = self.head(x.amax((2, 3))) * self.scale
        return out
