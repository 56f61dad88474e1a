"""Progressive resizing: the right size at the right time, and images that stay what they show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.training.resizing import Growing, shrunk


@pytest.mark.parametrize("side", [7, 16, 24, 32])
def test_two_matrices_do_what_torch_interpolates(side: int) -> None:
    images = torch.randn((3, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    assert torch.allclose(shrunk(images, side), wanted, atol=1e-5)
    if side < 32:  # control: without antialiasing it is another image
        plain = F.interpolate(images, size=(side, side), mode="bilinear")
        assert not torch.allclose(plain, wanted, atol=1e-2)


def test_a_flat_image_stays_flat() -> None:
    assert torch.allclose(shrunk(torch.full((1, 1, 32, 32), 3.0), 11), torch.full((1, 1, 11, 11), 3.0), atol=1e-5)


def test_images_grow_with_the_run() -> None:
    seen: list[tuple[int, bool]] = []

    def objective(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((inputs.shape[-1], inputs.is_contiguous(memory_format=torch.channels_last)))
        return inputs.mean()

    growing = Growing(objective, [(0.0, 8), (0.25, 12), (0.75, 16)])
    images = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for fraction in (0.0, 0.2, 0.25, 0.5, 0.75, 0.99):
        growing.before_step(nn.Identity(), fraction)
        growing(nn.Identity(), images, torch.zeros(2))
    assert [side for side, _ in seen] == [8, 8, 12, 12, 16, 16]
    assert all(last for _, last in seen)


@pytest.mark.parametrize("sides", [[], [(0.5, 32)], [(0.0, 16), (0.6, 24), (0.4, 32)], [(0.0, 0)], [(0.0, 16), (0.0, 32)]])
def test_sides_that_make_no_sense(sides: list[tuple[float, int]]) -> None:
    with pytest.raises(InputError, match="sides"):
        Growing(lambda model, x, y: x.mean(), sides)
