"""Random changes of a batch of images, drawn from an explicit generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]


def shifted(pixels: int, *, flip: bool = False) -> Augment:
    """Return a function that shifts each image of a batch by up to `pixels` and, if asked, mirrors every second one.

    Args:
        pixels: Largest shift along each axis; what comes in from outside is zero, the mean of a normalised image.
        flip: Mirror left to right with probability one half.

    Returns:
        A function of a batch (N, C, H, W) and a generator; it gives a new batch of the same shape.
    """

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        down = torch.randint(0, 2 * pixels + 1, (n, 1), generator=generator)
        right = torch.randint(0, 2 * pixels + 1, (n, 1), generator=generator)
        rows, columns = torch.arange(height) + down, torch.arange(width).expand(n, -1)  # (N, H), (N, W)
        if flip:
            columns = torch.where(torch.rand((n, 1), generator=generator) < 0.5, width - 1 - columns, columns)
        columns = columns + right
        source = rows[:, :, None] * (width + 2 * pixels) + columns[:, None, :]  # (N, H, W) into the padded plane
        planes = F.pad(images, (pixels,) * 4).flatten(2)  # (N, C, H' W')
        return planes.gather(2, source.reshape(n, 1, -1).expand(-1, channels, -1)).reshape(images.shape)

    return augment
