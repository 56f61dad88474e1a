"""What must be kept: a quality metric with its direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.errors import must_be, unknown

Score = Callable[[Tensor, Tensor], Any]
Loss = Callable[[Tensor, Tensor], Tensor]

Examples = Callable[[Any, Any], list[dict[str, Any]]]
"""(model, split) -> a few answers to be shown, each with ``source``, ``written`` and ``wanted`` (lists of pieces of text), and
``shares`` [[share of each piece of the source in what was looked up after each written one]], or None."""

LONGEST_NAME = 200


ALIKE = 1e-4
"""A score is the mean of its per-sample values where the two differ by less than this share."""


@dataclass(frozen=True)
class Scores:
    """What a quality says of a whole split.

    Attributes:
        value: In points.
        each: Per-sample values (N,), in points too, whose mean is `value`; None where it is no mean of such values (F1, BLEU,
            a rank correlation), and is then read again on resamples.
    """

    value: float
    each: Tensor | None = None


class Quality(Protocol):
    """A quality that reads a whole split; pass it as ``metric=``.

    It may also say its ``name``, whether to ``maximize`` it (True where it does not say) and the ``unit`` of a point. A method
    ``ask`` (see `Ask`) puts the questions to the model itself; ``examples`` (see `Examples`) is shown on the page of a run.
    """

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the score of outputs (N, ...) and targets (N, ...), and of each sample where it is their mean."""
        ...


Ask = Callable[[Callable[[Any], Tensor], Any], tuple[Tensor, Tensor]]
"""(run, split) -> (outputs, targets), for a quality that takes more than one call of the model for a sample: a sentence that
is written word by word, a drive. ``run`` maps a batch of inputs to outputs, and may be called as often as need be. What comes
back is what `Quality.read` is given, a row for whatever is judged (a sentence, a drive), in an order of the split's alone."""


@dataclass(frozen=True)
class Metric:
    """A score of (outputs, targets): a `Quality` made of a function.

    A drop is counted in points, so that a bound such as ``drop<=1`` means something. Of a score that goes from 0 to 100 one
    point is 1. Of a score that is a fraction (an accuracy of 0.98, R squared, AUC) it is 0.01: see `scale`. Of an error in
    units of its own (mean absolute error in years, nats) it is one such unit.

    Attributes:
        name: For tables and reports; nothing is decided by it.
        maximize: Whether more is better.
        function: Whole-split score of outputs (N, ...) and targets (N, ...): one number.
        each: Per-sample values (N,), where the score is their mean (or 100 times it); a paired test then needs no resampling.
        unit: What one point is called: ``points`` of 100, nats, bits, units of the targets.
        scale: Points for 1 of what `function` returns: 100 for fractions, 1 for anything else. None lets a workload read it
            off the values that the function gives (`meaning.settled`); until then it counts as 1.
        labels: Whether it is of class labels (True) or of values (False); None where that is not known of it.
        ask: Puts the questions to the model, where one call for each sample is not all; see `Ask`. Such a metric says nothing
            of what the outputs of one call mean, and is not looked at during training: the loss is.
        examples: Answers that the page of a training run shows; see `Examples`.

    Example:
        >>> top1 = Metric("top1", True, lambda outputs, targets: (outputs.argmax(1) == targets).float().mean(), scale=100)
        >>> top1.score(torch.eye(4), torch.tensor([0, 1, 2, 0])), top1.point
        (75.0, 'one point is 0.01 of top1')
    """

    name: str
    maximize: bool
    function: Score
    each: Callable[[Tensor, Tensor], Tensor] | None = None
    unit: str = "points"
    scale: float | None = None
    labels: bool | None = None
    ask: Ask | None = None
    examples: Examples | None = None

    def __post_init__(self) -> None:
        """Hold the scale to a positive number, and the name to what a table and a manifest can show."""
        printable("metric.name", self.name)
        for name, value, gives in (("function", self.function, "one number"), ("each", self.each, "one value per sample")):
            if not callable(value) and (name == "function" or value is not None):
                raise must_be(f"metric.{name}", "a function of (outputs, targets)", value, f"It returns {gives}.")
        if not isinstance(self.maximize, bool):
            raise must_be("metric.maximize", "True or False", self.maximize, "Say whether more is better.")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise must_be("metric.scale", "a positive number, or None", self.scale, "Write 100 for fractions, 1 for points.")

    @property
    def of_outputs(self) -> Metric | None:
        """The metric where it reads what one call of the model gives; None where it asks for itself."""
        return self if self.ask is None else None

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the score as a number, in points.

        Raises:
            InputError: The metric did not return one number.
        """
        return (self.scale or 1.0) * number(self.name, self.function(outputs, targets))

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the score and, where it is their mean, the value of each sample, all in points.

        The values that `each` gives are used only where their mean is the score, in points or as `function` says it: the score
        decides.
        """
        value = self.score(outputs, targets)
        if self.each is None or not len(targets):
            return Scores(value)
        found = self.each(outputs, targets).detach().double().reshape(-1)
        factor = self._points(value, float(found.mean()))
        return Scores(value, None if factor is None else factor * found)

    def _points(self, value: float, mean: float) -> float | None:
        """Points for 1 of the per-sample values; None where the score is not made of them."""
        if value == mean == 0:
            return 100.0  # the wider reading; all values are the same anyway
        factors = (1.0, 100.0, self.scale or 1.0)
        return next((f for f in factors if abs(value - f * mean) <= ALIKE * max(abs(value), 1e-12)), None)

    def drop(self, baseline: float, value: float) -> float:
        """Return by how many points `value` is worse than `baseline` (negative when better)."""
        return baseline - value if self.maximize else value - baseline

    @property
    def point(self) -> str:
        """What a drop of one point is, in words."""
        if self.unit != "points":
            return f"one point is 1 of {self.name}, in {self.unit}"
        return f"one point is {1 / (self.scale or 1.0):g} of {self.name}"

    def about(self) -> dict[str, Any]:
        """Return what a study records of the metric, as plain JSON data."""
        return {
            "name": self.name,
            "maximize": self.maximize,
            "unit": self.unit,
            "scale": self.scale or 1.0,
            "point": self.point,
        }


