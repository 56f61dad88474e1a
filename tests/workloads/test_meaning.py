"""What outputs mean: the loss and the metric tell, not the type of the targets nor a name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    matthews_corrcoef,
    r2_score,
    roc_auc_score,
)
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.workloads import METRICS, Metric, Workload, check
from equipoise.workloads.divergence import Divergence
from equipoise.workloads.meaning import decide, perfect, scale_of, squashed
from equipoise.workloads.metrics import OF_PROBABILITIES, natural_loss, natural_loss_of_probabilities

N = 64
SOURCE = torch.Generator().manual_seed(5)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=SOURCE)


def whole(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=SOURCE)


ACCURACY, MAE, MSE = METRICS["accuracy"], METRICS["mae"], METRICS["mse"]


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape).float())


def smoothed_bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, 0.9 * targets.reshape(outputs.shape).float() + 0.05)


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets.reshape(outputs.shape).float())


def one_against_rest(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, F.one_hot(targets, outputs.shape[1]).float())


def ordered(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, (targets[:, None] > torch.arange(outputs.shape[1])).float())


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    chance = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - (-chance).exp()) ** 2 * chance).mean()


def over_words(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def close_labels(outputs: Tensor, targets: Tensor) -> float:
    """A metric of embeddings: the nearest other one has the same label."""
    apart = torch.cdist(outputs, outputs).fill_diagonal_(float("inf"))
    return float((targets[apart.argmin(1)] == targets).float().mean())


def expected_age(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.softmax(1) * torch.arange(outputs.shape[1])).sum(1) - targets).abs().mean()


CASES: dict[str, tuple[Tensor, Tensor, Any, Metric | None, str, int]] = {
    "classes": (draw(N, 5), whole(5, N), None, ACCURACY, "softmax", 1),
    "classes, focal loss": (draw(N, 5), whole(5, N), focal, ACCURACY, "softmax", 1),
    "classes, smoothed loss": (draw(N, 5), whole(5, N), nn.CrossEntropyLoss(label_smoothing=0.2), ACCURACY, "softmax", 1),
    "classes, hinge loss": (draw(N, 5), whole(5, N), nn.MultiMarginLoss(), ACCURACY, "softmax", 1),
    "classes, one against the rest": (draw(N, 5), whole(5, N), one_against_rest, ACCURACY, "bernoulli", 1),
    "two classes, one logit": (draw(N, 1), whole(2, N), None, ACCURACY, "bernoulli", 1),
    "two classes, one logit, BCE": (draw(N), whole(2, N).float(), nn.BCEWithLogitsLoss(), ACCURACY, "bernoulli", 1),
    "pixels": (draw(8, 5, 4, 6), whole(5, 8, 4, 6), None, ACCURACY, "softmax", 1),
    "pixels, one logit": (draw(8, 1, 4, 6), whole(2, 8, 1, 4, 6), bce, ACCURACY, "bernoulli", 1),
    "words, classes second": (draw(8, 50, 12), whole(50, 8, 12), None, ACCURACY, "softmax", 1),
    "words, classes last": (draw(8, 12, 50), whole(50, 8, 12), over_words, ACCURACY, "softmax", 2),
    "several labels, whole, own loss": (draw(N, 5), whole(2, N, 5), bce, Metric("own", True, lambda o, t: 0), "bernoulli", 1),
    "several labels, smoothed": (draw(N, 5), whole(2, N, 5).float(), smoothed_bce, None, "bernoulli", 1),
    "several labels, natural loss": (draw(N, 5), whole(2, N, 5).float(), None, METRICS["f1"], "bernoulli", 1),
    "several labels, by values": (draw(N, 5), whole(2, N, 5).float(), squares, MSE, "values", 1),
    "ages": (draw(N, 1), whole(90, N), None, MAE, "values", 1),
    "ages, own loss and metric": (draw(N, 1), whole(90, N), squares, Metric("m", False, squares), "values", 1),
    "ages as 0 and 1": (draw(N, 1), whole(2, N), None, MAE, "values", 1),
    "ages as classes": (draw(N, 90), whole(90, N), None, Metric("years", False, expected_age), "softmax", 1),
    "mean and variance of ages": (draw(N, 2), whole(90, N), None, Metric("own", False, lambda o, t: 0), "values", 1),
    "grades": (draw(N, 4), whole(5, N), ordered, None, "bernoulli", 1),
    "grades, of which the highest is not seen": (draw(N, 4), whole(4, N), ordered, None, "bernoulli", 1),
    "labels out of range": (draw(N, 4), whole(5, N), F.cross_entropy, ACCURACY, "values", 1),
    "labels out of range, natural loss": (draw(N, 4), whole(5, N), None, ACCURACY, "values", 1),
    "three values": (draw(N, 3), draw(N, 3), None, MSE, "values", 1),
    "three whole values": (draw(N, 3), whole(40, N, 3), None, Metric("own", False, squares), "values", 1),
    "quantiles": (draw(N, 3), draw(N), nn.Identity(), None, "values", 1),
    "grey values": (draw(N, 3), torch.rand(N, 3, generator=SOURCE), None, MSE, "values", 1),
    "soft labels": (draw(N, 3), draw(N, 3).softmax(1), nn.CrossEntropyLoss(), None, "softmax", 1),
    "one-hot labels": (draw(N, 3), F.one_hot(whole(3, N), 3), nn.CrossEntropyLoss(), None, "softmax", 1),
    "signs": (draw(N), 2 * whole(2, N) - 1, nn.SoftMarginLoss(), None, "bernoulli", 1),
    "embeddings": (draw(N, 20), whole(9, N), None, Metric("recall at 1", True, close_labels), "values", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_metric_tell(case: str) -> None:
    outputs, targets, loss, metric, kind, axis = CASES[case]
    found = decide(outputs, targets, loss=loss, metric=metric)
    assert (found.kind, found.axis, found.probabilities) == (kind, axis, False)
    assert found.why


def test_ignored_labels_do_not_hide_the_classes() -> None:
    targets = whole(5, 8, 4, 6)
    targets[:, 1] = 255
    assert decide(draw(8, 5, 4, 6), targets, metric=ACCURACY, ignored=255).kind == "softmax"
    assert decide(draw(8, 5, 4, 6), targets, metric=ACCURACY).kind == "values"  # control


def test_probabilities_are_seen() -> None:
    scores = draw(N, 4)
    softmax = decide(scores.softmax(1), whole(4, N), metric=ACCURACY)
    assert softmax == Divergence("softmax", 1, True, softmax.why)
    single = decide(scores[:, :1].sigmoid(), whole(2, N), metric=ACCURACY)
    assert (single.kind, single.probabilities) == ("bernoulli", True)


class Shaped(nn.Module):
    """A linear model with something after it."""

    def __init__(self, after: Any, outputs: int = 3) -> None:
        super().__init__()
        self.linear, self.after = nn.Linear(4, outputs), after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.linear(x))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (lambda y: y, False),
        (lambda y: y.sigmoid(), True),
        (lambda y: y.sigmoid()[:, 0].unsqueeze(1), True),
        (lambda y: y.softmax(1), True),
        (lambda y: y.log_softmax(1), False),
        (lambda y: 0.5 + y / 1e4, False),
        (lambda y: (y.sigmoid(), y), True),
        (lambda y: {"out": y, "p": y.sigmoid()}, False),
        (lambda y: (y.softmax(1) + y.roll(1, 1).softmax(1)) / 2, True),
        (lambda y: torch.cat([y.sigmoid(), y.sigmoid()], 1), True),
    ],
)
def test_the_last_operation_tells(after: Any, expected: bool) -> None:
    model = Shaped(after).eval().requires_grad_(False)
    x, y = draw(90, 4), whole(3, 90)
    work = Workload(model=model, train=(x, y), test=(x, y), metric=Metric("own", True, lambda o, t: 0.5, scale=1))
    assert squashed(model, work.validation) is expected


def test_a_model_that_ends_in_a_sigmoid_is_parted_at_one_half() -> None:
    torch.manual_seed(0)
    x = draw(300, 4)
    model = Shaped(lambda y: y.sigmoid(), 1).eval()
    with torch.no_grad():
        y = (model(x)[:, 0] > 0.5).long()
    y[::10] = 1 - y[::10]  # one in ten is wrong
    work = Workload(model=model, train=(x, y), test=(x, y))
    assert work.metric is OF_PROBABILITIES["accuracy"]
    assert work.loss is natural_loss_of_probabilities
    assert work.quality(split=work.test) == pytest.approx(90, abs=1e-9)
    assert (work.divergence.kind, work.divergence.probabilities, work.classifier) == ("bernoulli", True, True)
    plain = Workload(model=model.linear, train=(x, y), test=(x, y))  # control: the same model without the sigmoid
    assert plain.metric is METRICS["accuracy"]
    assert plain.loss is natural_loss
    assert plain.quality(split=plain.test) == pytest.approx(90, abs=1e-9)


def test_a_model_that_cannot_be_run_changes_nothing() -> None:
    x, y = draw(90, 5), whole(3, 90)
    work = Workload(model=Shaped(lambda y: y), train=(x, y), test=(x, y), metric=lambda outputs, targets: 1.0)
    assert work.metric.scale is None


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    p = outputs.sigmoid().reshape(targets.shape)
    return 2 * (p * targets).sum() / (p + targets).sum()


TWO = (draw(N), whole(2, N))
FIVE = (draw(N, 5), whole(5, N))
REAL = (draw(N, 1), draw(N))
GOOD = (REAL[1][:, None] + 0.1 * draw(N, 1), REAL[1])
YEARS = (40 + 0.5 * draw(N, 1), torch.full((N,), 40.0) + 0.3 * draw(N))


@pytest.mark.parametrize(
    ("name", "function", "maximize", "data", "scale"),
    [
        ("accuracy", lambda o, t: (o.argmax(1) == t).float().mean(), True, FIVE, 100),
        ("accuracy of 100", lambda o, t: 100 * (o.argmax(1) == t).float().mean(), True, FIVE, 1),
        ("error rate", lambda o, t: (o.argmax(1) != t).float().mean(), False, FIVE, 100),
        ("AUC", lambda o, t: roc_auc_score(t, o), True, TWO, 100),
        ("average precision", lambda o, t: average_precision_score(t, o), True, TWO, 100),
        ("MCC", lambda o, t: matthews_corrcoef(t, o > 0), True, TWO, 100),
        ("Dice", dice, True, TWO, 100),
        ("Dice loss", lambda o, t: 1 - dice(o, t), False, TWO, 100),
        ("Brier", lambda o, t: brier_score_loss(t, o.sigmoid()), False, TWO, 100),
        ("log loss", lambda o, t: log_loss(t, o.sigmoid()), False, TWO, 1),
        ("R squared", lambda o, t: r2_score(t, o[:, 0]), True, GOOD, 100),
        ("R squared of a bad model", lambda o, t: r2_score(t, o[:, 0]), True, REAL, 100),
        ("RMSE below 1", lambda o, t: (o[:, 0] - t).square().mean().sqrt(), False, GOOD, 1),
        ("years", lambda o, t: (o[:, 0] - t).abs().mean(), False, YEARS, 1),
        ("minus RMSE", lambda o, t: -(o[:, 0] - t).square().mean().sqrt(), True, GOOD, 1),
        ("within a year", lambda o, t: ((o[:, 0] - t).abs() < 1).float().mean(), True, YEARS, 100),
        ("how many are right", lambda o, t: (o.argmax(1) == t).sum(), True, FIVE, 1),
        ("signal to noise", lambda o, t: 10 * ((o[:, 0] - t).square().mean().log10()).neg(), True, GOOD, 1),
    ],
)
def test_fractions_are_told_from_units(
    name: str, function: Any, maximize: bool, data: tuple[Tensor, Tensor], scale: float
) -> None:
    assert scale_of(Metric(name, maximize, function), *data) == scale


def test_a_metric_that_says_nothing_gets_no_scale() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> float:
        raise ValueError("not today")

    assert scale_of(Metric("broken", True, broken), *FIVE) is None


def test_the_name_decides_nothing() -> None:
    x = draw(200, 4)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % 3

    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float().mean()

    def top1(outputs: Tensor, targets: Tensor) -> Tensor:
        return accuracy(outputs, targets)

    works = [Workload(model=model, train=(x, y), test=(x, y), metric=m) for m in ("accuracy", accuracy, top1)]
    assert [w.quality(split=w.test) for w in works] == pytest.approx([90, 90, 90])
    assert works[2].metric.point == "one point is 0.01 of top1"
    told = Workload(model=model, train=(x, y), test=(x, y), metric=Metric("top1", True, top1, scale=1))
    assert told.quality(split=told.test) == pytest.approx(0.9)  # what the user says holds


def test_perfect_answers_are_perfect() -> None:
    targets = whole(4, N)
    right = perfect(draw(N, 4), targets)
    assert all(ACCURACY.score(answer, targets) == 100 for answer in right["softmax"])
    assert "softmax" not in perfect(draw(N, 4), whole(9, N))


@pytest.mark.parametrize(("claimed", "believed"), [(0.9, True), (90, True), (0.99, False), (99, False)])
def test_a_claim_is_in_points_or_as_the_function_says_it(claimed: float, believed: bool) -> None:
    x = draw(900, 4)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % 3
    splits = {"train": (x[:300], y[:300]), "validation": (x[300:600], y[300:600]), "test": (x[600:], y[600:])}

    def top1(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float().mean()

    work = Workload(model=model, metric=top1, claimed_quality=claimed, **splits)
    if believed:
        check(work)
    else:
        with pytest.raises(InputError, match="claimed_quality"):
            check(work)


def test_grades_are_one_more_than_outputs() -> None:
    x, y = draw(300, 4), whole(5, 300)

    def graded(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs > 0).sum(1) == targets).float().mean()

    work = Workload(model=nn.Linear(4, 4), train=(x, y), test=(x + 1, y), metric=graded, loss=ordered)
    check(work)
    assert work.divergence.kind == "bernoulli"
    wrong = Workload(model=nn.Linear(4, 4), train=(x, y), test=(x + 1, y))  # control: classes out of range
    with pytest.raises(InputError, match="below the model's 4 classes"):
        check(wrong)
