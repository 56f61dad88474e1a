"""Training data as the loop reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, leaves, mapped, take
from equipoise.errors import must_be
from equipoise.training.outputs import switched


class Batches(Protocol):
    """Training data: a workload's split, or anything that reads like one."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield one epoch of (inputs, targets) in an order drawn from the generator."""
        ...


def channels_last(inputs: Inputs) -> Inputs:
    """Return `inputs` with the channels of images last in memory; other arrays as they are."""
    return mapped(inputs, lambda value: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value)


@torch.no_grad()
def bears_channels_last(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model answers a few `inputs` (N, ...) alike with the channels of images last; ``view`` on a map does not.

    It is left as it was, in whatever mode it is. Inputs that hold no image are borne.
    """
    last = channels_last(inputs)
    if all(a is b for a, b in zip(leaves(last), leaves(inputs), strict=True)):
        return True
    try:
        with switched(model, "eval"):
            wanted, found = (list(_tensors(call(model, given))) for given in (inputs, last))
    except RuntimeError:
        return False
    pairs = zip(wanted, found, strict=False)
    return len(wanted) == len(found) and all(a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-4) for a, b in pairs)


def _tensors(answer: Any) -> Iterator[Tensor]:
    """The tensors in what a model answers."""
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, Mapping | list | tuple):
        for part in answer.values() if isinstance(answer, Mapping) else answer:
            yield from _tensors(part)


@dataclass(frozen=True, eq=False)
class Samples:
    """Data in memory: `inputs` (N, ...), one tensor or several by name, and `targets` (N, ...).

    Example:
        >>> data = Samples(torch.randn(10, 3), torch.arange(10))
        >>> [len(y) for _, y in data.batches(4)]
        [4, 4, 2]
    """

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        """Hold inputs and targets to one length."""
        lengths = tuple(len(value) for value in (*leaves(self.inputs), self.targets))
        if len(set(lengths)) > 1:
            raise must_be("targets", "as many as inputs", lengths, "Check how the two were made.")

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches: all samples in order, or full batches (one shorter where there are fewer samples) shuffled."""
        n = len(self)
        if shuffle_with is None:
            for start in range(0, n, size):
                yield take(self.inputs, slice(start, start + size)), self.targets[start : start + size]
            return
        order = torch.randperm(n, generator=shuffle_with)
        for start in range(0, max(n - n % size, min(n, size)), size):
            chosen = order[start : start + size]
            yield take(self.inputs, chosen), self.targets[chosen]

    def rows(self, chosen: Tensor) -> Samples:
        """Return the samples at the indices `chosen` (int64)."""
        return Samples(take(self.inputs, chosen), self.targets[chosen])