def printable(what: str, name: str | None) -> str | None:
    """Return a name that can stand in a table, a file and a manifest.

    Raises:
        InputError: It has line breaks or other characters that cannot be printed, or is too long.
    """
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
        raise must_be(what, f"1 to {LONGEST_NAME} printable characters", name, "Write it on one line.")
    return name


def number(name: str, value: Any) -> float:
    """Return what a metric gave as a float: a number, or a tensor or array of one element.

    Raises:
        InputError: Anything else; text too, since "98 %" does not say whether it is a fraction.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError(value)
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise must_be(f"metric {name}", "a function that returns one number", value, "Return a float.") from error


def class_axis(outputs: Tensor, targets: Tensor) -> int:
    """Return where the classes lie in outputs for labels `targets`: dimension 1, or the last where only that fits.

    Example:
        >>> words = torch.zeros(8, 12, dtype=torch.long)
        >>> class_axis(torch.zeros(8, 50, 12), words), class_axis(torch.zeros(8, 12, 50), words)
        (1, 2)
    """
    dense = outputs.ndim > 2 and targets.ndim == outputs.ndim - 1
    if dense and targets.shape == outputs.shape[:-1] and targets.shape[1:] != outputs.shape[2:]:
        return outputs.ndim - 1
    return 1


def one_score_each(outputs: Tensor, targets: Tensor) -> bool:
    """Whether there is one score for each label: a single logit, or several yes-or-no labels of a sample."""
    return outputs.numel() == targets.numel() and not one_hot(outputs, targets)


def one_hot(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets (N, C) spread one label of each sample over the classes: every row adds up to 1."""
    if targets.shape != outputs.shape or targets.ndim != 2 or targets.shape[1] < 2:
        return False
    rows = targets.double()
    return bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-4).all())


def classes(outputs: Tensor, threshold: float = 0.0) -> Tensor:
    """Return the predicted class: arg max over dimension 1, or whether a single score lies above `threshold`."""
    if outputs.ndim == 1:
        return (outputs > threshold).long()
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > threshold).long()
    return outputs.argmax(dim=1)


