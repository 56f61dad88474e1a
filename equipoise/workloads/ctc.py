"""Rows of labels of which no position is known: the loss that lays them against a model's answers, and how answers are read.

Outputs are logits (N, C, T), a row of classes for each frame, the last of which says "nothing" (the blank). Targets are rows
(N, L) of labels below it, filled up with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.workloads.metrics import Scores


def ctc_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean surprise of the rows, in nats for each label, over all ways to lay a row against the frames.

    Args:
        outputs: Logits (N, C, T); class C - 1 is the blank.
        targets: Labels (N, L), filled up with C - 1. A row that has no room in T frames counts as 0.

    References:
        Graves et al. 2006, "Connectionist temporal classification", equations 5-8.
    """
    n, classes, frames = outputs.shape
    blank = classes - 1
    lengths, whole = (targets != blank).sum(1), torch.full((n,), frames)
    said = outputs.log_softmax(1).permute(2, 0, 1)  # (T, N, C)
    return F.ctc_loss(said, targets, whole, lengths, blank=blank, zero_infinity=True)


def greedy(outputs: Tensor) -> list[list[int]]:
    """Return the labels that logits (N, C, T) say: the likeliest of each frame, repeats taken once, the blank left out.

    Example:
        >>> said = torch.eye(3)[[0, 0, 2, 0, 1]].T[None]
        >>> greedy(said)
        [[0, 0, 1]]
    """
    blank, likeliest = outputs.shape[1] - 1, outputs.argmax(1)
    rows = (torch.unique_consecutive(row).tolist() for row in likeliest)
    return [[label for label in row if label != blank] for row in rows]


def edits(said: list[int], wanted: list[int]) -> int:
    """Return the fewest labels that must be put in, taken out or replaced to make one row the other (Levenshtein 1966)."""
    above = list(range(len(wanted) + 1))
    for row, label in enumerate(said, 1):
        here = [row]
        for column, other in enumerate(wanted, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (label != other)))
        above = here
    return above[-1]


class WordErrors:
    """Word error rate in points: labels that must be put in, taken out or replaced, of 100 that were said (a `Quality`).

    The mean of the rows' own rates is the rate only where all rows are as long; else it is read again on resamples.
    """

    name, maximize, unit = "word_error_rate", False, "points"

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the rate of logits (N, C, T) for rows (N, L), read greedily."""
        blank = outputs.shape[1] - 1
        wanted = [[label for label in row if label != blank] for row in targets.tolist()]
        errors = torch.tensor([edits(said, row) for said, row in zip(greedy(outputs), wanted, strict=True)]).double()
        lengths = {len(row) for row in wanted}
        value = 100 * float(errors.sum()) / max(1, sum(map(len, wanted)))
        return Scores(value, 100 * errors / lengths.pop() if len(lengths) == 1 and 0 not in lengths else None)
