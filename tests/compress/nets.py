"""Tiny nets, one for each way in which a graph can be easy or hard."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vision_names import declare

from equipoise.compress.statistics import is_linear_map
from equipoise.compress.trace import Invocation, watch


class OptionABlock(nn.Module):
    """Basic block whose widening shortcut subsamples and pads channels with zeros: no parameters, hard to trace."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.stride, self.pad = stride, (wide - wide_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class ResNet20(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        entering = widths[0]
        for stage, width in enumerate(widths, 1):
            blocks = []
            for index in range(depth):
                blocks.append(OptionABlock(entering, width, 2 if stage > 1 and index == 0 else 1))
                entering = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.stages = len(widths)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


def small_option_a() -> nn.Module:
    """The hard case in small: two blocks a stage; for `(N, 3, 16, 16)`."""
    return ResNet20((8, 16), depth=2, classes=5)


class ProjectionBlock(nn.Module):
    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or wide_in != wide:
            self.shortcut = nn.Sequential(nn.Conv2d(wide_in, wide, 1, stride), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


def projection_resnet() -> nn.Module:
    """A ResNet whose shortcuts are 1x1 convolutions: streams can be pruned."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        ProjectionBlock(16, 16, 1),
        ProjectionBlock(16, 32, 2),
        ProjectionBlock(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def plain_cnn() -> nn.Module:
    """Convolutions, BatchNorm, a flatten that multiplies the columns, two linear layers; for `(N, 3, 8, 8)`."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )


def mobile_cnn() -> nn.Module:
    """Depthwise-separable convolutions; for `(N, 3, 8, 8)`."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def mlp() -> nn.Module:
    """For `(N, 10)`."""
    return nn.Sequential(nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3))


class TextEncoder(nn.Module):
    """Tokens in, classes out, through two stock encoder layers; for int64 `(N, T)`."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.place = nn.Parameter(torch.randn(1, 12, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens) + self.place[:, : tokens.shape[1]]).mean(1))


class Stubborn(nn.Module):
    """Reshapes with a width written down at construction: its first group must be left whole, the second not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        n, _, h, w = x.shape
        x = x.view(n, 2, 8, h, w).transpose(1, 2).reshape(n, 16, h, w)  # a channel shuffle
        return self.head(F.relu(self.second(x)).mean((2, 3)))


def settled(model: nn.Module, inputs: Tensor, *, seed: int = 0) -> nn.Module:
    """Give every BatchNorm real statistics and a random affine, so that folding it has something to get wrong."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
        for _ in range(3):
            model(inputs)
    return model.eval()


EASY: dict[str, tuple[object, tuple[int, ...]]] = {
    "cnn": (plain_cnn, (3, 8, 8)),
    "mobile": (mobile_cnn, (3, 8, 8)),
    "mlp": (mlp, (10,)),
    "projection": (projection_resnet, (3, 16, 16)),
    "option_a": (small_option_a, (3, 16, 16)),
}


def fingerprint(model: nn.Module) -> str:
    """Everything a technique must not change in the model it is given: structure, mode, hooks, values, gradients."""
    digest = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        digest.update(f"{name} {type(module)} {module.training} {hooks}".encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {value.requires_grad} {value.grad is None}".encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


def made(name: str, *, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Build one of the image or table nets, settled, with 64 random inputs."""
    builder, shape = EASY[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inputs = torch.randn(64, *shape)
        return settled(builder(), inputs, seed=seed), inputs  # type: ignore[operator]


def from_timm(name: str, **options: object) -> nn.Module:
    """Build a model of timm from its configuration, untrained."""
    declare()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, **options)


def only_product(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Invocation, Tensor]:
    """Run a layer on random inputs of a shape; return the one product in it and what that gave."""
    calls: list[tuple[Invocation, Tensor]] = []

    def answer(invocation: Invocation) -> Tensor:
        result: Tensor = invocation.run()
        if is_linear_map(invocation):
            calls.append((invocation, result))
        return result

    watch(layer, torch.randn(*shape, generator=torch.Generator().manual_seed(0)), answer)
    (found,) = calls
    return found
