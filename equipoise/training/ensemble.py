"""Several trained models that answer as one, and what that gains."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.batch import call
from equipoise.errors import must_be, unknown
from equipoise.training.samples import Batches
from equipoise.training.validation import Metric


class Ensemble(nn.Module):
    """The average of the members' predictions.

    Args:
        members: Trained models for the same inputs and outputs.
        kind: ``logits`` averages probabilities over dimension 1 (a single logit counts as two classes) and answers with
            logits again; ``values`` averages the outputs.
    Raises:
        InputError: No members, or an unknown kind.
    """

    def __init__(self, members: Sequence[nn.Module], *, kind: Literal["logits", "values"] = "logits") -> None:
        if not members:
            raise must_be("members", "one model or more", len(members), "Pass the trained models.")
        if kind not in ("logits", "values"):
            raise unknown("kind", kind, ("logits", "values"))
        super().__init__()
        self.members, self.kind = nn.ModuleList(members), kind

    def forward(self, x: Tensor) -> Tensor:
        """Return the averaged outputs, of the members' shape."""
        return self.average([member(x) for member in self.members])

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the average of the members' outputs."""
        every = torch.stack(list(outputs))  # (members, N, ...)
        if self.kind == "values":
            return every.mean(dim=0)
        count = torch.tensor(float(len(every))).log()
        if every.ndim == 2 or every.shape[2] == 1:
            yes, no = (F.logsigmoid(sign * every).logsumexp(dim=0) - count for sign in (1, -1))
            return yes - no
        return every.log_softmax(dim=2).logsumexp(dim=0) - count


@dataclass(frozen=True, slots=True)
class Gain:
    """What an ensemble brings on one split.

    Attributes:
        each: Score of each member alone.
        together: Score of the ensemble.
        gain: By how much it is better than the members' mean.
        over_best: By how much it is better than the best of them, chosen on this very split.
    """

    each: tuple[float, ...]
    together: float
    gain: float
    over_best: float


def gain(ensemble: Ensemble, data: Batches, metric: Metric, *, batch: int = 250) -> Gain:
    """Score each member of `ensemble` and the whole on `data`, each member being run once.

    Raises:
        InputError: No data.
    """
    members = [member.eval() for member in ensemble.members]
    outputs: list[list[Tensor]] = [[] for _ in members]
    targets = []
    with torch.no_grad():
        for inputs, wanted in data.batches(batch):
            targets.append(wanted)
            for member, found in zip(members, outputs, strict=True):
                found.append(call(member, inputs))
    if not targets:
        raise must_be("data", "at least one sample", 0, "Pass another split.")
    answers, wanted = [torch.cat(found) for found in outputs], torch.cat(targets)
    each = tuple(metric.score(answer, wanted) for answer in answers)
    together = metric.score(ensemble.average(answers), wanted)
    sign, best = (1, max(each)) if metric.maximize else (-1, min(each))
    return Gain(each, together, sign * (together - statistics.fmean(each)), sign * (together - best))
