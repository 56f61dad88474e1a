"""The net that learns fast: whitened patches, convolutions that begin as the identity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.workloads.families.speed import SPEED, SpeedBlock, SpeedNet, identity_, patch_whitening
from equipoise.workloads.task import Shape


def correlated(n: int = 200, side: int = 12) -> Tensor:
    """Images whose neighbours and channels go together, and whose mean is not 0."""
    noise = torch.randn((n, 3, side + 2, side + 2), generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0]]), noise)
    return F.avg_pool2d(mixed, 3, stride=1) * 3 + torch.tensor([1.0, -2.0, 0.5])[:, None, None]


@pytest.mark.parametrize("size", [2, 3])
def test_whitened_patches_are_uncorrelated_with_variance_1(size: int) -> None:
    images = correlated()
    weights, bias = patch_whitening(images, size=size, epsilon=0.0)
    half = 3 * size**2
    assert tuple(weights.shape) == (2 * half, 3, size, size)
    seen = F.conv2d(images, weights, bias).transpose(0, 1).flatten(1)
    assert torch.allclose(seen.mean(1), torch.zeros(2 * half), atol=1e-3)
    assert torch.allclose(torch.cov(seen[:half]), torch.eye(half), atol=1e-2)
    assert torch.allclose(seen[:half], -seen[half:], atol=1e-4)
    raw = F.unfold(images, size).transpose(0, 1).flatten(1)
    assert not torch.allclose(torch.cov(raw), torch.eye(half), atol=0.5)  # control: they were not


def test_directions_of_large_variance_come_first_and_noise_stays_small() -> None:
    images = correlated()
    images[:, 2] = images[:, 1] + 1e-6 * images[:, 2]  # four of twelve directions carry almost nothing
    weights, bias = patch_whitening(images, epsilon=5e-4)
    variances = F.conv2d(images, weights, bias).transpose(0, 1).flatten(1).var(1)[:12]
    assert bool((variances[:8] > 0.9).all())
    assert bool((variances[8:] < 1e-3).all())


def test_too_few_patches() -> None:
    with pytest.raises(InputError, match="two patches"):
        patch_whitening(torch.zeros(1, 3, 2, 2))


def test_identity_passes_its_input_through() -> None:
    conv = nn.Conv2d(4, 10, 3, padding=1, bias=False)
    before = conv.weight.detach().clone()
    x = torch.randn(2, 4, 5, 7)
    assert not torch.allclose(conv(x)[:, :4], x, atol=0.1)  # control: as it is made
    identity_(conv.weight)
    assert torch.equal(conv(x)[:, :4], x)
    assert torch.equal(conv.weight[4:], before[4:])


def test_a_fresh_block_pools_its_input() -> None:
    """Second oracle for the whole path: identity, pooling and a norm that has seen nothing leave the pooled input."""
    block = SpeedBlock(4, 4, depth=2).eval()
    for conv in block.convs:
        identity_(conv.weight)  # type: ignore[arg-type]
    x = torch.randn(2, 4, 8, 8)
    wanted = F.gelu(F.gelu(F.max_pool2d(x, 2)))
    assert torch.allclose(block(x), wanted, atol=1e-4)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("side", [16, 20, 32])
def test_shapes_at_any_resolution(depth: int, side: int) -> None:
    net = SpeedNet((8, 16, 24), classes=7, depth=depth)
    assert tuple(net(torch.randn(2, 3, side, side)).shape) == (2, 7)


def test_what_is_trained() -> None:
    def trained(net: nn.Module) -> set[str]:
        return {name.split(".")[0] + "." + name.split(".")[-1] for name, p in net.named_parameters() if p.requires_grad}

    net = SpeedNet((8, 8, 8))
    assert trained(net) == {"patches.weight", "patches.bias", "blocks.weight", "blocks.bias", "head.weight"}
    net.whiten(correlated(8, 32))
    assert trained(net) == {"blocks.weight", "blocks.bias", "head.weight"}
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    assert not any(norm.weight.requires_grad for norm in norms)


def test_the_first_layer_follows_the_images() -> None:
    def first(images: Tensor) -> Tensor:
        net = SpeedNet((8, 8, 8))
        net.whiten(images)
        return net.patches.weight.detach()

    images = correlated(8, 32)
    assert torch.equal(first(images), first(images))
    assert not torch.allclose(first(images), first(images.flip(1) * 2))


SHAPES = [Shape((3, 32, 32), 10), Shape((1, 8, 8), 3), Shape((3, 96, 128), 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_family_makes_it_for_any_images(shape: Shape) -> None:
    scale = SPEED.scale(width=8)
    one, same, other = (SPEED.model(scale, shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert tuple(one.eval()(torch.randn(2, *shape.sample)).shape) == (2, shape.outputs)
    assert all(torch.equal(one.state_dict()[key], value) for key, value in same.state_dict().items())
    assert not torch.equal(one.state_dict()["head.weight"], other.state_dict()["head.weight"])


@pytest.mark.parametrize(("width", "depth"), [(8, 6), (32, 6), (16, 9)])
def test_what_growth_counts_are_the_weights_between_blocks(width: int, depth: int) -> None:
    net = SPEED.model({"width": width, "depth": depth}, SHAPES[0], generator=torch.Generator().manual_seed(0))
    kernels = [p.numel() for p in net.parameters() if p.ndim == 4]
    assert SPEED.cost(SPEED.scale(width=width, depth=depth)) == sum(kernels[2:])
    assert kernels[:2] == [12 * 24, 24 * width * 9]  # the patches and what reads them do not grow with width squared


def test_resolution_is_a_share_of_the_data() -> None:
    net = SPEED.model({"resolution": 0.5}, SHAPES[0], generator=torch.Generator().manual_seed(0))
    assert tuple(net(torch.randn(2, 3, 32, 32)).shape) == (2, 10)
    assert SPEED.grow(4)["width"] == 64
