"""Workloads of several inputs, in every form in which people have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from many_inputs import Encoder, paired, pairs, ragged, sentences, workload
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from equipoise.batch import call, size
from equipoise.errors import InputError
from equipoise.workloads import Split, Workload, predict
from equipoise.workloads.cautions import cautions
from equipoise.workloads.check import check

NAMED, LABELS = sentences(40)
PLACED, CLASSES = pairs(40)


def rows() -> list[dict[str, Any]]:
    """Samples as libraries of data sets hand them out: lists of numbers under names, the label among them."""
    return [
        {"input_ids": i.tolist(), "attention_mask": m.tolist(), "labels": int(y)}
        for i, m, y in zip(NAMED["input_ids"], NAMED["attention_mask"], LABELS, strict=True)
    ]


FORMS: dict[str, Callable[[], Any]] = {
    "mapping and labels": lambda: (NAMED, LABELS),
    "one mapping": lambda: {**NAMED, "labels": LABELS},
    "numpy": lambda: ({name: value.numpy() for name, value in NAMED.items()}, LABELS.numpy()),
    "samples with labels": rows,
    "samples and labels": lambda: [({k: v for k, v in row.items() if k != "labels"}, row["labels"]) for row in rows()],
    "loader": lambda: DataLoader(rows(), batch_size=7, collate_fn=collated),  # type: ignore[arg-type]
    "stream": lambda: iter(
        [({name: value[i : i + 8] for name, value in NAMED.items()}, LABELS[i : i + 8]) for i in range(0, 40, 8)]
    ),
}


def collated(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor([item[name] for item in items]) for name in items[0]}


@pytest.mark.parametrize("form", FORMS)
def test_named_inputs_in_every_form(form: str) -> None:
    split = Split.of(FORMS[form](), name="train")
    inputs, targets = split.tensors()
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert torch.equal(inputs["input_ids"], NAMED["input_ids"][split.order])
    assert torch.equal(targets, LABELS[split.order])
    assert [size(few) for few, _ in split.batches(16)] == [16, 16, 8]


@pytest.mark.parametrize("data", [(PLACED, CLASSES), [((a, b), int(y)) for a, b, y in zip(*PLACED, CLASSES, strict=True)]])
def test_inputs_by_position(data: Any) -> None:
    inputs, targets = Split.of(data).take(3).tensors()
    assert list(inputs) == ["input_0", "input_1"]
    assert call(paired(), inputs).shape == (3, 3)
    assert len(targets) == 3


class Placed(Dataset[Any]):
    """Samples ((a, b), y), as a dataset of one's own hands them out."""

    def __init__(self, as_array: Callable[[Tensor], Any]) -> None:
        self.as_array = as_array

    def __len__(self) -> int:
        return len(CLASSES)

    def __getitem__(self, index: int) -> Any:
        return tuple(self.as_array(part[index]) for part in PLACED), int(CLASSES[index])


class Flow(IterableDataset[Any]):
    """The same in one stream, whose last batch of 38 has two samples."""

    def __iter__(self) -> Iterator[Any]:
        return (Placed(Tensor.clone)[index] for index in range(len(CLASSES)))


DATASETS: dict[str, Callable[[], Any]] = {
    "dataset": lambda: Placed(Tensor.clone),
    "dataset of arrays": lambda: Placed(Tensor.numpy),
    "loader": lambda: DataLoader(Placed(Tensor.clone), batch_size=8),
    "samples by name": lambda: [{"x": Placed(Tensor.clone)[i][0], "y": int(CLASSES[i])} for i in range(40)],
    "loader of a stream": lambda: DataLoader(Flow(), batch_size=38),
    "stream of samples": lambda: iter(Flow()),
}


@pytest.mark.parametrize("form", DATASETS)
def test_as_many_samples_as_inputs_are_no_list_of_rows(form: str) -> None:
    split = Split.of(DATASETS[form](), name="test")
    for count in (1, 2, 3, 40):
        inputs, targets = split.take(count).tensors()
        assert list(inputs) == ["input_0", "input_1"]
        assert all(torch.equal(inputs[f"input_{i}"], PLACED[i][split.order[:count]]) for i in (0, 1))
        assert torch.equal(targets, CLASSES[split.order[:count]])


def test_samples_in_a_list_are_still_samples() -> None:
    inputs, _ = Split.of(([[1.0] * 4 for _ in range(4)], torch.arange(4))).tensors()
    assert inputs.shape == (4, 4)  # as many rows as samples: one input, not four


def test_flags_and_numbers_go_with_every_batch() -> None:
    split = Split.of(({**NAMED, "detailed": True, "scale": torch.tensor(0.5), "past": None}, LABELS))
    inputs, _ = split.take(2).tensors()
    assert (inputs["detailed"], inputs["scale"], inputs["past"]) == (True, 0.5, None)


def test_a_workload_of_ids_and_mask_is_one_like_any_other() -> None:
    work = workload(Encoder())
    check(work)
    assert list(work.example) == ["input_ids", "attention_mask"]
    assert work.divergence.kind == "softmax"
    assert any("'logits' is judged" in note and "Output of 'logits' (2, 2)" in note for note in work.notes)
    assert cautions(work)
    blind = Workload(
        model=lambda: work.model, train=sentences(600, seed=2), test=sentences(200, seed=4), validation=sentences(300, seed=3)
    )
    other = {**sentences(300, seed=3)[0]}
    other["attention_mask"] = torch.ones_like(other["attention_mask"])
    changed = Workload(
        model=lambda: work.model,
        train=sentences(600, seed=2),
        test=sentences(200, seed=4),
        validation=(other, sentences(300, seed=3)[1]),
    )
    assert blind.identity["validation"] == work.identity["validation"] != changed.identity["validation"]


def test_an_input_that_is_not_finite_is_named() -> None:
    image, row = pairs(40)[0]
    row[7, 2] = float("nan")
    with pytest.raises(InputError, match=r"inputs 'input_1'.*row 7"):
        check(Workload(model=paired(), train=((image, row), CLASSES), test=pairs(20, seed=3)))


def test_inputs_of_unlike_lengths_are_told() -> None:
    with pytest.raises(InputError, match="as many"):
        Split.of(({"a": torch.zeros(4, 2), "b": torch.zeros(3, 2)}, torch.zeros(4)))


def test_answers_of_different_lengths_are_told() -> None:
    split = Split.of(ragged(40, seed=1))
    with pytest.raises(InputError, match=r"of one shape in every batch.*Pad every sample"):
        predict(lambda inputs: inputs["input_ids"].float(), split, batch=4)
    outputs, _ = predict(lambda inputs: inputs["input_ids"].float().sum(1), split, batch=4)
    assert outputs.shape == (40,)


def test_what_the_model_has_no_argument_for_is_left_out() -> None:
    """Data sets carry more than a model takes: an index, a language."""

    def made(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs, labels = sentences(count, seed=seed)
        return {**inputs, "index": torch.arange(count)}, labels

    work = Workload(model=Encoder(), train=made(60, 1), validation=made(30, 2), test=made(30, 3))
    check(work)
    assert list(work.example) == ["input_ids", "attention_mask"]
    assert "inputs: the model has no argument 'index'; it is left out" in work.notes
