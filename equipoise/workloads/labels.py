"""Whether targets are classes or values, and labels that are not to be judged.

Whole numbers alone do not say it: ages are whole numbers too. The metric says it, else the loss, else the outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.workloads.data import Split
from equipoise.workloads.metrics import METRICS, OF_PROBABILITIES, Loss, Metric, ignoring, yes_or_no

LABEL_LOSSES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
VALUE_LOSSES: tuple[Any, ...] = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.poisson_nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.PoissonNLLLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
)
"""Losses of torch that compare numbers with numbers; the binary ones take 0 and 1 as floats too."""

NAMED_LOSSES = {"cross_entropy": True, "mse": False, "mae": False, "l1": False, "huber": False, "bce": False}
"""Loss by name -> whether it is of labels."""

SAMPLE = 256


def built_in(metric: Metric) -> bool:
    """Whether a metric is one of ours, so that its name says what its targets are."""
    return metric in (METRICS.get(metric.name), OF_PROBABILITIES.get(metric.name))


def asked_by_loss(loss: str | Loss) -> bool | None:
    """Whether the loss is of labels (True) or of values (False); None where it fits both or is the user's own."""
    if isinstance(loss, str):
        return NAMED_LOSSES.get(loss)
    kind = loss if callable(loss) and not isinstance(loss, nn.Module) else type(loss)
    return True if kind in LABEL_LOSSES else False if kind in VALUE_LOSSES else None


def looks_like_labels(outputs: Tensor | None, targets: Tensor, judged: Tensor) -> bool:
    """Whether whole-number targets can be classes of these outputs, where neither metric nor loss says it.

    Args:
        outputs: Of a sample or two; None where they are not known.
        targets, judged: As they are read, and without those that are ignored.
    """
    if targets.is_floating_point():
        return False
    if outputs is None:
        return True
    if outputs.ndim == 1 or outputs.shape[1] == 1:  # one number for each sample: a logit, or a value
        return yes_or_no(judged)
    return outputs.shape[1:] != targets.shape[1:]


def exclusive(outputs: Tensor | None, targets: Tensor) -> bool:
    """Whether each target is one of several classes, rather than one of several labels that may all hold."""
    if outputs is None or outputs.ndim < 2 or outputs.shape[1:] != targets.shape[1:] or outputs.shape[1] == 1:
        return True
    rows = targets.double()  # one score for each target: exclusive only if each row marks one class
    return targets.ndim == 2 and bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-4).all())


def some(split: Split, outputs: Tensor | None, *, few: bool) -> Tensor:
    """Return targets of a sample, of two where those say enough; none where they cannot be read, which `check` tells."""
    try:
        two = split.take(2).targets()
        alike = outputs is None or outputs.shape[1:] == two.shape[1:]
        return two if few and not alike else split.take(SAMPLE).targets()
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the user's dataset may raise anything; `check` reads it again and tells it
        return torch.empty(0, dtype=torch.long)


def whole_numbers(outputs: Tensor | None, targets: Tensor) -> bool:
    """Whether targets given as floats are the numbers of classes: whole, and one for several outputs or for a logit."""
    if not targets.is_floating_point() or not len(targets) or not torch.equal(targets, targets.round()):
        return False
    alike = outputs is not None and outputs.shape[1:] == targets.shape[1:]
    return bool((targets >= 0).all()) and (yes_or_no(targets) and targets[0].numel() == 1 if alike else targets.ndim != 2)


def masked_metric(metric: Metric, label: int) -> Metric:
    """Return the metric over all positions whose target is not `label`; the user's own knows what to leave out."""
    return ignoring(metric, label) if built_in(metric) else metric
