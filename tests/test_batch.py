"""Inputs by name: taken apart, put together and handed to a model as it takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise import batch

SEVERAL = {"ids": torch.arange(12).reshape(4, 3), "mask": torch.ones(4, 3), "cached": False, "scale": 2.0}


def test_one_array_is_a_batch_of_one_name() -> None:
    x = np.arange(8).reshape(4, 2)
    assert list(batch.named(x)) == ["input"]
    assert batch.size(x) == 4
    assert np.array_equal(batch.take(x, slice(1, 3)), x[1:3])
    assert [len(part) for part in batch.parts(x, 3)] == [3, 1]


def test_what_belongs_to_no_sample_is_handed_on() -> None:
    two = batch.take(SEVERAL, torch.tensor([0, 2]))
    assert two["cached"] is False
    assert two["scale"] == 2.0
    assert two["ids"].tolist() == [[0, 1, 2], [6, 7, 8]]
    assert batch.size(SEVERAL) == 4  # samples, not names
    assert list(batch.named(SEVERAL)) == ["ids", "mask"]


def test_parts_joined_are_the_whole() -> None:
    whole = batch.joined(list(batch.parts(SEVERAL, 3)), torch.cat)
    assert torch.equal(whole["ids"], SEVERAL["ids"])
    assert whole["scale"] == 2.0


def test_names_are_keywords_and_places_are_places() -> None:
    def model(*given: object, **named: object) -> object:
        return given, named

    assert batch.call(model, {"ids": 1, "mask": 2}) == ((), {"ids": 1, "mask": 2})
    assert batch.call(model, 5) == ((5,), {})
    eleven = batch.positional(range(11))
    assert batch.call(model, dict(sorted(eleven.items()))) == (tuple(range(11)), {})  # "input_10" sorts before "input_2"


@pytest.mark.parametrize("inputs", [np.ones((2, 3)), {"ids": np.ones((2, 3)), "mask": np.zeros(2)}])
def test_inputs_survive_a_file_of_named_arrays(inputs: batch.Inputs) -> None:
    held = {**batch.stored(inputs), "outputs": np.zeros(2)}
    again = batch.restored(held)
    assert type(again) is type(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(batch.leaves(again), batch.leaves(inputs), strict=True))
