"""Small problems and nets that the training tests share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.training import Progress, Samples


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classes(n: int = 256, *, seed: int = 1) -> Samples:
    """Points in 4 dimensions, 3 classes."""
    inputs = torch.randn(n, 4, generator=seeded(seed))
    return Samples(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())


def mlp(seed: int = 3, *, norm: bool = False, dropout: float = 0.0, outputs: int = 3) -> nn.Sequential:
    """4 -> 16 -> 16 -> outputs; the two inner layers are blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        def block(width: int) -> nn.Sequential:
            inner: list[nn.Module] = [nn.Linear(width, 16), nn.BatchNorm1d(16) if norm else nn.LayerNorm(16), nn.ReLU()]
            return nn.Sequential(*inner, nn.Dropout(dropout))

        return nn.Sequential(block(4), block(16), nn.Linear(16, outputs))


def jitter(inputs: Tensor, source: torch.Generator) -> Tensor:
    return inputs + 0.05 * torch.randn(inputs.shape, generator=source)


class Accuracy:
    """A metric as the trainer wants it."""

    maximize = True

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).float().mean())


class Killed(Exception):
    """Stands for a kill between two steps."""


def kill_at(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return on_step


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())
