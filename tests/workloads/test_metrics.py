"""Metrics against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

from equipoise.errors import InputError
from equipoise.workloads import METRICS, Metric, metric_of
from equipoise.workloads.metrics import OF_PROBABILITIES, ignoring, ignoring_loss, loss_of, natural_loss

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
    each = METRICS[name].each(outputs, targets)
    assert each is not None
    assert each.shape == (len(targets),)
    scale = 100 if name == "accuracy" else 1
    assert scale * float(each.double().mean()) == pytest.approx(METRICS[name].score(outputs, targets))
    assert METRICS["f1"].each is None


def test_accuracy_by_hand_in_every_shape() -> None:
    accuracy = METRICS["accuracy"]
    assert accuracy.score(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1, 1, 1])) == pytest.approx(200 / 3)
    assert accuracy.score(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0])) == 100
    dense = F.one_hot(torch.tensor([[0, 1], [2, 2]]), 3).permute(0, 2, 1).float()
    assert accuracy.score(dense, torch.tensor([[0, 1], [2, 0]])) == 75
    assert accuracy.each(dense, torch.tensor([[0, 1], [2, 0]])).tolist() == [1.0, 0.5]


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


def test_natural_loss_does_not_take_ages_for_classes() -> None:
    ages = torch.tensor([31, 7, 90])
    assert float(natural_loss(torch.tensor([[30.0], [9.0], [90.0]]), ages)) == pytest.approx(5 / 3)
    several = torch.tensor([[1, 0], [0, 0]])  # two yes-or-no labels of each sample
    logits = torch.tensor([[2.0, -1.0], [0.0, -3.0]])
    expected = F.binary_cross_entropy_with_logits(logits, several.float())
    assert torch.equal(natural_loss(logits, several), expected)
    words = torch.randint(0, 5, (4, 7), generator=SOURCE)
    last = torch.randn(4, 7, 5, generator=SOURCE)  # classes in the last dimension
    assert torch.equal(natural_loss(last, words), F.cross_entropy(last.movedim(2, 1), words))


def test_several_labels_against_scikit_learn() -> None:
    scores = torch.randn(300, 5, generator=SOURCE)
    wanted = (scores + torch.randn(300, 5, generator=SOURCE) > 0.7).long()
    answers = scores > 0
    for targets in (wanted, wanted.float()):
        assert METRICS["accuracy"].score(scores, targets) == pytest.approx(100 * float((answers == wanted).double().mean()))
        assert METRICS["f1"].score(scores, targets) == pytest.approx(100 * f1_score(wanted, answers, average="macro"))
    halves = scores.sigmoid()
    assert METRICS["f1"].score(halves, wanted) != pytest.approx(METRICS["f1"].score(scores, wanted))  # control
    for name in OF_PROBABILITIES:
        assert OF_PROBABILITIES[name].score(halves, wanted) == pytest.approx(METRICS[name].score(scores, wanted), rel=1e-5)
        softmax = OF_PROBABILITIES[name].score(LOGITS.softmax(1), LABELS)
        assert softmax == pytest.approx(METRICS[name].score(LOGITS, LABELS), rel=1e-5)


def test_one_hot_targets_are_one_label() -> None:
    assert METRICS["accuracy"].score(LOGITS, F.one_hot(LABELS, 4)) == METRICS["accuracy"].score(LOGITS, LABELS)


def test_classes_may_lie_in_the_last_dimension() -> None:
    words = torch.randint(0, 9, (6, 4), generator=SOURCE)
    scores = F.one_hot(words, 9).float()
    scores[0, 0] = -scores[0, 0]  # one of 24 is wrong
    for form in (scores, scores.movedim(2, 1)):
        assert METRICS["accuracy"].score(form, words) == pytest.approx(100 * 23 / 24)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.array([0.5]), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5])], ids=repr
)
def test_a_number_in_any_form(value: object) -> None:
    assert Metric("own", True, lambda outputs, targets: value).score(VALUES, WANTED) == 0.5
    assert Metric("own", True, lambda outputs, targets: value, scale=100).score(VALUES, WANTED) == 50


@pytest.mark.parametrize("value", ["93.4%", "93.4", None, np.zeros(2), torch.zeros(3), {"map": 0.3}], ids=repr)
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="metric own must be a function that returns one number"):
        Metric("own", True, lambda outputs, targets: value).score(VALUES, WANTED)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_a_scale_is_a_positive_number(scale: float) -> None:
    with pytest.raises(InputError, match="positive number"):
        Metric("own", True, lambda outputs, targets: 1, scale=scale)


def test_points_are_told() -> None:
    assert Metric("top1", True, lambda o, t: 1, scale=100).point == "one point is 0.01 of top1"
    assert METRICS["mae"].point == "one point is 1 of mae, in units of the targets"
    assert METRICS["accuracy"].point == "one point is 1 of accuracy"


def test_ignored_positions_are_left_out() -> None:
    scores = torch.randn(3, 4, 5, 6, generator=SOURCE)
    targets = torch.randint(0, 4, (3, 5, 6), generator=SOURCE)
    targets[0, :3] = 255
    targets[2] = 255  # a sample without a label
    kept = targets != 255
    expected = 100 * float((scores.argmax(1)[kept] == targets[kept]).double().mean())
    accuracy = ignoring(METRICS["accuracy"], 255)
    assert accuracy.score(scores, targets) == pytest.approx(expected)
    each = accuracy.each(scores, targets)
    assert each is not None
    assert 100 * float(each.mean()) == pytest.approx(expected)  # weighted by the positions of each sample
    assert each[2] == 0
    loss = ignoring_loss(natural_loss, 255)
    assert float(loss(scores, targets)) == pytest.approx(float(F.cross_entropy(scores, targets, ignore_index=255)))
    assert float(loss(scores, torch.full_like(targets, 255))) == 0
    last = scores.movedim(1, -1)
    assert accuracy.score(last, targets) == pytest.approx(expected)
    several = torch.tensor([[1, -1, 0], [0, 0, -1]])
    assert ignoring(METRICS["accuracy"], -1).score(torch.tensor([[1.0, 9, 9], [-1, -1, 9]]), several) == 75
