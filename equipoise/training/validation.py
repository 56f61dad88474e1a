"""Looking at held-out data during training: the points of a learning curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from equipoise.errors import must_be
from equipoise.training.distribution.base import Distribution
from equipoise.training.losses import Loss
from equipoise.training.recipe import Recipe
from equipoise.training.samples import Batches, channels_last


class Metric(Protocol):
    """A quality to look at beside the loss: a workload's metric, or anything that scores like one."""

    @property
    def maximize(self) -> bool:
        """Return whether more is better."""
        ...

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the score of all outputs (N, ...) and targets (N, ...)."""
        ...


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One look at a model in training.

    Attributes:
        step, epoch, seconds: When: steps made, passes over the data, seconds of training.
        train_loss: Mean over the steps since the point before.
        validation_loss: Of the loss without its penalties, on the whole validation split.
        validation_metric: Score on the validation split, or None where no metric was given.
        lr: Learning rate of the last step.
    """

    step: int
    epoch: float
    seconds: float
    train_loss: float
    validation_loss: float
    validation_metric: float | None
    lr: float


@dataclass(frozen=True)
class Validation:
    """What to look at and how often.

    Attributes:
        data: Validation split.
        loss: (outputs, targets) -> scalar.
        every: Steps from one look to the next; the last step is always looked at.
        metric: What is watched in place of the loss when given.
        batch: Samples at a time.
    """

    data: Batches
    loss: Loss
    every: int
    metric: Metric | None = None
    batch: int = 250

    def look(self, where: Distribution, model: nn.Module, recipe: Recipe) -> tuple[float, float | None]:
        """Return (loss, score or None) of `model`, as placed, which is put into evaluation mode."""
        model.eval()
        total, count = 0.0, 0
        outputs, targets = [], []
        for inputs, wanted in self.data.batches(self.batch):
            if recipe.channels_last:
                inputs = channels_last(inputs)
            found = where.outputs(model, inputs, recipe=recipe)
            wanted = wanted.to(found.device)
            with torch.no_grad():
                total += float(self.loss(found, wanted)) * len(wanted)
            count += len(wanted)
            if self.metric is not None:
                outputs.append(found.cpu())
                targets.append(wanted.cpu())
        if not count:
            raise must_be("validation data", "at least one sample", 0, "Pass a larger validation split, or none.")
        score = None if self.metric is None else self.metric.score(torch.cat(outputs), torch.cat(targets))
        return total / count, score

    def better(self, point: CurvePoint, best: CurvePoint | None) -> bool:
        """Return whether `point` is strictly better than `best` in what is watched."""
        if best is None:
            return True
        if self.metric is None or point.validation_metric is None or best.validation_metric is None:
            return point.validation_loss < best.validation_loss
        gain = point.validation_metric - best.validation_metric
        return gain > 0 if self.metric.maximize else gain < 0
