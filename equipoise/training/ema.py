"""A running average of the weights: steadier than the last ones while the rate is high."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from equipoise.training.shards import here


class Average:
    """Exponential moving average of a model's parameters and floating-point buffers.

    After update t (from 0) ``average += (1 - d) (weights - average)`` with ``d = min(decay, (1 + t) / (10 + t))``, so that the
    first weights are soon forgotten.

    Args:
        model: As it is trained; it is only read, but for `swapped` and `settle`.
        decay: d of a long run, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live: list[Tensor] = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
        self.values = [value.clone() for value in self.live]

    @property
    def live(self) -> list[Tensor]:
        """Return the model's own tensors; of sharded ones this process's share."""
        return [here(value.detach()) for value in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the weights after `step` (from 0)."""
        torch._foreach_lerp_(self.values, self.live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model the averaged weights for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def restart(self) -> None:
        """Make the model's present weights the average."""
        torch._foreach_copy_(self.values, self.live)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the model the averaged weights for good."""
        torch._foreach_copy_(self.live, self.values)

    @torch.no_grad()
    def _exchange(self) -> None:
        kept = [value.clone() for value in self.live]
        torch._foreach_copy_(self.live, self.values)
        torch._foreach_copy_(self.values, kept)
