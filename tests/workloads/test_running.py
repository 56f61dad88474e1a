"""How a model is run for its answers: few large samples at a time, on one thread, with the same answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from equipoise.workloads import Workload, cautions, check, predict
from equipoise.workloads.running import at_once, one_thread


class Watched(nn.Module):
    """A small net that notes how many samples it is given at once and on how many threads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), torch.get_num_threads()))
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def photographs() -> Workload:
    torch.manual_seed(0)

    def split(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 3, 160, 160), torch.arange(n) % 4

    return Workload(model=Watched(), train=split(24), validation=split(24), test=split(24), metric="accuracy")


@pytest.mark.parametrize(
    ("shape", "most", "expected"), [((2, 3, 160, 160), 64, 6), ((2, 8), 64, 64), ((1, 3, 2000, 2000), 64, 1)]
)
def test_large_samples_are_run_few_at_a_time(shape: tuple[int, ...], most: int, expected: int) -> None:
    assert at_once(torch.zeros(shape), most) == expected


def test_the_check_and_the_advice_run_large_samples_few_at_a_time_on_one_thread(photographs: Workload) -> None:
    seen = photographs.model.seen
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen.clear()
        check(photographs)
        cautions(photographs)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen
    assert max(n for n, _ in seen) <= 6
    assert {threads for _, threads in seen} == {1}


def test_answers_do_not_depend_on_how_many_are_run_together(photographs: Workload) -> None:
    outputs, targets = predict(photographs.model, photographs.validation, batch=24)
    whole = photographs.model(photographs.validation.tensors()[0]).detach()
    assert torch.allclose(outputs, whole, atol=1e-6)
    assert torch.equal(targets, photographs.validation.targets())


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def failing() -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        failing()
    assert torch.get_num_threads() == before
