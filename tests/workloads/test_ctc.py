"""Rows of labels of no known position: the loss against all ways to lay them, reading, and the word error rate."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.generated.sounds import write_takes
from equipoise.workloads import Task, check, family, load_task
from equipoise.workloads.ctc import WordErrors, ctc_loss, edits, greedy
from equipoise.workloads.meaning import decide
from equipoise.workloads.metrics import metric_of
from equipoise.workloads.scoring import drop_reading, quality_reading
from equipoise.workloads.task import task_of

LABELS = st.lists(st.integers(0, 3), max_size=6)


def logits(n: int, classes: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(n, classes, frames, generator=torch.Generator().manual_seed(seed))


def saying(*rows: list[int], classes: int = 4) -> Tensor:
    """Logits (N, C, T) whose likeliest class of each frame is as given."""
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(rows), classes).float().transpose(1, 2)


def collapsed(path: tuple[int, ...], blank: int) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != blank]


@pytest.mark.parametrize("row", [[0, 1], [1, 1], [0], [2, 0]])
def test_the_loss_is_over_every_way_to_lay_the_row(row: list[int]) -> None:
    """Four classes, four frames: all 256 paths, those that read as the row added up."""
    outputs = logits(1, 4, 4)
    shares = outputs[0].double().softmax(0)
    ways = [path for path in itertools.product(range(4), repeat=4) if collapsed(path, 3) == row]
    total = sum(math.prod(float(shares[label, frame]) for frame, label in enumerate(path)) for path in ways)
    targets = torch.tensor([row + [3] * (3 - len(row))])
    assert float(ctc_loss(outputs, targets)) == pytest.approx(-math.log(total) / len(row), rel=1e-5)
    assert float(ctc_loss(outputs, targets)) != pytest.approx(-math.log(total / 2) / len(row), rel=1e-3)


def test_the_loss_goes_down_along_its_gradient_and_a_row_without_room_counts_nothing() -> None:
    outputs = logits(2, 4, 6).requires_grad_()
    targets = torch.tensor([[0, 1, 2], [2, 3, 3]])
    before = ctc_loss(outputs, targets)
    before.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert float(ctc_loss(outputs.detach() - 0.1 * outputs.grad, targets)) < float(before.detach())
    assert float(ctc_loss(logits(1, 4, 2), torch.tensor([[0, 0]]))) == 0  # a repeat needs a blank between


def test_reading_takes_repeats_once_and_leaves_blanks_out() -> None:
    assert greedy(saying([0, 0, 3, 0, 1], [3, 3, 3, 3, 3], [2, 2, 2, 2, 2])) == [[0, 0, 1], [], [2]]


@settings(max_examples=40)
@given(LABELS, LABELS)
def test_edits_against_a_slow_recursion(said: list[int], wanted: list[int]) -> None:
    def slow(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return slow(a[1:], b[1:])
        return 1 + min(slow(a[1:], b), slow(a, b[1:]), slow(a[1:], b[1:]))

    assert edits(said[:3], wanted[:3]) == slow(tuple(said[:3]), tuple(wanted[:3]))
    assert edits(said, wanted) == edits(wanted, said)
    assert abs(len(said) - len(wanted)) <= edits(said, wanted) <= max(len(said), len(wanted))


def test_word_errors_by_hand() -> None:
    outputs = saying([0, 3, 1, 3, 2], [1, 3, 1, 3, 3], [3, 3, 3, 3, 3])
    same = WordErrors().read(outputs, torch.tensor([[0, 1, 2], [1, 2, 1], [0, 1, 2]]))
    assert same.value == pytest.approx(100 * (0 + 1 + 3) / 9)
    assert same.each is not None
    assert same.each.tolist() == pytest.approx([0, 100 / 3, 100])
    unlike = WordErrors().read(outputs, torch.tensor([[0, 1, 2], [1, 1, 3], [0, 3, 3]]))
    assert unlike.value == pytest.approx(100 * (0 + 0 + 1) / 6)
    assert unlike.each is None  # their plain mean is another number
    more = WordErrors().read(saying([0, 3, 1, 3, 2]), torch.tensor([[1, 3, 3]]))
    assert more.value == 200  # two too many, of one


def test_a_rise_of_the_rate_is_a_drop_with_an_interval() -> None:
    metric = metric_of(WordErrors())
    assert (metric.maximize, metric.unit) == (False, "points")
    good, bad = saying(*[[0, 3, 1]] * 40), saying(*[[0, 3, 1]] * 30, *[[0, 3, 3]] * 10)
    targets = torch.tensor([[0, 1]] * 40)
    lost = drop_reading(metric, good.numpy(), bad.numpy(), targets)
    assert lost.get() == pytest.approx(12.5)
    assert lost.low is not None
    assert 0 < lost.low < 12.5
    unlike = torch.tensor([[0, 1]] * 30 + [[0, 3]] * 10)
    assert quality_reading(metric, bad.numpy(), unlike).note.startswith("bootstrap")


# What the outputs mean: told by the loss, whatever shape the targets have.


def test_outputs_that_ctc_reads_are_class_scores() -> None:
    found = decide(logits(8, 5, 12), torch.randint(0, 4, (8, 3)), loss=ctc_loss, metric=metric_of(WordErrors()))
    assert (found.kind, found.axis) == ("softmax", 1)
    assert "the loss" in found.why


def test_a_loss_that_a_shift_moves_reads_values() -> None:
    def by_size(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.mean((1, 2)) - targets.float().mean(1)).square().mean()

    def deaf(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.float().mean()

    for loss in (by_size, deaf):
        assert decide(logits(8, 5, 12), torch.randint(0, 4, (8, 3)), loss=loss).kind == "values"


# As a task.


def strings(n: int = 60) -> dict[str, Any]:
    """Rows of two of three levels, which a mean over time cannot tell."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randint(0, 3, (n, 2), generator=generator)
    inputs = rows.repeat_interleave(20, 1).float() + 0.1 * torch.randn(n, 40, generator=generator)
    return {"inputs": inputs, "rows": rows}


