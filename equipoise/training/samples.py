"""Training data as the loop reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from equipoise.errors import must_be


class Batches(Protocol):
    """Training data: a workload's split, or anything that reads like one."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of (inputs, targets) in an order drawn from the generator."""
        ...


@dataclass(frozen=True, eq=False)
class Samples:
    """Data in memory: `inputs` (N, ...) and `targets` (N, ...).

    Example:
        >>> data = Samples(torch.randn(10, 3), torch.arange(10))
        >>> [len(y) for _, y in data.batches(4)]
        [4, 4, 2]
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        """Hold inputs and targets to one length."""
        if len(self.inputs) != len(self.targets):
            lengths = (len(self.inputs), len(self.targets))
            raise must_be("targets", "as many as inputs", lengths, "Check how the two were made.")

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: all samples in order, or full batches (one shorter where there are fewer samples) shuffled."""
        n = len(self)
        if shuffle_with is None:
            for start in range(0, n, size):
                yield self.inputs[start : start + size], self.targets[start : start + size]
            return
        order = torch.randperm(n, generator=shuffle_with)
        for start in range(0, max(n - n % size, min(n, size)), size):
            chosen = order[start : start + size]
            yield self.inputs[chosen], self.targets[chosen]

    def rows(self, chosen: Tensor) -> Samples:
        """Return the samples at the indices `chosen` (int64)."""
        return Samples(self.inputs[chosen], self.targets[chosen])
