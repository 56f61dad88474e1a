"""A loader's sampler says which samples make the split; every usual form of data is read, or refused in one sentence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from equipoise.errors import InputError
from equipoise.workloads import Split

N = 100
X = torch.arange(N).float()[:, None]
Y = torch.arange(N) % 2
DATA = TensorDataset(X, Y)
PERM = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()


class Items(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], int(Y[index])


class Every3rd(Sampler[int]):
    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        torch.rand(1)
        random.random()
        np.random.rand()
        if self.generator is not None:
            torch.rand(1, generator=self.generator)
        return iter(range(0, N, 3))

    def __len__(self) -> int:
        return 34


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield 3


def ids(split: Split) -> list[int]:
    return sorted(split.tensors()[0].flatten().int().tolist())


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(options.pop("data", DATA), **options)


weights = torch.ones(N)
weights[:70] = 0
SAMPLED: dict[str, tuple[DataLoader[Any], list[int], str]] = {
    "subset": (loader(batch_size=8, sampler=SubsetRandomSampler(PERM[:80])), sorted(PERM[:80]), ""),
    "subset of items": (loader(data=Items(), batch_size=8, sampler=SubsetRandomSampler(PERM[:80])), sorted(PERM[:80]), ""),
    "subset with repeats": (loader(sampler=SubsetRandomSampler([3, 3, 5])), [3, 5], ""),
    "subset in a batch sampler": (
        loader(batch_sampler=BatchSampler(SubsetRandomSampler(PERM[80:]), 7, False)),
        sorted(PERM[80:]),
        "",
    ),
    "list of indices": (loader(batch_size=4, sampler=[5, 1, 9]), [1, 5, 9], ""),
    "negative indices": (loader(batch_size=4, sampler=[-1, -2]), [98, 99], ""),
    "range": (loader(batch_size=4, sampler=range(10, 20)), list(range(10, 20)), ""),
    "batches of indices": (loader(batch_sampler=[[1, 2], [3]]), [1, 2, 3], ""),
    "sequential": (loader(batch_size=8), list(range(N)), ""),
    "sequential over a part": (loader(batch_size=8, sampler=SequentialSampler(range(30))), list(range(30)), ""),
    "shuffled, last dropped": (loader(batch_size=8, shuffle=True, drop_last=True), list(range(N)), ""),
    "with replacement": (loader(sampler=RandomSampler(DATA, replacement=True, num_samples=9)), list(range(N)), "draws 9"),
    "some at random": (loader(batch_size=8, sampler=RandomSampler(DATA, num_samples=9)), list(range(N)), "draws 9"),
    "weighted": (loader(batch_size=8, sampler=WeightedRandomSampler(weights, 500)), list(range(70, N)), "weights are not"),
    "distributed": (loader(sampler=DistributedSampler(DATA, num_replicas=4, rank=1)), list(range(N)), "between processes"),
    "one's own": (loader(batch_size=8, sampler=Every3rd()), list(range(0, N, 3)), "Every3rd was read once"),
    "one's own, in batches": (loader(batch_sampler=BatchSampler(Every3rd(), 8, True)), list(range(0, N, 3)), "34 of 100"),
    "no batches": (loader(batch_size=None, sampler=SubsetRandomSampler(PERM[:9])), sorted(PERM[:9]), ""),
    "fetched in batches": (
        loader(batch_size=None, sampler=BatchSampler(SequentialSampler(range(20)), 8, False)),
        list(range(20)),
        "",
    ),
    "subset of subset": (
        loader(data=Subset(Subset(DATA, PERM[:50]), list(range(40))), batch_size=4, sampler=SubsetRandomSampler(range(20))),
        sorted(PERM[:20]),
        "",
    ),
    "concatenated": (
        loader(data=ConcatDataset([Subset(Items(), range(5)), Items()]), sampler=SubsetRandomSampler([0, 4, 5, 104])),
        [0, 0, 4, 99],
        "",
    ),
    "workers kept": (loader(data=Items(), batch_size=8, num_workers=1, persistent_workers=True), list(range(N)), ""),
}


@pytest.mark.parametrize("case", SAMPLED)
def test_the_sampler_makes_the_split(case: str) -> None:
    data, wanted, note = SAMPLED[case]
    split = Split.of(data, name="train")
    assert ids(split) == wanted
    assert len(split.notes) == bool(note)
    assert not note or note in split.notes[0]


def test_two_samplers_over_one_dataset_are_apart() -> None:
    train, test = (Split.of(loader(batch_size=50, sampler=SubsetRandomSampler(p))) for p in (PERM[:80], PERM[80:]))
    assert (len(train), len(test)) == (80, 20)
    assert not set(ids(train)) & set(ids(test))


def test_the_order_of_a_samplers_indices_changes_nothing() -> None:
    one, other = (Split.of(loader(sampler=SubsetRandomSampler(p))) for p in (PERM[:80], PERM[:80][::-1]))
    assert torch.equal(one.tensors()[0], other.tensors()[0])


def test_reading_a_sampler_moves_no_random_state() -> None:
    own = torch.Generator().manual_seed(1)
    before = torch.get_rng_state(), own.get_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    Split.of(loader(batch_size=8, sampler=Every3rd(own)))
    after = torch.get_rng_state(), own.get_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(before, after, strict=True))


def test_dropping_the_last_of_held_out_data_is_told() -> None:
    split = Split.of(loader(batch_size=8, drop_last=True), name="test")
    assert len(split) == N
    assert "drop_last is not followed" in split.notes[0]


BAD_SAMPLERS: dict[str, tuple[Any, str]] = {
    "endless": (Endless(), "train sampler must be one that ends"),
    "of another dataset": (SubsetRandomSampler([5, 100]), "below the dataset's 100; got 100"),
}


@pytest.mark.parametrize("case", BAD_SAMPLERS)
def test_bad_samplers_are_told(case: str) -> None:
    sampler, message = BAD_SAMPLERS[case]
    with pytest.raises(InputError, match=message):
        Split.of(loader(batch_size=8, sampler=sampler), name="train")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i], int(Y[i])) for i in range(N)])


class Frame:
    """Stands for a table's columns."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> Any:
        return self.values


