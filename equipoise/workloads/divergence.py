"""How far outputs are from others: one measure of what a student learns, what a change costs, and what `verify` finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.batch import Inputs
from equipoise.workloads.data import Split

Kind = Literal["softmax", "bernoulli", "values"]
KINDS: tuple[Kind, ...] = ("softmax", "bernoulli", "values")
"""Class scores of which one is right; a yes-or-no score in each output; numbers. What is told by nothing goes to the first."""

MASK = "attention_mask"
"""Under this name libraries hand the places of a sequence that are no padding."""

ROWS = 256
"""Samples that are read at a time."""
PART = 2**22
"""Numbers that are compared at a time."""

CONSTANT = 1e-3
"""An output that spreads less than this share of the widest one is counted as constant, and measured by the widest."""


@dataclass(frozen=True)
class Divergence:
    """How far outputs are from others, and so what a student learns.

    Attributes:
        kind: ``softmax``: KL of the distributions over the classes, in nats, mean over the positions. ``bernoulli``: KL of the
            yes-or-no distribution of each output, mean over the outputs. ``values``: squared error over the squared spread of
            each output.
        axis: Where the classes lie.
        probabilities: The outputs are probabilities already, not logits; log-probabilities count as logits.
        why: What told.
        ignored: Positions with this target do not count; None where there is no such label.
        masked: Whether positions that the attention mask leaves out do not count: outputs of one for each place of a sequence.

    Example:
        >>> round(Divergence("softmax").between([[0.0, 0.0]], [[0.0, 1.0]]), 4)
        0.1201
    """

    kind: Kind
    axis: int = 1
    probabilities: bool = False
    why: str = ""
    ignored: int | None = None
    masked: bool = False

    @property
    def labels(self) -> bool:
        """Whether the outputs say which labels hold, rather than numbers."""
        return self.kind != "values"

    def between(self, reference: Any, outputs: Any, *, kept: Tensor | None = None) -> float:
        """Return how far `outputs` (N, ...) are from `reference`: nats for labels, else a share of the squared spread.

        Args:
            kept: Which positions count, as `kept` says; None counts all.
        """
        wanted, found = (np.asarray(values) for values in (reference, outputs))
        spread = self.spread(torch.from_numpy(wanted))
        total, count, rows = 0.0, 0, max(1, PART * len(wanted) // max(1, wanted.size))
        for start in range(0, len(wanted), rows):  # in double precision all at once would be many times what is given
            part = slice(start, start + rows)
            theirs, ours = (torch.from_numpy(values[part].astype(np.float64)) for values in (wanted, found))
            each = self._apart(ours, theirs, 1.0, spread)
            counted = self._counted(each, ours, None if kept is None else kept[part])
            some = each if counted is None else each[counted]
            total, count = total + float(some.sum()), count + some.numel()
        return total / count if count else 0.0

    def kept(self, inputs: Inputs, targets: Tensor) -> Tensor | None:
        """Return which positions (N, ...) of these samples count; None where all do."""
        found = None if self.ignored is None or targets.is_floating_point() else targets != self.ignored
        mask = inputs.get(MASK) if self.masked and isinstance(inputs, Mapping) else None
        if mask is None:
            return found
        seen = torch.as_tensor(mask) > 0
        return seen if found is None else seen & found.to(seen.device)

    def kept_of(self, split: Split) -> Tensor | None:
        """Return which positions of a whole split count, read batch by batch; None where all do, and nothing is read."""
        if self.ignored is None and not self.masked:
            return None
        found = [self.kept(inputs, targets) for inputs, targets in split.batches(ROWS)]
        return torch.cat([part for part in found if part is not None]) if found and found[0] is not None else None

    def logits(self, outputs: Tensor) -> Tensor | None:
        """Return class scores (..., C) with the classes last, as logits; None where outputs are no class scores."""
        if self.kind != "softmax" or outputs.ndim <= self.axis:
            return None
        return (_logits(outputs, self.kind) if self.probabilities else outputs).movedim(self.axis, -1)

    def spread(self, wanted: Tensor) -> Tensor | None:
        """Return how far each output spreads where outputs are values, in a shape that broadcasts over (N, ...); else None."""
        return spreads(wanted) if self.kind == "values" else None

    def loss(
        self,
        outputs: Tensor,
        wanted: Tensor,
        *,
        temperature: float = 1.0,
        spread: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return the divergence as a tensor that gradients go through; 0 where outputs are the same.

        Args:
            outputs, wanted: (N, ...), of one shape.
            temperature: T, by which logits are divided; the result is multiplied by T^2 (Hinton et al. 2015, section 2.1).
            spread: Of ``values``: standard deviation of each output, in a shape that broadcasts; None takes that of `wanted`.
            kept: Which positions count, or None.
        """
        each = self._apart(outputs, wanted, temperature, spread)
        counted = self._counted(each, outputs, kept)
        some = each if counted is None else each[counted]
        return some.mean() if some.numel() else each.sum() * 0

    def _apart(self, outputs: Tensor, wanted: Tensor, temperature: float, spread: Tensor | None) -> Tensor:
        """How far each position is (N, ...): of class scores without the axis of the classes."""
        if self.kind == "values":
            return ((outputs - wanted) / (spreads(wanted) if spread is None else spread)).square()
        if self.probabilities:
            outputs, wanted = (_logits(p, self.kind) for p in (outputs, wanted))
        ours, theirs = outputs / temperature, wanted / temperature
        if self.kind == "softmax":
            ours, theirs = F.log_softmax(ours, dim=self.axis), F.log_softmax(theirs, dim=self.axis)
            return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=self.axis)
        sides = ((F.logsigmoid(sign * theirs), F.logsigmoid(sign * ours)) for sign in (1, -1))
        return temperature**2 * torch.stack([p.exp() * (p - q) for p, q in sides]).sum(0)

    def push(self, outputs: Tensor, wanted: Tensor, *, spread: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """Return how `outputs` (N, ...) are moved from those wanted, in units in which a small `loss` goes as its squares.

        Args:
            spread, kept: As of `loss`; 0 where a position does not count.
        """
        if self.kind == "values":
            moved = (outputs - wanted) / (spreads(wanted) if spread is None else spread)
        else:
            if self.probabilities:
                outputs, wanted = (_logits(p, self.kind) for p in (outputs, wanted))
            moved = outputs - wanted
        if self.kind == "bernoulli":
            chances = wanted.sigmoid()
            moved = moved * (chances * (1 - chances)).sqrt()
        if self.kind == "softmax":
            chances = wanted.softmax(self.axis)
            moved = chances.sqrt() * (moved - (chances * moved).sum(self.axis, keepdim=True))
            counted = self._counted(moved.sum(self.axis), outputs, kept)
            counted = None if counted is None else counted.unsqueeze(self.axis)
        else:
            counted = self._counted(moved, outputs, kept)
        return moved if counted is None else moved * counted

    def _counted(self, each: Tensor, outputs: Tensor, kept: Tensor | None) -> Tensor | None:
        """Which of `each` count; None for all, also where `kept` is of another form than the outputs' positions."""
        if kept is not None and kept.shape != each.shape and each.shape == outputs.shape and outputs.ndim > self.axis:
            kept = kept.unsqueeze(self.axis) if kept.ndim == each.ndim - 1 else kept
            kept = kept.expand_as(each) if _fits(kept, each) else None
        return None if kept is None or kept.shape != each.shape else kept.to(each.device)


def _fits(kept: Tensor, each: Tensor) -> bool:
    return kept.ndim == each.ndim and all(a in (1, b) for a, b in zip(kept.shape, each.shape, strict=True))


def spreads(values: Tensor) -> Tensor:
    """Return the standard deviation of each output over the samples, (C,) in a shape that broadcasts over (N, C, ...).

    Each output so counts alike, whatever its unit. One that hardly moves is measured by the widest: its own spread would blow
    its smallest error up.
    """
    values = values.detach().double()
    others = [i for i in range(values.ndim) if i != 1]
    several = math.prod(values.shape[i] for i in others) > 1
    found = values.std(dim=others, correction=int(several), keepdim=True)
    widest = found.max()
    found = torch.where(found < CONSTANT * widest, widest, found)
    return torch.where(found > 0, found, torch.ones_like(found)).float()


def _logits(probabilities: Tensor, kind: Kind) -> Tensor:
    """Logits of probabilities, kept finite."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return p.log() if kind == "softmax" else p.log() - (-p).log1p()
