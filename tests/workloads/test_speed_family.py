"""The net that learns fast: whitened patches, convolutions that begin as the identity."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.workloads.families.speed import SpeedBlock, SpeedNet, identity_, patch_whitening


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
    weights, bias = patch_whitening(images)
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
@pytest.mark.parametrize("side", [20, 32])
def test_shapes_at_any_resolution(depth: int, side: int) -> None:
    net = SpeedNet((8, 16, 24), classes=7, depth=depth)
    assert tuple(net(torch.randn(2, 3, side, side)).shape) == (2, 7)


def test_what_is_trained() -> None:
    def trained(net: nn.Module) -> set[str]:
        return {name.split(".")[0] + "." + name.split(".")[-1] for name, p in net.named_parameters() if p.requires_grad}

    assert trained(SpeedNet((8, 8, 8), images=correlated(8, 32))) == {"blocks.weight", "blocks.bias", "head.weight"}
    assert trained(SpeedNet((8, 8, 8))) == {"whiten.weight", "whiten.bias", "blocks.weight", "blocks.bias", "head.weight"}
    norms = [m for m in SpeedNet((8, 8, 8)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6
    assert not any(norm.weight.requires_grad for norm in norms)


def test_weights_follow_the_seed_and_the_first_layer_the_images() -> None:
    def made(seed: int, images: Tensor) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return copy.deepcopy(SpeedNet((8, 8, 8), images=images, identity=False).state_dict())

    images = correlated(8, 32)
    one, same, other = made(0, images), made(0, images), made(1, images)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert torch.equal(one["whiten.weight"], other["whiten.weight"])
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert not torch.allclose(one["whiten.weight"], made(0, images.flip(1) * 2)["whiten.weight"])
