"""What is told before the work: memorised validation, NaN far down, and a share of the test split as the way out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from equipoise.errors import InputError
from equipoise.workloads import Workload, cautions, check
from equipoise.workloads.models import mlp

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(6000, 6, generator=SOURCE)
Y = torch.randint(0, 2, (6000,), generator=SOURCE)  # nothing to learn: what is right is remembered


class Memory(nn.Module):
    """Knows the labels of what it was trained on by heart, and guesses the rest."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", inputs.clone())
        self.register_buffer("labels", nn.functional.one_hot(targets, 2).float() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        apart = torch.cdist(x, self.keys)  # type: ignore[arg-type]
        return self.labels[apart.argmin(1)]  # type: ignore[index]


def memorised(**changes: Any) -> Workload:
    given: dict[str, Any] = {"train": (X[:600], Y[:600]), "test": (X[600:1000], Y[600:1000])}
    return Workload(model=Memory(X[:600], Y[:600]), **{**given, **changes})


def test_memorised_validation_is_told() -> None:
    carved = memorised()
    assert carved.validation_from == "train"
    (note,) = cautions(carved)
    assert "validation was carved from the training data (untouched model: accuracy 100.00 on it, 100.00 on the rest)" in note
    assert "validation=0.3" in note
    by_hand = memorised(train=(X[:400], Y[:400]), validation=(X[400:600], Y[400:600]))
    assert by_hand.validation_from == "given"
    (note,) = cautions(by_hand)
    assert "the untouched model has accuracy 100.00 on validation, as on its training data" in note


def test_honest_validation_is_not() -> None:
    assert cautions(memorised(validation=(X[1000:1400], Y[1000:1400]))) == ()
    assert cautions(memorised(validation=0.5)) == ()


@pytest.mark.parametrize("share", [0.3, "test:0.3"])
def test_a_share_of_the_test_split_serves(share: Any) -> None:
    made, whole = memorised(validation=share), memorised()
    assert made.validation_from == "test"
    assert (len(made.train), len(made.validation), len(made.test)) == (600, 120, 280)
    rows = [{tuple(row) for row in part.tensors()[0].tolist()} for part in (made.validation, made.test, whole.test)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == rows[2]
    assert made.quality() < 65  # the truth, where the carved split says 100
    assert whole.quality() == 100
    check(made)
    assert made.fingerprint == memorised(validation=0.3).fingerprint


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, math.nan, True, "test:2", "test:", "all", "train:0.3", 500])
def test_other_shares_are_refused(share: Any) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        memorised(validation=share)


# ---- NaN far down -----------------------------------------------------------------------------------------------------------

NET = mlp(6, 8, 2)
VALUES = X[:, :1] * 2


class Items(Dataset[tuple[Tensor, Any]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.x[index], self.y[index]


def late(role: str) -> int:
    """The place in the user's data of a sample that comes late in the split's fixed shuffle."""
    work = Workload(model=NET, train=(X[:5000], Y[:5000]), test=(X[5000:], Y[5000:]))
    return int(getattr(work, role).order[-3])


@pytest.mark.parametrize("role", ["train", "validation"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", [lambda x, y: (x, y), Items])
def test_the_row_is_told(role: str, bad: float, form: Any) -> None:
    row, x = late(role), X.clone()
    x[row, 4] = bad
    work = Workload(model=NET, train=form(x[:5000], Y[:5000]), test=form(x[5000:], Y[5000:]))
    with pytest.raises(InputError, match=f"{role} inputs must be finite; got 'NaN or infinity in row {row}'"):
        check(work)


def test_targets_and_transforms_are_looked_at_too() -> None:
    row, y = late("train"), VALUES.clone()
    y[row] = math.nan
    with pytest.raises(InputError, match=f"train targets must be finite; got 'NaN or infinity in row {row}'"):
        check(Workload(model=mlp(6, 8, 1), train=(X[:5000], y[:5000]), test=(X[5000:], y[5000:]), metric="mae"))
    x = X.abs()
    x[row] = -1.0
    with pytest.raises(InputError, match=f"train inputs must be finite; got 'NaN or infinity in row {row}'"):
        check(Workload(model=NET, train=(x[:5000], Y[:5000]), test=(x[5000:], Y[5000:]), transform=torch.log))
    with pytest.raises(InputError, match=r"train transform must run; it raised TypeError"):
        Workload(model=NET, train=(x, Y), test=(x, Y), transform=lambda: 1).train.tensors()  # type: ignore[arg-type, misc]


def test_other_splits_rows_are_not_this_ones() -> None:
    x = X.clone()
    x[5500] = math.nan
    work = Workload(model=NET, train=(x[:5000], Y[:5000]), test=(x[5000:], Y[5000:]))
    check(work)  # the test split is left alone until it is verified on
    with pytest.raises(InputError, match="test inputs must be finite; got 'NaN or infinity in row 500'"):
        work.quality(split=work.test)


def test_answers_are_looked_at_beyond_the_sample() -> None:
    class Root(nn.Module):
        def __init__(self, edge: float) -> None:
            super().__init__()
            self.net, self.edge = NET, edge

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + (x[:, :1] - self.edge).sqrt().nan_to_num(0.0, posinf=0.0) + 0 * (x[:, :1] - self.edge).log()

    made = Workload(model=NET, train=(X[:5000], Y[:5000]), test=(X[5000:], Y[5000:]))
    values = made.validation.tensors()[0][:, 0]
    last = int(values.argmin())
    assert last > 256  # control: the sample alone would not show it
    edge = float(values.sort().values[:2].mean())
    with pytest.raises(InputError, match=f"NaN or infinity for row {int(made.validation.order[last])} of the validation data"):
        check(Workload(model=Root(edge), train=(X[:5000], Y[:5000]), test=(X[5000:], Y[5000:])))
