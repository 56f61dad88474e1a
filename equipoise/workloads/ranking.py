"""Quality of a ranking: whether the right answer stands among the first few, and how far up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equipoise.errors import must_be, unknown
from equipoise.workloads.metrics import Scores

GAINS = ("hit", "ndcg")
ROWS = 4096
"""Samples whose ranks are counted at a time."""


@dataclass(frozen=True)
class Ranked:
    """A `Quality`: the share of samples whose right class is among the `first` by score, or the same, discounted by its place.

    Of classes with equal scores each order is equally likely, and what is returned is the mean over these: a model that scores
    all alike does no better than guessing.

    Attributes:
        gain: ``hit`` counts 1 in each of the first places; ``ndcg`` 1 / log2(place + 1), from 1.
        first: How many places count.

    Example:
        >>> scores, right = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]), torch.tensor([1, 2])
        >>> Ranked("hit", 1).read(scores, right).value, round(Ranked("ndcg", 2).read(scores, right).value, 1)
        (50.0, 81.5)

    References:
        Järvelin & Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques"; with one right answer the ideal is 1.
        McSherry & Najork 2008, "Computing information retrieval performance measures efficiently in the presence of tied
        scores".
    """

    gain: Literal["hit", "ndcg"] = "hit"
    first: int = 10

    def __post_init__(self) -> None:
        if self.gain not in GAINS:
            raise unknown("quality", str(self.gain), GAINS)
        if self.first < 1:
            raise must_be("first", "at least 1", self.first, "Write 10 for the first ten places.")

    @property
    def name(self) -> str:
        """As it is written in papers: ``HR@10``."""
        return f"{'HR' if self.gain == 'hit' else 'NDCG'}@{self.first}"

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the quality of scores (N, C) for classes (N,), in points of 100."""
        if outputs.ndim != 2 or targets.ndim != 1:
            found = f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
            raise must_be(f"metric {self.name}", "given scores (N, classes) and one class each", found, "It ranks classes.")
        places = torch.arange(self.first, dtype=torch.float64)
        worth = torch.ones_like(places) if self.gain == "hit" else 1 / torch.log2(places + 2)
        total = torch.cat([torch.zeros(1, dtype=torch.float64), worth.cumsum(0)])  # worth of the first k places
        each = []
        for scores, wanted in zip(torch.split(outputs, ROWS), torch.split(targets, ROWS), strict=True):
            own = scores.gather(1, wanted[:, None])
            above, alike = (~(scores <= own)).sum(1), (scores == own).sum(1).clamp(min=1)  # NaN is below all, like none
            ends = (total[(above + part).clamp(max=self.first)] for part in (alike, torch.zeros_like(alike)))
            each.append((next(ends) - next(ends)) / alike)
        points = 100 * torch.cat(each) if each else torch.zeros(0, dtype=torch.float64)
        return Scores(float(points.mean()), points)
