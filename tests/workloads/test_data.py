"""Splits: every form of data reads the same, in a fixed shuffle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from equipoise.errors import InputError
from equipoise.workloads import Split, predict, shifted
from equipoise.workloads.sources import bytes_of

X = torch.arange(40, dtype=torch.float32).reshape(20, 2)
Y = torch.arange(20) // 10  # sorted by class


class Items(Dataset):
    """A map-style dataset of Python values that counts its reads."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return X[index], int(Y[index])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(X[i], int(Y[i])) for i in range(20)])


FORMS: dict[str, Any] = {
    "tensors": (X, Y),
    "arrays": (X.double().numpy(), Y.numpy().astype(np.int32)),
    "list of two": [X, Y],
    "tensor dataset": TensorDataset(X, Y),
    "subset": Subset(TensorDataset(X.flip(0), Y.flip(0)), list(range(19, -1, -1))),
    "dataset": Items(),
    "list of samples": [(X[i], int(Y[i])) for i in range(20)],
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "loader of a dataset": DataLoader(Items(), batch_size=7, shuffle=True),
    "loader of a stream": DataLoader(Stream(), batch_size=6),
    "batches": [(X[:10], Y[:10]), (X[10:], Y[10:])].__iter__(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_the_same(form: str) -> None:
    inputs, targets = Split.of(FORMS[form], seed=3).tensors()
    wanted_inputs, wanted_targets = Split.of((X, Y), seed=3).tensors()
    assert torch.equal(inputs, wanted_inputs)
    assert torch.equal(targets, wanted_targets)
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64


def test_take_of_sorted_data_is_a_fair_sample() -> None:
    split = Split.of((X, Y))
    assert set(split.take(8).targets().tolist()) == {0, 1}
    assert set(Y[:8].tolist()) == {0}  # control: without the shuffle it is not
    assert torch.equal(split.take(8).tensors()[0], Split.of((X, Y)).tensors()[0][:8])
    assert not torch.equal(split.tensors()[0], Split.of((X, Y), seed=1).tensors()[0])


def test_parts_are_disjoint_and_cover() -> None:
    split = Split.of((X, Y))
    parts = [split.part(0, 5), split.part(5, 12), split.part(12)]
    rows = [set(part.tensors()[0][:, 0].tolist()) for part in parts]
    assert [len(r) for r in rows] == [5, 7, 8]
    assert set.union(*rows) == set(X[:, 0].tolist())


def test_batches_in_order_and_shuffled() -> None:
    split = Split.of((X, Y))
    assert [len(x) for x, _ in split.batches(8)] == [8, 8, 4]
    assert torch.equal(torch.cat([x for x, _ in split.batches(8)]), split.tensors()[0])
    generator = torch.Generator().manual_seed(0)
    first, second = (list(split.batches(8, shuffle_with=generator)) for _ in range(2))
    assert [len(x) for x, _ in first] == [8, 8]
    assert not torch.equal(first[0][0], second[0][0])
    assert all(torch.equal(Y[(x[:, 0] / 2).long()], y) for x, y in first)  # each input keeps its target
    assert [len(x) for x, _ in split.batches(64, shuffle_with=generator)] == [20]
    with pytest.raises(InputError, match="batch size must be at least 1"):
        next(split.batches(0))


def test_bytes_stay_bytes_until_a_batch_is_read() -> None:
    images = (torch.arange(48) % 256).to(torch.uint8).reshape(4, 3, 2, 2)
    split = Split.of((images, torch.arange(4)), transform=lambda x: x.float() / 255)
    assert split.source.inputs.dtype == torch.uint8
    assert torch.allclose(split.tensors()[0].sum(), images.sum() / 255)


def test_collate_of_the_loader_is_respected() -> None:
    texts = [([1, 2], 0), ([3], 1), ([4, 5, 6], 0)]

    def pad(items: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
        rows = [ids + [0] * (4 - len(ids)) for ids, _ in items]
        return torch.tensor(rows), torch.tensor([label for _, label in items])

    inputs, targets = Split.of(DataLoader(texts, batch_size=2, collate_fn=pad)).tensors()
    assert inputs.shape == (3, 4)
    assert sorted(targets.tolist()) == [0, 0, 1]


def test_items_are_kept_only_where_asked() -> None:
    for keep, reads in ((True, 20), (False, 40)):
        items = Items()
        split = Split.of(items, keep=keep)
        split.tensors(), split.tensors()
        assert items.reads == reads


BAD: dict[str, tuple[Any, str]] = {
    "inputs alone": (X, "pass the targets"),
    "none": (None, "a DataLoader"),
    "lengths": ((X, Y[:5]), "as many targets as inputs"),
    "words": ((np.array(["a", "b"]), Y[:2]), "array of numbers"),
    "batches of one": (iter([X, X]), r"batches of \(inputs, targets\)"),
    "ragged batches": (iter([(X, Y), (X[:, :1], Y)]), "batches of one shape"),
    "mapping": (iter([{"ids": X, "mask": X}]), "entries ids, mask.*collate_fn"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_told(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(InputError, match=message):
        Split.of(data, name="train")


def test_ragged_items_are_told_when_read() -> None:
    with pytest.raises(InputError, match="collate_fn"):
        Split.of([(torch.zeros(2), 0), (torch.zeros(3), 1)]).tensors()


def test_predict_keeps_order_and_refuses_nothing() -> None:
    split = Split.of((X, Y))
    outputs, targets = predict(lambda x: x.numpy() * 2, split, batch=7)
    assert torch.equal(outputs, split.tensors()[0] * 2)
    assert torch.equal(targets, split.targets())
    with pytest.raises(InputError, match="at least one sample"):
        predict(lambda x: x, split.take(0))


def test_shift_and_flip_move_whole_images() -> None:
    image = torch.arange(1, 17, dtype=torch.float32).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1)
    still = shifted(0)(image, torch.Generator())
    assert torch.equal(still, image)
    moved = shifted(1, flip=True)(image, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0, 0], (1, 1, 1, 1))
    allowed = [
        padded[r : r + 4, c : c + 4]
        if not flip
        else torch.nn.functional.pad(image[0, 0].flip(1), (1, 1, 1, 1))[r : r + 4, c : c + 4]
        for r in range(3)
        for c in range(3)
        for flip in (False, True)
    ]
    assert all(any(torch.equal(one[0], a) for a in allowed) for one in moved)
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 9
    again = shifted(1, flip=True)(image, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)


def test_photographs_count_by_their_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    assert bytes_of((image.new("RGB", (100, 50)), 3)) == 100 * 50 * 3 + 64


def test_samples_alike_go_into_one_batch() -> None:
    lengths = torch.randint(1, 60, (2000,), generator=torch.Generator().manual_seed(3))
    rows = torch.arange(2000)
    plain = Split.of((rows, rows % 2))
    sorted_ = replace(plain, alike=lengths)

    def waste(split: Split) -> tuple[list[int], float]:
        batches = [inputs for inputs, _ in split.batches(20, shuffle_with=torch.Generator().manual_seed(0))]
        return [int(row) for batch in batches for row in batch], sum(float(lengths[b].max()) * len(b) for b in batches)

    one, other = waste(plain), waste(sorted_)
    assert sorted(other[0]) == sorted(one[0]) == list(range(2000))  # each once
    assert other[1] < 0.6 * one[1]
    assert other[1] < 1.06 * float(lengths.sum())
    again = [i for i, _ in sorted_.batches(20, shuffle_with=torch.Generator().manual_seed(1))]
    assert torch.cat(again).tolist() != other[0]
    assert [len(b) for b, _ in sorted_.take(7).batches(20, shuffle_with=torch.Generator())] == [7]
    fixed = [i for i, _ in sorted_.batches(20)]
    assert torch.equal(torch.cat(fixed), plain.order)  # read in order it stays as it is
