"""A teacher asked once for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.batch import Inputs
from equipoise.training.remembered import Remembered


def test_each_sample_is_asked_for_once_in_any_order() -> None:
    asked: list[int] = []

    def teacher(inputs: Inputs) -> Tensor:
        asked.append(len(inputs))
        return inputs.sum(1, keepdim=True)

    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    once = Remembered(teacher)
    once(x[:6]), once(x[6:])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(once(x[order]), x[order].sum(1, keepdim=True))
    assert asked == [6, 6]
    other = x[:2] + 1.0
    assert torch.equal(once(torch.cat([x[:1], other])), torch.cat([x[:1], other]).sum(1, keepdim=True))
    assert asked == [6, 6, 3]


def test_samples_of_several_inputs_are_told_apart_by_all_of_them() -> None:
    once = Remembered(lambda inputs: inputs["a"] - inputs["b"])
    a, b = torch.arange(4.0)[:, None], torch.ones(4, 1)
    assert torch.equal(once({"a": a, "b": b}), a - b)
    assert torch.equal(once({"a": b, "b": a}), b - a)
    assert torch.equal(once({"a": a, "b": b}), a - b)


def test_what_does_not_fit_is_asked_for_again() -> None:
    asked: list[int] = []

    def teacher(inputs: Inputs) -> Tensor:
        asked.append(len(inputs))
        return inputs * 2

    x = torch.ones(4, 8) * torch.arange(4.0)[:, None]
    few = Remembered(teacher, most_bytes=x[:2].nbytes)
    for _ in range(2):
        assert torch.equal(few(x[:2]), x[:2] * 2)
        assert torch.equal(few(x[2:]), x[2:] * 2)
    assert asked == [2, 2, 2]
