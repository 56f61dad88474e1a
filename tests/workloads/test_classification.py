"""The classification report against scikit-learn's, and against a count by hand."""

from __future__ import annotations

import warnings

import pytest
import torch

from equipoise.workloads.classification import Classification, classification, lines


def as_sklearn(answers: torch.Tensor, targets: torch.Tensor, count: int) -> dict[str, dict[str, float]]:
    from sklearn.metrics import classification_report

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, dict[str, float]] = classification_report(
            targets.numpy(), answers.numpy(), labels=list(range(count)), output_dict=True, zero_division=0
        )
    return found


def differences(found: Classification, wanted: dict[str, dict[str, float]]) -> list[str]:
    names = [*map(str, range(len(found.classes))), "macro avg", "weighted avg"]
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    return [
        f"{name} {ours}"
        for row, name in zip(found.rows, names, strict=True)
        for ours, theirs in keys.items()
        if abs((getattr(row, ours) or 0.0) - wanted[name][theirs]) > 1e-9
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 9])
def test_as_scikit_learn_says(count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, count, (200,), generator=draw)
    outputs = torch.randn(200, count, generator=draw) + 2.0 * torch.nn.functional.one_hot(targets, count) * torch.rand(200, 1)
    found, wanted = classification(outputs, targets), as_sklearn(outputs.argmax(1), targets, count)
    assert differences(found, wanted) == []
    assert found.accuracy == pytest.approx(float((outputs.argmax(1) == targets).double().mean()))
    turned = classification(outputs.flip(1), targets)  # control: another answer is told apart
    assert differences(turned, wanted)


def test_confusion_is_true_by_told() -> None:
    from sklearn.metrics import confusion_matrix

    outputs = torch.eye(3)[[0, 1, 1, 2, 0]]
    targets = torch.tensor([0, 0, 1, 2, 2])
    found = classification(outputs, targets, names=("a", "b", "c"))
    assert [list(row) for row in found.confusion] == confusion_matrix(targets, outputs.argmax(1)).tolist()
    assert found.confusion == ((1, 1, 0), (0, 1, 0), (1, 0, 1))  # counted by hand
    assert [row.name for row in found.rows] == ["a", "b", "c", "macro", "weighted"]


def test_what_is_never_called_has_no_precision() -> None:
    found = classification(torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([0, 1]))
    assert [row.precision for row in found.classes] == [0.5, None, None]
    assert [row.recall for row in found.classes] == [1.0, 0.0, None]
    assert found.classes[2].f1 is None
    assert found.macro.f1 == pytest.approx((2 / 3 + 0) / 2)  # the class that nowhere occurs has no say
    assert "none" in lines(found)[2]


def test_a_single_score_says_yes_or_no() -> None:
    scores, targets = torch.tensor([2.0, -1.0, 0.3, -0.2]), torch.tensor([1, 0, 0, 1])
    found = classification(scores, targets)
    assert found.confusion == ((1, 1), (1, 1))
    assert classification(scores[:, None], targets).confusion == found.confusion
    assert classification(scores, targets, threshold=0.5).confusion == ((2, 0), (1, 1))


def test_what_is_ignored_is_not_counted() -> None:
    outputs, targets = torch.eye(2)[[0, 1, 0]], torch.tensor([0, 1, 7])
    assert classification(outputs, targets, ignore=7).confusion == ((1, 0), (0, 1))
