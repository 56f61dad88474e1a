"""The workload takes what users have, changes nothing of theirs, and tells all that is unusable at once."""

from __future__ import annotations

import copy
import math
import re
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from equipoise.errors import InputError
from equipoise.workloads import Metric, Workload, check
from equipoise.workloads.metrics import metric_of
from equipoise.workloads.models import mlp

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=SOURCE)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
TRAIN, TEST = (X[:200], Y[:200]), (X[200:], Y[200:])


def work(model: Any = None, **changes: Any) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given: dict[str, Any] = {"model": mlp(4, 8, 3) if model is None else model, "train": TRAIN, "test": TEST}
        return Workload(**{**given, **changes})


def test_usable_forms_pass() -> None:
    check(work())
    check(work(lambda: mlp(4, 8, 3), train=DataLoader(TensorDataset(*TRAIN), batch_size=16), name="built"))
    values = (X[:200], X[:200, :1] * 2), (X[200:], X[200:, :1] * 2)
    regression = work(mlp(4, 8, 1), train=values[0], test=values[1], metric="mse")
    check(regression)
    assert not regression.classifier
    assert work().classifier


def test_splits_are_carved_from_train_alone() -> None:
    made = work()
    assert (len(made.train), len(made.validation), len(made.calibration), len(made.test)) == (160, 40, 160, 100)
    rows = [{tuple(r) for r in part.tensors()[0].tolist()} for part in (made.train, made.validation, made.test)]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    given = work(validation=TEST, calibration=(X[:32], Y[:32]))
    assert (len(given.train), len(given.validation), len(given.calibration)) == (200, 100, 32)


def test_the_users_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    before = copy.deepcopy(model.state_dict())
    made = work(model)
    check(made)
    made.quality()
    assert model.training
    assert not made.model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_fingerprint_tells_what_changed() -> None:
    base = work().fingerprint
    assert len(base) == 16
    assert work().fingerprint == base
    with torch.no_grad():
        other = mlp(4, 8, 3)
    gelu = nn.Sequential(*[nn.GELU() if isinstance(m, nn.ReLU) else m for m in work().model])
    for changed in (
        work(other),
        work(gelu),
        work(train=(X[1:201], Y[1:201])),
        work(train=(X[:200], 2 - Y[:200])),
        work(test=(X[201:], Y[201:])),
        work(metric="f1"),
    ):
        assert changed.fingerprint != base


def test_fingerprint_ignores_addresses() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

        def extra_repr(self) -> str:
            return str(object())

    net = Net()
    assert work(net).fingerprint == work(net).fingerprint


def test_constructor_reports_all_mistakes_together() -> None:
    with pytest.raises(InputError) as caught:
        work(3, train=X, test=None, metric="acuracy", loss="huber")
    text = str(caught.value)
    assert all(part in text for part in ("model must be", "train must be", "test must be", "'accuracy'", "loss must be one of"))
    with pytest.raises(InputError, match="builder's result"):
        work(lambda: 3)
    with pytest.raises(InputError, match="a function that builds one"):
        work(nn.Linear)


class Forward(nn.Module):
    """A model of one function, for breaking it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.net = mlp(4, 8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net, x)


def nan_weights() -> nn.Module:
    net = mlp(4, 8, 3)
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    return net


def meta() -> nn.Module:
    with torch.device("meta"):
        return mlp(4, 8, 3)


class Noisy(Dataset):
    """Random augmentation where it must not be."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index] + torch.randn(4), int(Y[index])


