"""Progressive resizing: small images early in training, full ones at its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.training.distribution.base import Objective


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return square images (N, C, S, S) at `side` pixels a side, each pixel a weighted mean (antialiased bilinear).

    One matrix for the rows and one for the columns: on a CPU several times faster than a general interpolation.
    """
    if side == images.shape[-1]:
        return images
    matrix = _matrix(images.shape[-1], side).to(images)
    return matrix @ images.contiguous() @ matrix.T  # (side, S) (N, C, S, S) (S, side)


def _matrix(source: int, side: int) -> Tensor:
    """Return the weights (side, source) that resize one axis."""
    rows = F.interpolate(torch.eye(source)[None, None], size=(side, source), mode="bilinear", antialias=True)
    return rows[0, 0]


class Growing:
    """An objective whose images grow while the run goes on, and the hook that tells it how far the run is.

    Convolutions of a net that ends in a global pool cost in proportion to the area of their maps, and most of what a net learns
    early needs no fine detail. Pass the object as objective and its `before_step` as the loop's hook.

    Args:
        objective: What is minimized on the resized images.
        sides: (fraction of the run from which on it holds, side in pixels), by rising fraction from 0; the last side should be
            that of the images, or the net's BatchNorm statistics are those of small ones.
    Raises:
        InputError: `sides` that do not start at 0, do not rise, or hold a side below 1.

    Example:
        >>> growing = Growing(lambda model, x, y: x.mean(), [(0, 16), (0.5, 32)])
        >>> [growing.side_at(fraction) for fraction in (0, 0.49, 0.5, 1)]
        [16, 16, 32, 32]

    References:
        Howard et al. 2018, DAWNBench entry of fast.ai: progressive resizing.
    """

    def __init__(self, objective: Objective, sides: Sequence[tuple[float, int]]) -> None:
        starts = [start for start, _ in sides]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or min(side for _, side in sides) < 1:
            raise must_be(
                "sides", "(fraction, pixels) pairs by rising fraction from 0", list(sides), "For example [(0, 16), (0.5, 32)]."
            )
        self.objective, self.sides, self.side = objective, tuple(sides), sides[0][1]

    def side_at(self, fraction: float) -> int:
        """Return the side of the images when `fraction` of the run is done."""
        return [side for start, side in self.sides if start <= fraction][-1]

    def before_step(self, model: nn.Module, fraction: float) -> None:
        """Take note of how far the run is."""
        self.side = self.side_at(fraction)

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the objective on images of the present size."""
        small = shrunk(inputs, self.side)
        if inputs.is_contiguous(memory_format=torch.channels_last):
            small = small.contiguous(memory_format=torch.channels_last)
        return self.objective(model, small, targets)
