"""What must be kept: a quality metric with its direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.errors import must_be, unknown

Score = Callable[[Tensor, Tensor], Any]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A score of (outputs, targets).

    Attributes:
        name: For tables and reports.
        maximize: Whether more is better.
        function: Whole-split score of outputs (N, ...) and targets (N, ...).
        each: Per-sample values, where the score is made of them; a paired test then needs far fewer samples.
        unit: Points of the metric; accuracy and F1 go from 0 to 100, cross entropy is in nats or bits for each label.
    """

    name: str
    maximize: bool
    function: Score
    each: Callable[[Tensor, Tensor], Tensor] | None = None
    unit: str = "points"

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the score as a number, in points.

        Raises:
            InputError: The metric did not return one number.
        """
        value = self.function(outputs, targets)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise must_be(f"metric {self.name}", "a function that returns one number", value, "Return a float.") from error

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return one value per sample (N,), or None where the metric has none.

        For accuracy 1.0 where the answer is right and 0.0 where not; for errors the sample's own error.
        """
        return None if self.each is None else self.each(outputs, targets)

    def drop(self, baseline: float, value: float) -> float:
        """Return by how many points `value` is worse than `baseline` (negative when better)."""
        return baseline - value if self.maximize else value - baseline


def classes(outputs: Tensor) -> Tensor:
    """Return the predicted class: arg max over dimension 1, or the sign of a single logit."""
    if outputs.ndim == 1:
        return (outputs > 0).long()
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).long()
    return outputs.argmax(dim=1)


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    right = (classes(outputs) == targets.reshape(classes(outputs).shape)).float()
    return right.flatten(1).mean(dim=1) if right.ndim > 1 else right


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return 100 * _correct(outputs, targets).double().mean()


def _macro_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes that occur in the targets or the answers of 2 TP / (2 TP + FP + FN), in points."""
    answers, targets = classes(outputs).flatten(), targets.flatten()
    seen = torch.unique(torch.cat([answers, targets]))
    scores = []
    for label in seen:
        hits = ((answers == label) & (targets == label)).sum()
        scores.append(2 * hits / ((answers == label).sum() + (targets == label).sum()))
    return 100 * torch.stack(scores).double().mean()


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.reshape(outputs.shape)).square().reshape(len(outputs), -1).mean(1)


def _absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.reshape(outputs.shape)).abs().reshape(len(outputs), -1).mean(1)


def _surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Nats by which each label surprises, averaged over the positions of a sample."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().to(outputs.dtype), reduction="none")
    return F.cross_entropy(outputs, targets, reduction="none").reshape(len(outputs), -1).mean(1)


def _bits(outputs: Tensor, targets: Tensor) -> Tensor:
    return _surprise(outputs, targets) / math.log(2)


def _mean_of(each: Callable[[Tensor, Tensor], Tensor]) -> Score:
    return lambda outputs, targets: each(outputs, targets).double().mean()


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, _accuracy, _correct),
    "f1": Metric("f1", True, _macro_f1),
    "cross_entropy": Metric("cross_entropy", False, _mean_of(_surprise), _surprise, unit="nats"),
    "bits_per_character": Metric("bits_per_character", False, _mean_of(_bits), _bits, unit="bits"),
    "mse": Metric("mse", False, _mean_of(_squared), _squared),
    "mae": Metric("mae", False, _mean_of(_absolute), _absolute),
}
"""Metrics by name."""


def metric_of(metric: str | Metric | Score, *, maximize: bool = True) -> Metric:
    """Return the metric of a name, or of the user's own function of (outputs, targets).

    Args:
        metric: A key of `METRICS`, a `Metric`, or a callable that returns one number.
        maximize: Direction of a callable; not used otherwise.
    Raises:
        InputError: An unknown name.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
        return METRICS[metric]
    if not callable(metric):
        raise must_be("metric", "a name or a function of (outputs, targets)", metric, f"Names: {', '.join(METRICS)}.")
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(name, maximize, metric)


def natural_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss that the targets ask for: cross entropy for labels, squared error for values.

    Labels with a single logit per sample get the binary cross entropy.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets.reshape(outputs.shape))
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().to(outputs.dtype))
    return F.cross_entropy(outputs, targets)


LOSSES: dict[str, Loss] = {"natural": natural_loss, "cross_entropy": F.cross_entropy, "mse": F.mse_loss}
"""Losses by name."""


def loss_of(loss: str | Loss) -> Loss:
    """Return the loss of a name, or the user's own function unchanged.

    Raises:
        InputError: An unknown name.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        return LOSSES[loss]
    return loss
