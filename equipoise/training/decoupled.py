"""Decoupled distillation: how sure the teacher is of the class, apart from how it spreads the rest over the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 50
"""Classes from which distillation is decoupled unless the recipe says otherwise: below, the others have little to tell."""


def decoupled(
    ours: Tensor, theirs: Tensor, targets: Tensor, *, temperature: float, others: float, kept: Tensor | None = None
) -> Tensor:
    """Return T² (TCKD + others · NCKD), a mean over the positions, through which gradients go.

    TCKD is the KL of "the class, or another"; NCKD that among the other classes alone. The plain KL is TCKD + (1 - p) NCKD with
    p the teacher's share of the class: where it is sure, and the others tell most, it hardly looks at them.

    Args:
        ours, theirs: Logits (..., C) of the student and the teacher.
        targets: The class (...), whole numbers; anything else, such as no labels: the teacher's own class is taken.
        temperature: By which logits are divided.
        others: Weight of NCKD (beta; that of TCKD is 1).
        kept: Which positions (...) count; None: all.

    References:
        Zhao et al. 2022, "Decoupled knowledge distillation", equations 5 and 7.
    """
    labels = targets if _labels(targets, theirs) else theirs.argmax(-1)
    if kept is not None and kept.shape == labels.shape:
        labels = labels.masked_fill(~kept.to(labels.device), 0)  # a label that says "ignore" is no class
    own = F.one_hot(labels.long(), theirs.shape[-1]).bool()
    ours, theirs = (F.log_softmax(logits / temperature, dim=-1) for logits in (ours, theirs))
    rest = [logs.masked_fill(own, -torch.inf).logsumexp(-1) for logs in (ours, theirs)]  # log of the others' share
    class_ = [logs.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1) for logs in (ours, theirs)]
    target = class_[1].exp() * (class_[1] - class_[0]) + rest[1].exp() * (rest[1] - rest[0])
    among = [(logs - share.unsqueeze(-1)).masked_fill(own, 0.0) for logs, share in zip((ours, theirs), rest, strict=True)]
    other = (among[1].exp() * (among[1] - among[0])).masked_fill(own, 0.0).sum(-1)
    each = target + others * other
    if kept is not None and kept.shape == each.shape:
        some = each[kept.to(each.device)]
        return temperature**2 * (some.mean() if some.numel() else each.sum() * 0)
    return temperature**2 * each.mean()


def _labels(targets: Tensor, logits: Tensor) -> bool:
    return not targets.is_floating_point() and targets.shape == logits.shape[:-1]
