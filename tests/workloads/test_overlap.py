"""Splits that share samples: refused where they share places of one dataset, told where they share content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from equipoise.errors import InputError
from equipoise.workloads import Split, Task, Workload, cautions, check
from equipoise.workloads.models import mlp
from equipoise.workloads.overlap import shared_content, shared_places

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=SOURCE)
Y = (X[:, 0] > 0).long()
DATA = TensorDataset(X, Y)


class Items(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Folder(Items):
    """A folder dataset in torchvision's form; two of one folder, with different transforms, are two objects."""

    def __init__(self) -> None:
        self.samples = [(f"train/{i}.png", 0) for i in range(300)]


def sampled(data: Any, rows: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=16, sampler=SubsetRandomSampler(list(rows)))


ITEMS = Items()
OVERLAPS: dict[str, tuple[Any, Any, int]] = {
    "the same dataset": (DATA, DATA, 300),
    "samplers": (sampled(DATA, range(200)), sampled(DATA, range(190, 300)), 10),
    "samplers of items": (sampled(ITEMS, range(200)), sampled(ITEMS, range(150, 300)), 50),
    "subset and whole": (Subset(ITEMS, range(100)), ITEMS, 100),
    "subset of subset": (Subset(Subset(DATA, range(100, 300)), range(50)), Subset(DATA, range(120, 200)), 30),
    "concatenated": (ConcatDataset([Subset(ITEMS, range(5)), DATA]), Subset(ITEMS, range(3, 9)), 2),
    "two folder datasets": (sampled(Folder(), range(200)), sampled(Folder(), range(199, 300)), 1),
    "apart": (sampled(DATA, range(200)), sampled(DATA, range(200, 300)), 0),
    "two folder datasets apart": (sampled(Folder(), range(200)), sampled(Folder(), range(200, 300)), 0),
    "two datasets of one tensor": (TensorDataset(X[:200], Y[:200]), TensorDataset(X[190:], Y[190:]), 10),
    "two datasets of one tensor apart": (TensorDataset(X[:200], Y[:200]), TensorDataset(X[200:], Y[200:]), 0),
    "other datasets": (ITEMS, Items(), 0),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_shared_places_are_refused(case: str) -> None:
    train, test, shared = OVERLAPS[case]
    assert shared_places(Split.of(test), Split.of(train)) == shared
    work = Workload(model=mlp(4, 8, 2), train=train, test=test)
    if not shared:
        check(work)
        return
    with pytest.raises(InputError, match=r"test split must be apart from the \w+ split; got '\d+ of its .* of its own"):
        check(work)
    with pytest.raises(InputError, match="apart from"):
        Task.of(train=train, test=test)


def test_parts_of_one_split_are_compared_by_their_order() -> None:
    whole = Split.of((X, Y))
    check(Workload(model=mlp(4, 8, 2), train=whole.part(0, 200), test=whole.part(200)))
    with pytest.raises(InputError, match="10 of its 110 samples"):
        check(Workload(model=mlp(4, 8, 2), train=whole.part(0, 200), validation=whole.part(200), test=whole.part(190)))


def test_content_is_compared_bit_by_bit() -> None:
    train, test = Split.of((X[:200], Y[:200])), Split.of((torch.cat([X[200:], X[:7]]), torch.cat([Y[200:], Y[:7]])))
    assert shared_content(test, train) == 7
    assert shared_content(test, Split.of((X[:200].double(), Y[:200]))) == 7
    assert shared_content(test, Split.of(Items())) is None
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0, 2.0])] * 4)  # numbers of few bits collide in a careless hash
    even = torch.arange(256) % 2 == 0
    assert shared_content(Split.of((grid[even], Y[:128])), Split.of((grid[~even], Y[:128]))) == 0
    odd = torch.arange(3 * 500, dtype=torch.uint8).reshape(500, 3)
    assert shared_content(Split.of((odd, Y[:1].expand(500))), Split.of((odd.flip(0), Y[:1].expand(500)))) == 500


def test_equal_content_is_told() -> None:
    def notes(test: Any) -> str:
        return "\n".join(
            cautions(Workload(model=mlp(4, 8, 2), train=(X[:200], Y[:200]), test=test, validation=(X[200:250], Y[200:250])))
        )

    assert notes((X[250:], Y[250:])) == ""
    assert "200 of 300 test inputs (67%) also occur in the train split" in notes((X, Y))
    assert notes((torch.cat([X[250:], X[:1]]), torch.cat([Y[250:], Y[:1]]))) == ""  # one in 51 is common in tables


def test_nothing_of_the_test_split_is_read(tmp_path: Path) -> None:
    class Untouchable(Items):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise AssertionError("read")

    work = Workload(model=mlp(4, 8, 2), train=(X[:200], Y[:200]), test=Untouchable())
    check(work)
    cautions(work)
    assert work.identity["test"]


def test_what_verifies_is_not_calibrated_on() -> None:
    rows = {"train": (X[:100], Y[:100]), "validation": (X[100:200], Y[100:200])}
    held = TensorDataset(X[200:], Y[200:])
    with pytest.raises(InputError, match="calibration split must be apart from the test split"):
        check(Workload(model=mlp(4, 8, 2), **rows, test=held, calibration=held))
    check(Workload(model=mlp(4, 8, 2), **rows, test=held, calibration=TensorDataset(X[:50], Y[:50])))


class Clips(Items):
    """Three clips of each file."""

    def __init__(self, part: str) -> None:
        self.samples = [(f"{part}/{i}.mp4", 0) for i in range(100)]


class Words(Items):
    """Texts in the attribute that folders have their files in."""

    def __init__(self) -> None:
        self.samples = [("ok", i % 2) for i in range(300)]


@pytest.mark.parametrize(("first", "second"), [(Clips("a"), Clips("b")), (Words(), Words())])
def test_what_only_looks_like_a_folder_is_compared_as_what_it_is(first: Items, second: Items) -> None:
    assert shared_places(Split.of(first), Split.of(second)) == 0
    assert shared_places(Split.of(Subset(first, range(100))), Split.of(Subset(first, range(90, 200)))) == 10


class Rare(Items):
    """One sample in a thousand is of the second class; none of the first five hundred."""

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index % 300], int(index >= 1998)


def test_a_rare_class_that_a_sample_does_not_hold_is_no_mistake() -> None:
    Task.of(train=Rare(), validation=(X[:100], Y[:100]), test=(X[100:], Y[100:]), outputs=2)