def objects(rows: list[Any]) -> Any:
    out = np.empty(len(rows), dtype=object)
    out[:] = rows
    return out


USUAL: dict[str, Any] = {
    "generator of batches": ((X[i : i + 30], Y[i : i + 30]) for i in range(0, N, 30)),
    "generator of samples": ((X[i], int(Y[i])) for i in range(N)),
    "generator of numpy samples": ((X[i].numpy(), np.int64(Y[i])) for i in range(N)),
    "stream without loader": Stream(),
    "lists": (X.tolist(), Y.tolist()),
    "tensor and list": (X, Y.tolist()),
    "list of tuples": [(X[i].tolist(), int(Y[i])) for i in range(N)],
    "table": (Frame(X.double().numpy()), Frame(Y.numpy())),
    "object rows": (objects([row.numpy() for row in X]), objects(Y.tolist())),
    "object numbers": (X.numpy().astype(object), Y.numpy().astype(object)),
    "other byte order": (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
    "unsigned targets": (X.numpy(), Y.numpy().astype(np.uint16)),
    "bool targets": (X, Y.bool()),
    "sparse inputs": (X.to_sparse(), Y),
    "long double": (X.numpy().astype(np.longdouble), Y),
    "dict": {"pixel_values": X, "labels": Y},
    "dicts from a dataset": [{"pixel_values": X[i], "label": int(Y[i])} for i in range(N)],
    "dict batches": iter([{"input": X, "label": Y}]),
}


@pytest.mark.parametrize("case", USUAL)
def test_usual_forms_are_read(case: str) -> None:
    inputs, targets = Split.of(USUAL[case]).tensors()
    wanted = Split.of((X, Y)).tensors()
    assert torch.equal(inputs, wanted[0])
    assert torch.equal(targets, wanted[1])


class Broken(Items):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 41:
            raise OSError("cut off")
        return super().__getitem__(index)


def test_an_item_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="test sample 41 must run; it raised OSError: cut off"):
        Split.of(Broken(), name="test").tensors()


REFUSED: dict[str, tuple[Any, str]] = {
    "three parts": ([(1.0, 2, 3)] * 4, "got '3 parts'"),
    "a dict without labels": (iter([{"ids": X, "mask": X, "row": Y}]), "entries ids, mask, row"),
    "no target": ([(X[0], None)] * 4, "stack into one batch"),
    "complex": ((X.to(torch.complex64), Y), "array of torch.complex64"),
    "ragged objects": ((objects([[1.0], [1.0, 2.0]]), [0, 1]), "array of object"),
    "a stream that fails": ((1 / 0 for _ in range(3)), "train data must run; it raised ZeroDivisionError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_others_are_refused_in_one_sentence(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        Split.of(data, name="train").tensors()