def broken_metric(outputs: Tensor, targets: Tensor) -> float:
    raise RuntimeError("no such thing")


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no test data": ({"test": (X[:0], Y[:0])}, "test split must be at least 1"),
    "empty loader": ({"train": DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=4)}, "train split must be at least 1"),
    "empty stream": ({"validation": iter([])}, "validation split must be at least 3"),
    "NaN weights": ({"model": nan_weights()}, r"model.0.weight must be finite"),
    "meta weights": ({"model": meta()}, "a meta tensor"),
    "one class": ({"train": (X[:200], Y[:200] * 0)}, "only class 0"),
    "negative label": ({"train": (X[:200], Y[:200] - 1)}, "0 or more; got -1"),
    "label too high": ({"model": mlp(4, 8, 2)}, "below the model's 2 classes; got 2"),
    "NaN input": ({"train": (X[:200] / torch.tensor(0.0), Y[:200])}, "train inputs must be finite"),
    "random data": ({"validation": Noisy()}, "the same at every read"),
    "wrong width": ({"model": mlp(5, 8, 3)}, "model at batch 1 must run; it raised RuntimeError"),
    "tuple output": (
        {"model": Forward(lambda net, x: (net(x), x))},
        r"one tensor; got a tuple of 2: \(1, 3\), \(1, 4\)\. Choose one: Workload\(\.\.\., output=0\)",
    ),
    "scalar output": ({"model": Forward(lambda net, x: net(x).sum())}, "1 rows"),
    "fixed batch": ({"model": Forward(lambda net, x: net(x).reshape(1, -1))}, "model output at batch 2 must be 2 rows"),
    "fixed view": ({"model": Forward(lambda net, x: net(x.view(2, 4)))}, "model at batch 1 must run"),
    "mixes samples": ({"model": Forward(lambda net, x: net(x - x.mean(0)))}, "alone and in a batch"),
    "BatchNorm on the batch": ({"model": nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), mlp(4, 3))}, "model"),
    "dropout in eval": ({"model": Forward(lambda net, x: net(F.dropout(x, 0.5, training=True)))}, "alone and in a batch"),
    "NaN output": ({"model": Forward(lambda net, x: net(x) / 0 * 0)}, "model output"),
    "NaN metric": ({"metric": lambda outputs, targets: math.nan}, "must be finite; got nan"),
    "metric raises": ({"metric": broken_metric}, "broken_metric must run; it raised RuntimeError: no such thing"),
    "metric returns a pair": ({"metric": lambda outputs, targets: (1, 2)}, "one number"),
    "loss returns a row": ({"loss": lambda outputs, targets: outputs[:, 0]}, "loss must be one finite number"),
    "false claim": ({"claimed_quality": 99.0}, "claimed_quality must be within two sigma"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_is_told_with_its_remedy(case: str) -> None:
    changes, message = UNUSABLE[case]
    with pytest.raises(InputError, match=message) as caught:
        check(work(**changes))
    assert all(line.rstrip().endswith(".") for line in str(caught.value).splitlines())


def test_several_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        check(work(nan_weights(), test=(X[:0], Y[:0])))
    assert len(str(caught.value).splitlines()) == 2


def test_a_true_or_modest_claim_passes() -> None:
    found = work().quality()
    for claim in (found, found - 30):
        check(work(claimed_quality=claim))


class Untouchable(Dataset):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise AssertionError("the test split was read")


def test_the_test_split_is_not_read() -> None:
    made = work(test=Untouchable())
    check(made)
    assert made.fingerprint
    with pytest.raises(InputError, match="was read"):  # control
        made.quality(split=made.test)


class Leaving(nn.Module):
    """A model whose forward ends the program, as a script does that was not meant to be called."""

    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(3)


class Stop(BaseException):
    """What some frameworks end a step by."""


def leave(*_: Any) -> Any:
    raise Stop("enough")


class Left(Dataset[Any]):
    def __len__(self) -> int:
        return 300

    def __getitem__(self, i: int) -> Any:
        raise SystemExit(4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metric": leave}, "metric leave must run; it raised Stop"),
        ({"metric": lambda outputs, targets: sys.exit(2)}, "must run; it raised SystemExit: 2"),
        ({"loss": leave}, "loss must run; it raised Stop"),
        ({"model": Leaving()}, "model at batch 1 must run; it raised SystemExit: 3"),
        ({"train": Left()}, "must run; it raised SystemExit: 4"),
    ],
)
def test_what_ends_the_program_in_the_users_code_is_told(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as told:
        check(work(**changes))
    assert named in str(told.value)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Metric("x", True, 3), "metric.function must be a function of (outputs, targets); got 3"),
        (lambda: Metric("x", True, max, each=3), "metric.each must be a function"),
        (lambda: Metric("x", None, max), "metric.maximize must be True or False; got None"),
        (lambda: metric_of(Metric), "metric must be a name or a function of (outputs, targets)"),
        (lambda: metric_of(None), "metric must be a name or a function of (outputs, targets); got None"),
    ],
)
def test_a_metric_that_could_not_be_called_is_refused_where_it_is_made(made, told) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        made()


@pytest.mark.parametrize("name", ["two\nlines", "", "x" * 201, "bell\a", 3])
def test_a_name_that_no_manifest_can_hold_is_refused_at_once(name: Any) -> None:
    if name:  # an empty one takes the class's
        with pytest.raises(InputError, match="name must be 1 to 200 printable characters"):
            work(name=name)
    with pytest.raises(InputError, match=r"metric\.name must be 1 to 200 printable characters"):
        Metric(name, True, lambda outputs, targets: 1.0)
