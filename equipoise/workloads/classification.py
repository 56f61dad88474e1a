"""The classification report: precision, recall and F1 of each class, their averages, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.workloads.metrics import labels as answers_of

MOST_CLASSES = 1000
"""Beyond so many classes no report is made: nobody reads it."""


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How one class, or the average of several, is told, in shares of 1.

    Attributes:
        name: Of the class, or ``macro`` or ``weighted``.
        precision: Share of what is called this class that is; None where nothing is.
        recall: Share of this class that is called so; None where the split has none of it.
        f1: 2 TP / (2 TP + FP + FN), the harmonic mean of the two; None where it has neither.
        support: Samples of the class.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Classification:
    """The report of one split.

    Attributes:
        split: Its name.
        accuracy: Share of samples that are told right.
        classes: A row for each class.
        macro: Mean over the classes: each counts the same. What is None in a row counts as 0 in a mean, as scikit-learn has it.
        weighted: Mean over the classes by their support.
        confusion: (class, told class) -> samples, a row for each true class.
    """

    split: str
    accuracy: float
    classes: tuple[ClassScores, ...]
    macro: ClassScores
    weighted: ClassScores
    confusion: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> tuple[ClassScores, ...]:
        """The classes and both averages."""
        return (*self.classes, self.macro, self.weighted)


def classification(
    outputs: Tensor,
    targets: Tensor,
    *,
    names: Sequence[str] = (),
    ignore: int | None = None,
    threshold: float = 0.0,
    split: str = "",
) -> Classification:
    """Return the report of `outputs` (N, classes), or (N,) or (N, 1) scores of a yes, against `targets` (N,).

    Args:
        names: Of the classes; empty: their numbers.
        ignore: A target that is not judged.
        threshold: Above it a single score is a yes.
        split: Its name, for the record.

    Example:
        >>> found = classification(torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0, 1]))
        >>> found.confusion, found.classes[1].precision, found.macro.recall
        (((1, 1), (0, 1)), 0.5, 0.75)
    """
    told, true = (values.flatten() for values in answers_of(outputs, targets, threshold))
    if ignore is not None:
        told, true = told[true != ignore], true[true != ignore]
    width = outputs.shape[1] if outputs.ndim > 1 else 1
    count = max(2, width, 1 + int(true.max()), 1 + int(told.max()))
    table = torch.bincount(true * count + told, minlength=count * count).reshape(count, count)
    support, called, right = table.sum(1).tolist(), table.sum(0).tolist(), table.diagonal().tolist()
    classes = tuple(
        ClassScores(
            names[k] if k < len(names) else str(k),
            _share(right[k], called[k]),
            _share(right[k], support[k]),
            _share(2 * right[k], called[k] + support[k]),
            support[k],
        )
        for k in range(count)
    )
    even = [1.0 if support[k] or called[k] else 0.0 for k in range(count)]  # a class that nowhere occurs has no say
    return Classification(
        split,
        sum(right) / sum(support),
        classes,
        _mean("macro", classes, even),
        _mean("weighted", classes, [float(n) for n in support]),
        tuple(tuple(row) for row in table.tolist()),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(name: str, rows: Sequence[ClassScores], weights: Sequence[float]) -> ClassScores:
    def over(values: Sequence[float | None]) -> float:
        return sum(w * (value or 0.0) for w, value in zip(weights, values, strict=True)) / sum(weights)

    precision, recall, f1 = (over([getattr(row, what) for row in rows]) for what in ("precision", "recall", "f1"))
    return ClassScores(name, precision, recall, f1, sum(row.support for row in rows))


def lines(found: Classification) -> list[str]:
    """Return the report as lines of text, columns aligned, the name of the split in the corner.

    Example:
        >>> outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> found = classification(outputs, torch.tensor([0, 1]), names=("bad", "good"), split="test")
        >>> print("\\n".join(lines(found)[:3]))
        test      precision  recall      f1  support
        bad          1.0000  1.0000  1.0000        1
        good         1.0000  1.0000  1.0000        1
    """
    width = max(len(found.split), *(len(row.name) for row in found.rows))
    head = f"{found.split:{width}}  precision  recall      f1  support"
    body = [
        f"{row.name:{width}}  {_written(row.precision):>9}  {_written(row.recall):>6}  {_written(row.f1):>6}  {row.support:>7}"
        for row in found.rows
    ]
    return [head, *body]


def _written(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