def row_task(**more: Any) -> Task:
    seen, held = strings(60), strings(20)
    made = {"metric": WordErrors(), "loss": ctc_loss, "outputs": 4, "aligned": False, **more}
    return Task.of(train=(seen["inputs"], seen["rows"]), test=(held["inputs"], held["rows"]), **made)


class Framed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 4, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x[:, None])
        return found


def test_a_task_of_rows_and_its_workload_lead_to_each_other() -> None:
    task = row_task()
    assert (task.shape.dense, task.shape.aligned, task.outputs) == (True, False, 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        work = task.workload(Framed())
    check(work)
    assert work.divergence.kind == "softmax"
    again = task_of(work)
    assert (again.shape, again.shape.aligned) == (task.shape, False)


def test_rows_must_be_rows() -> None:
    with pytest.raises(InputError, match="of shape \\(N,\\)"):
        row_task(aligned=True)
    seen = strings()
    with pytest.raises(InputError, match="below the 3 outputs"):
        Task.of(train=(seen["inputs"], seen["rows"] + 1), test=(seen["inputs"] + 1, seen["rows"]), outputs=3, aligned=False)
    with pytest.raises(InputError, match=r"of shape \(N, L\) where labels are not aligned"):
        Task.of(train=(torch.randn(40, 8), torch.arange(40) % 4), test=(torch.randn(9, 8), torch.arange(9) % 4), aligned=False)


def test_joined_recordings_are_a_row_of_classes(tmp_path: Path) -> None:
    folder = write_takes(tmp_path / "takes")
    task = load_task(f"speech:{folder}?joined=3")
    assert task.labels == ("0", "1", "2", "-")
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 30, 30)
    inputs, rows = task.train.tensors()
    assert rows.shape == (24, 3)
    assert len(rows.unique(dim=0)) > 10
    again = load_task(f"speech:{folder}?joined=3").train.tensors()
    assert torch.equal(again[0], inputs)
    loud = inputs.abs().unfold(1, 160, 160).amax(2) > 0.05
    assert float(loud.float().mean()) > 0.4  # three recordings of 0.2 to 0.35 s in a second
    net = family("conformer").model({"width": 32, "depth": 1}, task, generator=torch.Generator().manual_seed(0))
    assert net(inputs[:2]).shape == (2, 4, -(-inputs.shape[1] // 320))
    for name in ("conformer", "streaming"):
        net = family(name).model({"width": 32, "depth": 1}, task, generator=torch.Generator().manual_seed(0)).train()
        optimizer, losses = torch.optim.AdamW(net.parameters(), lr=3e-3), list[float]()
        for _ in range(30):
            optimizer.zero_grad()
            loss = task.loss(net(inputs), rows)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0], name
    with pytest.raises(InputError, match="long enough for 3 joined recordings"):
        load_task(f"speech:{folder}?joined=3&length=0.5")
    with pytest.raises(InputError, match="joined must be a whole number of at least 1"):
        load_task(f"speech:{folder}?joined=0")
