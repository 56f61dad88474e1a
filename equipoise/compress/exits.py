"""Early exit: a small classifier on what a block inside the model has made, which answers where it is sure enough."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.trace import tensors
from equipoise.errors import must_be, unknown

PENALTIES = tuple(10.0**power for power in range(-6, 3))
"""Of the mean power of a feature: what the fit is tried with."""


class Exit(nn.Module):
    """A model, and beside its own class scores (N, C) those of a linear layer on what the part `after` gives: (N, 2 C).

    The layer reads the mean and the largest of each feature, over places (N, F, H, W) or tokens (N, T, F).

    Args:
        model: With class scores (N, C); kept as a copy.
        after: Name of a module in it that runs once and gives one tensor, or several of which the first is meant.
        head: From 2 F features to C scores.
    """

    def __init__(self, model: nn.Module, after: str, head: nn.Linear) -> None:
        super().__init__()
        self.model, self.after, self.head = copy.deepcopy(model), after, head

    def forward(self, single: Any = None, /, **named: Any) -> Tensor:
        """Return the scores of the whole model, then those of the exit, for one input or several by name."""
        given = (single,) if single is not None else ()
        whole, inside = with_inside(lambda: self.model(*given, **named), self.model, self.after)
        return torch.cat((whole, self.head(pooled(inside))), 1)


def with_inside(run: Callable[[], Any], model: nn.Module, after: str) -> tuple[Any, Tensor]:
    """Return what `run` gives, and what the part `after` of the model gave meanwhile."""
    caught: list[Tensor] = []
    handle = model.get_submodule(after).register_forward_hook(lambda _m, _x, out: caught.extend(list(tensors(out))[:1]))
    try:
        answer = run()
    finally:
        handle.remove()
    if len(caught) != 1 or caught[0].dim() not in (2, 3, 4):
        got = f"{len(caught)} of them" if len(caught) != 1 else tuple(caught[0].shape)
        raise must_be("after", "a part that gives one tensor (N, F), (N, T, F) or (N, F, H, W)", got, "Name a block.")
    return answer, caught[0]


def pooled(inside: Tensor) -> Tensor:
    """Return the mean and the largest of each feature: (N, 2 F)."""
    axes = {2: (), 3: (1,), 4: (2, 3)}[inside.dim()]
    return torch.cat((inside.mean(axes), inside.amax(axes)) if axes else (inside, inside), 1)


@torch.no_grad()
def fitted(model: nn.Module, after: str, inputs: Inputs) -> Exit:
    """Return the model with an exit that answers as the whole does, as nearly as a linear layer can: no training, no labels.

    Least squares on the class scores, each less its sample's mean, with the penalty of least error on samples left out one at
    a time (closed form).

    Args:
        model: In evaluation mode, with class scores (N, C); not changed.
        after: See `Exit`.
        inputs: Unlabelled (N, ...), several hundred.
    Raises:
        InputError: No such part, or one that gives no tensor of features.

    References:
        Teerapittayanon et al. 2016, "BranchyNet"; Allen 1974 for the error on samples left out (PRESS).
    """
    parts = dict(model.named_modules())
    if not after or after not in parts:
        raise unknown("after", after, [name for name in parts if name])
    scores, inside = with_inside(lambda: call(model, inputs), model, after)
    if inside.shape == scores.shape and torch.equal(inside, scores):
        raise must_be("after", "a part before the last, past which there is work to save", after, "Name a block.")
    read, wanted = pooled(inside).double(), (scores - scores.mean(1, keepdim=True)).double()
    centre, aim = read.mean(0), wanted.mean(0)
    u, size, turned = torch.linalg.svd(read - centre, full_matrices=False)
    along = u.T @ (wanted - aim)
    best, least = torch.zeros(read.shape[1], wanted.shape[1]).double(), torch.inf
    for penalty in PENALTIES:
        kept = size.square() / (size.square() + penalty * size.square().mean())
        leverage = u.square() @ kept + 1 / len(read)
        error = (((wanted - aim - u @ (kept[:, None] * along)) / (1 - leverage).clamp_min(1e-6)[:, None]) ** 2).mean()
        if float(error) < least:
            least, best = float(error), turned.T @ ((kept / size.clamp_min(1e-12))[:, None] * along)
    head = nn.Linear(read.shape[1], wanted.shape[1])
    head.weight.copy_(best.T)
    head.bias.copy_(aim - centre @ best)
    return Exit(model, after, head).eval()


@dataclass(frozen=True, slots=True)
class Sure:
    """From when on an exit's answer is taken.

    Attributes:
        threshold: Largest class probability of the exit, from which it answers; above 1 it never does.
        leaves: Share of the samples that leave there.
        drop: Accuracy of the whole model less that of both together, in points, on the samples that it was chosen on.
    """

    threshold: float
    leaves: float
    drop: float


def sure(both: Tensor, targets: Tensor, *, drop: float) -> Sure:
    """Return the threshold at which most samples leave, at a drop of at most so many points of accuracy.

    Args:
        both: Scores (N, 2 C) of an `Exit`.
        targets: Class indices (N,).
        drop: Points.
    """
    whole, exit_ = both.chunk(2, 1)
    certain, order = exit_.softmax(1).amax(1).sort(descending=True)
    lost = (whole.argmax(1) == targets)[order].long() - (exit_.argmax(1) == targets)[order].long()
    drops = torch.cat((torch.zeros(1), lost.cumsum(0) * 100 / len(targets)))  # where the k surest leave
    edges = torch.cat((certain[:1] + 1, (certain[:-1] + certain[1:]) / 2, certain[-1:] - 1e-3))
    apart = torch.cat((torch.tensor([True]), certain[:-1] > certain[1:], torch.tensor([True])))
    count = int((apart & (drops <= drop)).nonzero().max())
    return Sure(float(edges[count]), count / len(targets), float(drops[count]))
