"""Proxy filtering: a small net learns every sample of a batch, the large one only those that the small one finds hardest."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from equipoise.batch import call, take
from equipoise.errors import must_be
from equipoise.training.distribution.base import Objective


class Filtered(nn.Module):
    """Two nets that train side by side; to everybody else this is `net`.

    Both lie in one module, so the one loop trains them with one optimizer and one schedule, and its checkpoint holds both.

    Args:
        net: The net that is wanted.
        proxy: A net for the same inputs and targets at a small part of the cost: its forward and backward pass are paid for
            every sample, of which `net` sees a share.

    Example:
        >>> both = Filtered(nn.Linear(4, 3), nn.Linear(4, 3))
        >>> tuple(both(torch.zeros(2, 4)).shape)
        (2, 3)
    """

    def __init__(self, net: nn.Module, proxy: nn.Module) -> None:
        super().__init__()
        self.net, self.proxy = net, proxy

    def forward(self, x: Tensor) -> Tensor:
        """Return what `net` answers."""
        answer: Tensor = self.net(x)
        return answer


def hardest(losses: Tensor, share: float) -> Tensor:
    """Return the indices (K,) of the largest `losses` (N,), K = `share` of them rounded up, in ascending order of index."""
    if not 0 < share <= 1:
        raise must_be("share", "above 0 and at most 1", share, "0.5 keeps the harder half of each batch.")
    return torch.topk(losses, math.ceil(share * len(losses))).indices.sort().values


def filtered(objective: Objective, loss: Callable[..., Tensor], *, share: float = 0.5) -> Objective:
    """Return an objective for a `Filtered`: its proxy learns the whole batch, its net the share on which the proxy fails most.

    The two terms have no parameter in common, so each net gets the gradients that it would get alone. A limit on the global
    gradient norm would couple them: train with ``clip=None``. The loss that the loop logs is the sum of both.

    Args:
        objective: (net, inputs, targets) -> scalar loss, of the net that is wanted.
        loss: (outputs, targets, reduction="none") -> losses (N,) of the proxy, such as `torch.nn.functional.cross_entropy`.
        share: Of each batch that goes to the net; a batch of N samples costs as much as one of ``share * N``, and the proxy.
    Raises:
        InputError: `share` out of range, or (in a step) a model that is not a `Filtered`.

    References:
        Jordan 2024, airbench96: data filtering by a small proxy. Jiang et al. 2019, "Accelerating deep learning by focusing on
        the biggest losers" (with the net itself in place of the proxy).
    """
    hardest(torch.zeros(1), share)  # a wrong share is told before training begins

    def both(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        if not isinstance(model, Filtered):
            raise must_be("model", "a Filtered(net, proxy)", type(model).__name__, "Wrap the net and its proxy in one.")
        losses = loss(call(model.proxy, inputs), targets, reduction="none")
        kept = hardest(losses.detach(), share)
        return objective(model.net, take(inputs, kept), targets[kept]) + losses.mean()

    return both
