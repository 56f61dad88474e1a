"""Tasks: read like workloads, without a model, and everything that cannot be learned from is told at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from equipoise.errors import InputError
from equipoise.workloads import METRICS, Shape, Task, Workload, load_task, task_of
from equipoise.workloads.augment import shifted
from equipoise.workloads.digits import digits_splits
from equipoise.workloads.models import mlp

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=SOURCE)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
TRAIN, TEST = (X[:200], Y[:200]), (X[200:], Y[200:])


def make(**changes: Any) -> Task:
    return Task.of(**{"train": TRAIN, "test": TEST, **changes})


def test_shape_is_read_off_the_data() -> None:
    assert make().shape == Shape((4,), 3)
    assert make(outputs=7).outputs == 7
    values = make(train=(X, X[:, :2] * 2), metric="mse")
    assert (values.sample, values.outputs, values.vocabulary) == ((4,), 2, None)
    tokens = torch.arange(80).reshape(20, 4) % 11
    dense = make(train=(tokens, tokens), test=(tokens, tokens), metric="cross_entropy")
    assert dense.shape == Shape((4,), 11, 11, dense=True)
    assert [Shape((4,), 3).kind, Shape((3, 8, 8), 3).kind, Shape((4,), 3, 5).kind, Shape((2, 9), 3).kind] == [
        "vectors",
        "images",
        "tokens",
        "arrays",
    ]


def test_splits_are_those_of_a_workload() -> None:
    task, work = make(), Workload(model=mlp(4, 8, 3), train=TRAIN, test=TEST)
    for role in ("train", "validation", "test"):
        mine, other = getattr(task, role).tensors(), getattr(work, role).tensors()
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    again = task_of(work)
    assert again.shape == task.shape
    assert again.fingerprint == task_of(work).fingerprint
    assert torch.equal(again.example, work.example)


@pytest.mark.parametrize("given", [{}, {"metric": "f1"}, {"loss": "cross_entropy", "augment": lambda inputs, _: inputs}])
def test_a_workload_of_a_task_and_back_again_is_the_same_task(given: dict[str, Any]) -> None:
    task, model = make(**given), mlp(4, 8, 3)
    again = task_of(task.workload(model))
    assert again.fingerprint == task.fingerprint
    assert (again.name, again.shape, again.augment, again.loss) == (task.name, task.shape, task.augment, task.loss)
    inputs, targets = task.validation.tensors()
    assert task.workload(model).quality() == task.metric.score(model(inputs), targets)


def test_outputs_of_a_workload_are_its_models() -> None:
    work = Workload(model=mlp(4, 8, 5), train=TRAIN, test=TEST)
    assert task_of(work).outputs == 5
    logit = Workload(model=mlp(4, 8, 1), train=(X, Y.clamp(max=1)), test=TEST)
    assert task_of(logit).outputs == 1


@pytest.mark.parametrize("metric", ["accuracy", "cross_entropy", "f1"])
def test_what_a_softmaxed_model_learned_is_asked_of_logits(metric: str) -> None:
    softmaxed = torch.nn.Sequential(mlp(4, 8, 3), torch.nn.Softmax(dim=1))
    again = task_of(Workload(model=softmaxed, train=TRAIN, test=TEST, metric=metric))
    assert (again.metric, again.loss) == (METRICS[metric], Task.of(train=TRAIN, test=TEST).loss)
    far = torch.full((len(TEST[1]), 3), -9.0)  # logits, of which no loss of probabilities makes a number that may grow
    assert float(again.loss(far, TEST[1])) == pytest.approx(math.log(3))


def test_fingerprint_tells_what_changed() -> None:
    base = make().fingerprint
    assert make().fingerprint == base
    changes: tuple[dict[str, Any], ...] = (
        {"train": (X[1:201], Y[1:201])},
        {"test": (X[201:], Y[201:])},
        {"metric": "f1"},
        {"outputs": 4},
        {"name": "other"},
        {"augment": shifted(1)},
        {"transform": torch.tanh},
    )
    for change in changes:
        assert make(**change).fingerprint != base


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"train": (X[:0], Y[:0])}, "train split must be at least 1"),
    "no test data": ({"test": (X[:0], Y[:0])}, "test split must be at least 1"),
    "negative label": ({"train": (X, Y - 1)}, "train targets must be 0 or more; got -1"),
    "label too high": ({"outputs": 2}, "train targets must be below the 2 outputs; got 2"),
    "one class": ({"train": (X, Y * 0)}, "of at least two classes"),
    "labels as floats": ({"train": (X, Y.float())}, "whole numbers for metric accuracy"),
    "a column of labels": ({"train": (X, Y[:, None])}, r"of shape \(N,\)"),
    "late NaN": ({"train": (X.index_fill(0, torch.tensor([123]), float("nan")), Y)}, "NaN or infinity in row 123"),
    "infinite target": ({"train": (X, X[:, 0] / 0), "metric": "mse"}, "targets must be finite"),
    "raw bytes": ({"train": (X.to(torch.uint8), Y)}, "floating point, or int64 tokens"),
    "numbers as tokens": ({"vocabulary": 9}, "int64 tokens where a vocabulary is given"),
    "token too high": ({"train": (X.long().abs() + 5, Y), "vocabulary": 6}, "tokens from 0 to 5"),
    "negative token": ({"train": (X.long() - 9, Y), "vocabulary": 6}, "tokens from 0 to 5"),
    "NaN metric": ({"metric": lambda outputs, targets: float("nan")}, "metric <lambda> must be finite"),
    "metric that fails": ({"metric": lambda outputs, targets: outputs.missing}, "metric <lambda> must run"),
    "infinite loss": ({"loss": lambda outputs, targets: outputs.sum() / 0}, "loss must be finite"),
    "wrong outputs": ({"train": (X, X), "metric": "mse", "outputs": 3}, "the 4 values of each target"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_is_told_with_its_remedy(case: str) -> None:
    changes, message = UNUSABLE[case]
    with pytest.raises(InputError, match=message) as caught:
        make(**changes)
    assert all(line.rstrip().endswith(".") for line in str(caught.value).splitlines())


def test_several_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        make(train=None, metric="acuracy", loss="nothing")
    assert len(str(caught.value).splitlines()) == 3


class Lazy(Dataset[tuple[Tensor, int]]):
    """Items that are read one by one; counts the reads."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return X[index], int(Y[index])