def labels(outputs: Tensor, targets: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the answers and what they ought to be, as whole numbers of one shape.

    Args:
        outputs: Scores of the classes along `class_axis`, or one score for each label.
        targets: Labels; 0/1 labels of the outputs' shape may be floating-point numbers.
        threshold: Above it a single score says yes: 0 for logits, 0.5 for probabilities.
    """
    if one_hot(outputs, targets):
        return outputs.argmax(1), targets.argmax(1)
    if one_score_each(outputs, targets):
        return (outputs.reshape(targets.shape) > threshold).long(), targets.round().long()
    answers = outputs.argmax(class_axis(outputs, targets))
    return answers, targets.reshape(answers.shape).long()


def _correct(outputs: Tensor, targets: Tensor, threshold: float = 0.0) -> Tensor:
    answers, wanted = labels(outputs, targets, threshold)
    return (answers == wanted).float().reshape(len(outputs), -1).mean(dim=1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return 100 * _correct(outputs, targets).double().mean()


def _correct_by_half(outputs: Tensor, targets: Tensor) -> Tensor:
    return _correct(outputs, targets, 0.5)


def _accuracy_by_half(outputs: Tensor, targets: Tensor) -> Tensor:
    return 100 * _correct_by_half(outputs, targets).double().mean()


def _macro_f1(outputs: Tensor, targets: Tensor, threshold: float = 0.0) -> Tensor:
    """Mean of 2 TP / (2 TP + FP + FN), in points: over the classes, or over the labels where a sample has several.

    What occurs neither in the targets nor in the answers is left out.
    """
    answers, wanted = labels(outputs, targets, threshold)
    if wanted.ndim > 1 and wanted.shape == outputs.shape and wanted.shape[1] > 1:
        columns = [(answers[:, i].flatten(), wanted[:, i].flatten(), torch.tensor(1)) for i in range(wanted.shape[1])]
    else:
        answers, wanted = answers.flatten(), wanted.flatten()
        columns = [(answers, wanted, label) for label in torch.unique(torch.cat([answers, wanted]))]
    scores = []
    for given, right, label in columns:
        hits, seen = ((given == label) & (right == label)).sum(), (given == label).sum() + (right == label).sum()
        if seen:
            scores.append(2 * hits / seen)
    return 100 * torch.stack(scores).double().mean() if scores else torch.tensor(100.0)


def _macro_f1_by_half(outputs: Tensor, targets: Tensor) -> Tensor:
    return _macro_f1(outputs, targets, 0.5)


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.reshape(outputs.shape)).square().reshape(len(outputs), -1).mean(1)


def _absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.reshape(outputs.shape)).abs().reshape(len(outputs), -1).mean(1)


def _surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Nats by which each label surprises, averaged over the positions of a sample."""
    if one_score_each(outputs, targets):
        wanted = targets.reshape(outputs.shape).to(outputs.dtype)
        found = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    else:
        scores = outputs.movedim(class_axis(outputs, targets), 1)
        wanted = targets.to(outputs.dtype) if one_hot(outputs, targets) else targets
        found = F.cross_entropy(scores, wanted, reduction="none")
    return found.reshape(len(outputs), -1).mean(1)


def _surprise_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    return _surprise(unsquashed(outputs, one_score_each(outputs, targets)), targets)


def unsquashed(probabilities: Tensor, one_score: bool) -> Tensor:
    """Return the logits of probabilities, kept finite: log p, or log p / (1 - p) where each stands alone."""
    least = 1e-7
    p = probabilities.clamp(least, 1 - least)
    return p.log() - (-p).log1p() if one_score else p.log()


def _bits(outputs: Tensor, targets: Tensor) -> Tensor:
    return _surprise(outputs, targets) / math.log(2)


def _bits_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    return _surprise_of_probabilities(outputs, targets) / math.log(2)


def _mean_of(each: Callable[[Tensor, Tensor], Tensor]) -> Score:
    return lambda outputs, targets: each(outputs, targets).double().mean()


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, _accuracy, _correct, scale=1, labels=True),
    "f1": Metric("f1", True, _macro_f1, scale=1, labels=True),
    "cross_entropy": Metric("cross_entropy", False, _mean_of(_surprise), _surprise, unit="nats", scale=1, labels=True),
    "bits_per_character": Metric("bits_per_character", False, _mean_of(_bits), _bits, unit="bits", scale=1, labels=True),
    "mse": Metric("mse", False, _mean_of(_squared), _squared, unit="squared units of the targets", scale=1, labels=False),
    "mae": Metric("mae", False, _mean_of(_absolute), _absolute, unit="units of the targets", scale=1, labels=False),
}
"""Metrics by name."""

OF_PROBABILITIES: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, _accuracy_by_half, _correct_by_half, scale=1, labels=True),
    "f1": Metric("f1", True, _macro_f1_by_half, scale=1, labels=True),
    "cross_entropy": Metric(
        "cross_entropy",
        False,
        _mean_of(_surprise_of_probabilities),
        _surprise_of_probabilities,
        unit="nats",
        scale=1,
        labels=True,
    ),
    "bits_per_character": Metric(
        "bits_per_character", False, _mean_of(_bits_of_probabilities), _bits_of_probabilities, "bits", 1, True
    ),
}
"""The same metrics for a model that ends in a sigmoid or a softmax: one half parts yes from no, and p is not squashed again."""


