"""k-fold cross-validation: every sample is held out once, and the spread over the folds is told with the mean."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.training.samples import Samples

Learn = Callable[[Samples, Samples, torch.Generator], float]
"""(training part, held-out part, generator) -> score of what was learned on the held-out part."""


@dataclass(frozen=True, slots=True)
class FoldScores:
    """Scores of k models, each on the samples that it has not seen.

    Attributes:
        scores: One for each fold.
        mean: Of the scores.
        spread: Their standard deviation (k - 1 in the denominator). The folds share training data, so it understates by how
            much a model trained on other data would differ.
    """

    scores: tuple[float, ...]
    mean: float
    spread: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.spread:.2g} over {len(self.scores)} folds"


def folds(targets: Tensor, k: int, *, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the indices of k disjoint parts that together are all samples, their sizes one apart at most.

    Args:
        targets: (N, ...); labels (int64, one dimension) are shared out evenly: no two parts differ by more than one sample of
            a class.
        k: From 2 to N.
        generator: Draws the shuffle.
    Raises:
        InputError: `k` out of range.
    """
    if not 2 <= k <= len(targets):
        raise must_be("k", f"from 2 to the {len(targets)} samples", k, "5 or 10 are usual.")
    order = torch.randperm(len(targets), generator=generator)
    if targets.ndim == 1 and not targets.is_floating_point():
        order = order[targets[order].argsort(stable=True)]  # shuffled within each class
    return tuple(order[part::k] for part in range(k))


def cross_validate(learn: Learn, data: Samples, *, k: int = 5, generator: torch.Generator) -> FoldScores:
    """Return the scores of k models, each trained on all folds but one and scored on that one.

    Args:
        learn: Trains and scores; everything that is fitted to data (normalization too) belongs in it.
        data: All samples.
        k: Number of folds.
        generator: Draws the folds and a generator for each model.
    Raises:
        InputError: `k` out of range.

    Example:
        >>> def learn(part, held, generator):
        ...     trained = fit(net, part, loss=loss, epochs=5, validation=held, metric=accuracy, generator=generator)
        ...     return trained.curve[-1].validation_metric
        >>> cross_validate(learn, data, generator=torch.Generator().manual_seed(0))  # doctest: +SKIP
    """
    parts = folds(data.targets, k, generator=generator)
    scores = []
    for i, held in enumerate(parts):
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        rest = torch.cat([part for j, part in enumerate(parts) if j != i])
        scores.append(float(learn(data.rows(rest), data.rows(held), own)))
    return FoldScores(tuple(scores), statistics.fmean(scores), statistics.stdev(scores))