def test_items_are_read_once_for_the_classes_and_the_test_split_never() -> None:
    class Untouchable(Lazy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise AssertionError("the test split was read")

    assert make(train=Lazy(), test=Untouchable()).outputs == 3
    with pytest.raises(InputError, match="the test split was read"):  # control
        make(test=Untouchable()).test.tensors()


def test_bad_shapes() -> None:
    bad: tuple[Callable[[], Shape], ...] = (
        lambda: Shape((), 3),
        lambda: Shape((3, 0, 2), 3),
        lambda: Shape((3,), 0),
        lambda: Shape((3.0,), 3),  # type: ignore[arg-type]
    )
    for make_bad in bad:
        with pytest.raises(InputError, match="whole numbers of at least 1"):
            make_bad()


def test_cross_entropy_and_bits_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]))
    labels = torch.tensor([0, 2])
    bits = METRICS["bits_per_character"]
    assert bits.score(logits, labels) == pytest.approx(2.0)  # 1 bit and 3 bits
    assert METRICS["cross_entropy"].score(logits, labels) == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert bits.each(logits, labels).tolist() == pytest.approx([1.0, 3.0])
    dense = torch.stack((logits, logits.flip(0)), dim=2)  # (2, 3, 2): the second position is the other row
    each = bits.each(dense, torch.tensor([[0, 2], [2, 0]]))
    assert each.tolist() == pytest.approx([2.0, 2.0])
    assert METRICS["cross_entropy"].score(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0])) == pytest.approx(0.6931, abs=1e-4)
    assert not bits.maximize
    assert bits.drop(2.0, 2.5) == 0.5


OWN = """
import torch
from equipoise.workloads import Task, Workload

X, Y = torch.randn(60, 4), torch.arange(60) % 3

def make_task():
    return Task.of(train=(X, Y), test=(X, Y), name="own")

def make_workload():
    return Workload(model=torch.nn.Linear(4, 3), train=(X, Y), test=(X, Y), name="whole")

def make_nothing():
    return 7
"""


def test_by_name(tmp_path: Path) -> None:
    digits = load_task("digits")
    assert (digits.shape, len(digits.train), digits.metric.name) == (Shape((1, 8, 8), 10), 797, "accuracy")
    assert torch.equal(digits.train.tensors()[0], digits_splits()[0].tensors()[0])
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert load_task(f"{file}:make_task").name == "own"
    assert load_task(f"{file}:make_workload").shape == Shape((4,), 3)
    for spec, message in (
        (f"{file}:make_nothing", "returns a Task or a Workload; got 'int'"),
        (f"{file}:make_tusk", "Did you mean 'make_task'"),
        ("digit", "Did you mean 'digits'"),
        ("mine.py", "for example mine.py:make_task"),
        ("cifar10:", "task must be cifar10:PATH; got 'cifar10:'. Write cifar10:DATA."),
        ("cifar", "task must be one of"),
        ("images:x?weights=y", "option of images must be one of crop, holdout, shift"),
        ("images:x", "an existing folder or zip"),
    ):
        with pytest.raises(InputError, match=message):
            load_task(spec)


def test_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kind, shade in (("cat", 0), ("bee", 200)):
        for role, count in (("train", 12), ("test", 6)):
            for number in range(count):
                file = tmp_path / "set" / role / kind / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 8), (shade, 0, number)).save(file)
    task = load_task(f"images:{tmp_path / 'set'}?shift=1")
    assert task.shape == Shape((3, 8, 6), 2)
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 4, 12)
    assert task.augment is not None
    held = load_task(f"images:{tmp_path / 'set'}?holdout=5")
    assert (len(held.train), len(held.validation), len(held.test)) == (24, 5, 7)
    with pytest.raises(InputError, match="10 classes of 32x32"):
        load_task(f"cifar10:{tmp_path / 'set'}")


@pytest.mark.data
@pytest.mark.slow
def test_cifar10(data_folder: Path) -> None:
    task = load_task(f"cifar10:{data_folder / 'cifar10-jpeg.zip'}")
    assert task.shape == Shape((3, 32, 32), 10)
    assert (len(task.train), len(task.validation), len(task.test)) == (45_000, 5_000, 10_000)