def metric_of(metric: str | Metric | Quality | Score, *, maximize: bool = True) -> Metric:
    """Return the metric of a name, or of the user's own function of (outputs, targets).

    Args:
        metric: A key of `METRICS`, a `Metric`, an object that reads a split (`Quality`), or a callable that returns one number;
            how many points its values are is read off them by the workload.
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
    if hasattr(metric, "read") and not isinstance(metric, type):
        return _reading(metric, maximize=maximize)
    if not callable(metric) or isinstance(metric, type):  # a class is called to be made, not to score
        raise must_be("metric", "a name or a function of (outputs, targets)", metric, f"Names: {', '.join(METRICS)}.")
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(name, maximize, metric)


def _reading(quality: Any, *, maximize: bool) -> Metric:
    """Return the metric that is read by an object of the user's own, in points as they are."""
    name = getattr(quality, "name", type(quality).__name__)

    def read(outputs: Tensor, targets: Tensor) -> Scores:
        found = quality.read(outputs, targets)
        if not isinstance(found, Scores):
            raise must_be(f"metric {name}", "an object whose read returns Scores(value, each)", found, "See workloads.Scores.")
        return found

    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        found = read(outputs, targets).each
        return torch.full((len(targets),), math.nan) if found is None else torch.as_tensor(found)

    better, unit = getattr(quality, "maximize", maximize), getattr(quality, "unit", "points")
    own = {part: getattr(quality, part, None) for part in ("ask", "examples")}
    return Metric(name, bool(better), lambda outputs, targets: read(outputs, targets).value, each, unit, scale=1, **own)


def natural_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss that the targets ask for: cross entropy for labels, squared error for values.

    Whole numbers are labels where there is a score for each class, and where there is one score for each of them if all are 0
    or 1 (binary cross entropy); other whole numbers, such as ages, are values.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets.reshape(outputs.shape))
    if one_score_each(outputs, targets) and not yes_or_no(targets):
        return F.mse_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))
    if one_score_each(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape).to(outputs.dtype))
    return F.cross_entropy(outputs.movedim(class_axis(outputs, targets), 1), targets)


def natural_loss_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of a model that ends in a sigmoid or a softmax."""
    return _surprise_of_probabilities(outputs, targets).mean()


def yes_or_no(targets: Tensor) -> bool:
    """Whether every target is 0 or 1."""
    return bool(((targets == 0) | (targets == 1)).all())


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


def ignoring(metric: Metric, label: int) -> Metric:
    """Return `metric` without the positions whose target is `label` (void pixels, padding).

    The function is given what is left: outputs (M, C) and targets (M,), or both (M,) where each target has one output.
    Per-sample values are weighted by their positions, so that their mean stays the score.

    Example:
        >>> kept = ignoring(METRICS["accuracy"], 255)
        >>> kept.score(torch.eye(3), torch.tensor([0, 255, 1]))
        50.0
    """
    function, each = metric.function, metric.each

    def score(outputs: Tensor, targets: Tensor) -> Any:
        rows, wanted, _ = left(outputs, targets, label)
        return function(rows, wanted) if len(wanted) else math.nan

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        rows, wanted, sample = left(outputs, targets, label)
        sums = torch.zeros(len(targets), dtype=torch.float64)
        if each is not None and len(wanted):
            sums.index_add_(0, sample, each(rows, wanted).double())
        return sums * len(targets) / max(1, len(wanted))

    return replace(metric, function=score, each=None if each is None else per_sample)


def ignoring_loss(loss: Loss, label: int) -> Loss:
    """Return `loss` over the positions whose target is not `label`; 0 where a batch has no other."""

    def kept(outputs: Tensor, targets: Tensor) -> Tensor:
        rows, wanted, _ = left(outputs, targets, label)
        return loss(rows, wanted) if len(wanted) else outputs.sum() * 0

    return kept


def left(outputs: Tensor, targets: Tensor, label: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is judged without `label`: outputs (M, C) or (M,), targets (M,), and the sample (M,) of each."""
    if outputs.numel() == targets.numel():
        outputs = outputs.reshape(targets.shape)
    else:
        outputs = outputs.movedim(class_axis(outputs, targets), -1)
        outputs = outputs.reshape(*targets.shape, outputs.shape[-1])
    sample = torch.arange(len(targets), device=targets.device).reshape(-1, *[1] * (targets.ndim - 1)).expand_as(targets)
    kept = targets != label
    return outputs[kept], targets[kept], sample[kept]
