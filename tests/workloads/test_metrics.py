"""Metrics against scikit-learn and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

from equipoise.errors import InputError
from equipoise.workloads import METRICS, Metric, metric_of
from equipoise.workloads.metrics import loss_of, natural_loss

SOURCE = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(200, 4, generator=SOURCE), torch.randint(0, 4, (200,), generator=SOURCE)
VALUES, WANTED = torch.randn(50, 1, generator=SOURCE), torch.randn(50, generator=SOURCE)


def test_against_scikit_learn() -> None:
    answers = LOGITS.argmax(1)
    assert METRICS["accuracy"].score(LOGITS, LABELS) == pytest.approx(100 * accuracy_score(LABELS, answers))
    assert METRICS["f1"].score(LOGITS, LABELS) == pytest.approx(100 * f1_score(LABELS, answers, average="macro"))
    assert METRICS["mse"].score(VALUES, WANTED) == pytest.approx(mean_squared_error(WANTED, VALUES[:, 0]), rel=1e-6)
    assert METRICS["mae"].score(VALUES, WANTED) == pytest.approx(mean_absolute_error(WANTED, VALUES[:, 0]), rel=1e-6)
    wrong = LABELS.roll(1)  # control
    assert METRICS["f1"].score(LOGITS, wrong) != pytest.approx(100 * f1_score(LABELS, answers, average="macro"))


@pytest.mark.parametrize("name", ["accuracy", "mse", "mae"])
def test_per_sample_adds_up(name: str) -> None:
    outputs, targets = (LOGITS, LABELS) if name == "accuracy" else (VALUES, WANTED)
    each = METRICS[name].per_sample(outputs, targets)
    assert each is not None
    assert each.shape == (len(targets),)
    scale = 100 if name == "accuracy" else 1
    assert scale * float(each.double().mean()) == pytest.approx(METRICS[name].score(outputs, targets))
    assert METRICS["f1"].per_sample(LOGITS, LABELS) is None


def test_accuracy_by_hand_in_every_shape() -> None:
    accuracy = METRICS["accuracy"]
    assert accuracy.score(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1, 1, 1])) == pytest.approx(200 / 3)
    assert accuracy.score(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])) == 100
    dense = F.one_hot(torch.tensor([[0, 1], [2, 2]]), 3).permute(0, 2, 1).float()
    assert accuracy.score(dense, torch.tensor([[0, 1], [2, 0]])) == 75
    assert accuracy.per_sample(dense, torch.tensor([[0, 1], [2, 0]])).tolist() == [1.0, 0.5]


def test_own_function_and_direction() -> None:
    def largest_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).abs().max()

    metric = metric_of(largest_error, maximize=False)
    assert metric.name == "largest_error"
    assert metric.score(VALUES, WANTED) == pytest.approx(float((VALUES[:, 0] - WANTED).abs().max()))
    assert metric.drop(1.0, 3.0) == 2.0
    assert METRICS["accuracy"].drop(90.0, 89.0) == 1.0
    with pytest.raises(InputError, match="one number"):
        Metric("pair", True, lambda outputs, targets: [1, 2]).score(VALUES, WANTED)


def test_unknown_names_suggest() -> None:
    with pytest.raises(InputError, match="Did you mean 'accuracy'"):
        metric_of("acuracy")
    with pytest.raises(InputError, match="a name or a function"):
        metric_of(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="loss must be one of"):
        loss_of("crossentropy")


def test_natural_loss_follows_the_targets() -> None:
    assert torch.equal(natural_loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))
    assert torch.equal(natural_loss(VALUES, WANTED), F.mse_loss(VALUES[:, 0], WANTED))
    logit, label = torch.tensor([[0.5], [-2.0]]), torch.tensor([1, 1])
    expected = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(2))) / 2
    assert float(natural_loss(logit, label)) == pytest.approx(expected)
