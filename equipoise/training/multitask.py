"""Several tasks on one trunk: a head and a loss for each, weighted by hand or by what can be known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.errors import must_be, unknown
from equipoise.training.losses import Loss, cross_entropy, mse


@dataclass(frozen=True)
class Head:
    """One task.

    Attributes:
        module: Features of the trunk -> outputs (N, `outputs`).
        outputs: Classes, or values for each sample.
        labels: Whether the task is to name a class: one column of the targets. Otherwise `outputs` columns of values.
        loss: (outputs, targets) -> scalar; None takes cross entropy for labels, the squared error for values.
        weight: Of its loss in the sum.
    """

    module: nn.Module
    outputs: int
    labels: bool = True
    loss: Loss | None = None
    weight: float = 1.0


class MultiTask(nn.Module):
    """A trunk whose features several heads read, to `fit` with its own `loss` on targets that lie side by side.

    The outputs of the heads lie side by side too, (N, sum of the heads' outputs) in the order of `heads`; `split` takes them
    apart. Targets are (N, columns) in the same order; a float tensor when labels and values are mixed.

    Args:
        trunk: Inputs -> features.
        heads: Name -> head.
        learn_weights: Weigh each loss by a variance that is learned beside the weights: ``L / s^2 + log s`` for labels,
            ``L / (2 s^2) + log s`` for values; validation losses keep the fixed weights. In training mode the log variances
            lie behind the outputs, which is how the loss gets them.

    Example:
        >>> heads = {"digit": Head(nn.Linear(8, 10), 10), "weight": Head(nn.Linear(8, 1), 1, labels=False)}
        >>> model = MultiTask(nn.Linear(4, 8), heads)
        >>> tuple(model(torch.zeros(2, 4)).shape), model.loss(model(torch.zeros(2, 4)), torch.zeros(2, 2)).item() > 0
        ((2, 11), True)

    References:
        Kendall et al. 2018, "Multi-task learning using uncertainty to weigh losses", equations 7 and 10.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, Head], *, learn_weights: bool = False) -> None:
        if not heads:
            raise must_be("heads", "one or more", dict(heads), "Give a head for each task.")
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({name: head.module for name, head in heads.items()})
        self.tasks = dict(heads)
        self.log_variance = nn.Parameter(torch.zeros(len(heads))) if learn_weights else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all heads side by side; in training with learned weights the log variances behind them."""
        features = self.trunk(x)
        outputs = [head(features) for head in self.heads.values()]
        if self.log_variance is not None and self.training:
            outputs.append(self.log_variance.expand(len(x), -1))
        return torch.cat(outputs, dim=1)

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs (N, ...) of each head by name."""
        widths = [task.outputs for task in self.tasks.values()]
        parts = torch.split(outputs[:, : sum(widths)], widths, dim=1)
        return dict(zip(self.tasks, parts, strict=True))

    def targets_of(self, name: str, targets: Tensor) -> Tensor:
        """Return the targets of one task: labels (N,), or values (N, outputs).

        Raises:
            InputError: An unknown task, or too few columns.
        """
        if name not in self.tasks:
            raise unknown("task", name, self.tasks)
        widths = {key: 1 if task.labels else task.outputs for key, task in self.tasks.items()}
        if targets.ndim != 2 or targets.shape[1] != sum(widths.values()):
            shape = f"(N, {sum(widths.values())}), a column for each task"
            raise must_be("targets", f"of shape {shape}", tuple(targets.shape), "Put the tasks' targets side by side.")
        own = dict(zip(widths, torch.split(targets, list(widths.values()), dim=1), strict=True))[name]
        return own[:, 0].long() if self.tasks[name].labels else own.float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted sum of the tasks' losses; pass it to `fit`."""
        losses = []
        for name, part in self.split(outputs).items():
            task = self.tasks[name]
            criterion = task.loss or (cross_entropy if task.labels else mse)
            losses.append(criterion(part, self.targets_of(name, targets)))
        total = torch.stack(losses)
        learned = outputs.shape[1] - sum(task.outputs for task in self.tasks.values())
        if not learned:
            return (total * total.new_tensor([task.weight for task in self.tasks.values()])).sum()
        log_variance = outputs[0, -learned:]
        halves = total.new_tensor([1.0 if task.labels else 0.5 for task in self.tasks.values()])
        return (halves * (-log_variance).exp() * total + log_variance / 2).sum()
