"""Whether whole numbers are classes follows from metric, loss and outputs; labels that are not judged count nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from equipoise.errors import InputError
from equipoise.workloads import METRICS, Task, Workload, check, task_of
from equipoise.workloads.labels import masked_metric
from equipoise.workloads.metrics import ignoring_loss
from equipoise.workloads.models import mlp

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=SOURCE)
AGES = (40 + 10 * X[:, 0]).round().long()
TWO = (X[:, 0] > 0).long()
SEVERAL = (X[:, :3] > 0).long()


def work(model: nn.Module, targets: Tensor, **more: Any) -> Workload:
    return Workload(**{"model": model, "train": (X[:200], targets[:200]), "test": (X[200:], targets[200:]), **more})


def own_score(outputs: Tensor, targets: Tensor) -> float:
    return -float((outputs.flatten() - targets.flatten().float()).abs().mean())


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten() - targets.flatten()).square().mean()


CASES: dict[str, tuple[int, Tensor, dict[str, Any], bool, torch.dtype]] = {
    "ages by mae": (1, AGES, {"metric": "mae"}, False, torch.float32),
    "ages by mse": (1, AGES, {"metric": "mse"}, False, torch.float32),
    "ages by one's own": (1, AGES, {"metric": own_score}, False, torch.float32),
    "ages by one's own metric and loss": (1, AGES, {"metric": own_score, "loss": own_loss}, False, torch.float32),
    "ages by loss": (1, AGES[:, None], {"metric": own_score, "loss": nn.L1Loss()}, False, torch.float32),
    "two classes, one logit": (1, TWO, {}, True, torch.int64),
    "two classes, one logit, one's own metric": (1, TWO, {"metric": own_score}, True, torch.int64),
    "two classes as floats": (2, TWO.float(), {}, True, torch.int64),
    "two classes as floats, one logit": (1, TWO.float(), {}, True, torch.int64),
    "two classes as a column of floats, one logit": (1, TWO.float()[:, None], {}, True, torch.int64),
    "two classes as bools": (2, TWO.bool(), {}, True, torch.int64),
    "two classes by one's own": (2, TWO, {"metric": lambda o, t: float((o.argmax(1) == t).float().mean())}, True, torch.int64),
    "several labels": (
        3,
        SEVERAL,
        {"metric": own_score, "loss": F.binary_cross_entropy_with_logits},
        False,
        torch.float32,
    ),
    "several labels, own loss": (3, SEVERAL, {"metric": own_score, "loss": own_loss}, False, torch.int64),
    "numbers": (1, X[:, :1], {"metric": "mae"}, False, torch.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_targets_mean_what_metric_and_loss_say(case: str) -> None:
    outputs, targets, more, classifier, dtype = CASES[case]
    made = work(mlp(4, 8, outputs), targets, **more)
    check(made)
    assert made.classifier is classifier
    for split in (made.train, made.validation, made.test):
        assert split.targets().dtype == split.tensors()[1].dtype == dtype
    loss = made.loss(made.model.train()(made.example), made.validation.take(2).targets())
    torch.autograd.backward(loss)  # torch's own losses take floats only


def test_values_are_as_good_as_they_are() -> None:
    made = work(mlp(4, 8, 1), AGES, metric="mae")
    outputs, targets = made.model(X[:200]).detach(), AGES[:200].float()
    wanted = (outputs.flatten() - targets).abs()[made.validation.order].mean()
    assert made.quality() == pytest.approx(float(wanted), rel=1e-5)
    assert Task.of(train=(X, AGES), test=(X[:9], AGES[:9]), metric="mae").outputs == 1


def test_classes_as_floats_in_any_form() -> None:
    items = [(row, float(label)) for row, label in zip(X[:200], TWO, strict=False)]
    for train in (items, DataLoader(items, batch_size=9, collate_fn=default_collate), DataLoader(Floats(), batch_size=9)):
        made = work(mlp(4, 8, 2), TWO, train=train)
        check(made)
        assert made.train.targets().dtype == made.test.targets().dtype == torch.int64


class Floats(Dataset[tuple[Tensor, float]]):
    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        return X[index], float(TWO[index])


def test_a_loss_that_broadcasts_is_refused() -> None:
    with pytest.raises(InputError, match="loss must run; it raised UserWarning: Using a target size"):
        check(work(mlp(4, 8, 1), AGES, metric=own_score, loss=nn.L1Loss()))


def test_ages_without_a_word_are_told_what_to_say() -> None:
    with pytest.raises(InputError, match=r"below the model's 2 classes.*metric='mae'"):
        check(work(mlp(4, 8, 1), AGES))


# ---- labels that are not judged -----------------------------------------------------------------------------------------

IMAGES = torch.randn(60, 2, 5, 5, generator=SOURCE)
MAPS = torch.stack([(IMAGES[:, 0] > 0), (IMAGES[:, 1] > 0)]).sum(0).long()
VOID = torch.rand(MAPS.shape, generator=SOURCE) < 0.3
VOID[7] = True


def segment(**more: Any) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Conv2d(2, 3, 1)
    label = more.get("ignore_label") or 255
    maps = MAPS.masked_fill(VOID, label)
    return Workload(model=model, train=(IMAGES[:40], maps[:40]), test=(IMAGES[40:], maps[40:]), **more)


@pytest.mark.parametrize("label", [255, -100, 1])
@pytest.mark.parametrize("metric", ["accuracy", "f1", "cross_entropy"])
def test_void_pixels_count_nowhere(label: int, metric: str) -> None:
    made = segment(ignore_label=label, metric=metric)
    check(made)
    assert made.classifier
    assert made.ignore_label == label
    inputs, targets = made.validation.tensors()
    outputs = made.model(inputs).detach()
    kept = targets != label
    wanted = METRICS[metric].score(outputs.movedim(1, -1)[kept], targets[kept])
    assert made.quality() == pytest.approx(wanted, rel=1e-6)
    assert float(made.loss(outputs, targets)) == pytest.approx(
        float(F.cross_entropy(outputs, targets, ignore_index=label)), rel=1e-5
    )
    each = made.metric.read(outputs, targets).each
    if each is None:
        assert metric == "f1"
    else:
        assert len(each) == len(targets)
        assert float(each.mean()) == pytest.approx(wanted, rel=1e-5)  # in the same points


def test_nothing_judged_costs_nothing() -> None:
    outputs = torch.randn(2, 3, 4, requires_grad=True)
    loss = ignoring_loss(F.cross_entropy, 255)(outputs, torch.full((2, 4), 255))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_rows_without_a_label() -> None:
    metric = masked_metric(METRICS["accuracy"], -1)
    assert metric.score(torch.eye(3), torch.tensor([0, -1, 1])) == 50.0
    assert metric.each(torch.eye(3), torch.tensor([0, -1, 1])).tolist() == [1.5, 0.0, 0.0]  # type: ignore[union-attr]


def test_void_labels_without_a_word_are_told_what_to_say() -> None:
    with pytest.raises(InputError, match="ignore_label=255"):
        check(segment())
    maps = MAPS.masked_fill(VOID, -100)
    with pytest.raises(InputError, match=r"0 or more; got -100.*ignore_label=-100"):
        check(Workload(model=nn.Conv2d(2, 3, 1), train=(IMAGES[:40], maps[:40]), test=(IMAGES[40:], maps[40:])))


def test_a_task_leaves_them_out_too() -> None:
    assert task_of(segment(ignore_label=255)).outputs == 3
    maps = MAPS.masked_fill(VOID, 255)
    task = Task.of(train=(IMAGES[:40], maps[:40]), test=(IMAGES[40:], maps[40:]), ignore_label=255)
    assert task.outputs == 3


@pytest.mark.parametrize("metric", ["accuracy", "f1", "cross_entropy"])
def test_a_task_goes_to_a_model_and_back_with_what_it_does_not_judge(metric: str) -> None:
    work = segment(ignore_label=255, metric=metric)
    task = task_of(work)
    again = task.workload(work.model)
    check(again)
    assert (again.ignore_label, again.classifier) == (255, True)
    assert task_of(again).fingerprint == task.fingerprint
    inputs, targets = work.validation.tensors()
    outputs = work.model(inputs).detach()
    for twice in (task, again, task_of(again)):  # left out twice is left out once
        assert twice.metric.score(outputs, targets) == pytest.approx(work.quality(), rel=1e-6)
        assert float(twice.loss(outputs, targets)) == pytest.approx(float(work.loss(outputs, targets)), rel=1e-6)
