"""What the user should know of the workload is recorded with the study and told at every walk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.workloads.models import mlp

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


@pytest.mark.slow
def test_notes_are_recorded_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    work = eq.Workload(model=mlp(4, 8, 2), train=(X[:80], Y[:80]), test=(X[80:], Y[80:]))
    for _ in range(2):
        study = eq.optimize(work, time="1s", store=tmp_path / "s", listen=lambda event: told.append(event.text))
        assert [note for note in study.header.notes if "carved from the training data" in note]
    assert sum("WARNING: validation was carved from the training data" in text for text in told) == 2
    changed = X[:80].clone()
    changed[int(work.train.order[-1])] += 1
    other = eq.Workload(model=work.model, train=(changed, Y[:80]), test=(X[80:], Y[80:]))
    with pytest.raises(InputError, match="parts: another calibration, train"):
        eq.optimize(other, time="1s", store=tmp_path / "s")


class Both(nn.Module):
    """A head beside the one that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.beside = mlp(4, 32, 16), nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(x).relu()
        return self.beside(hidden), self.head(hidden)


@pytest.mark.slow
def test_the_chosen_output_is_what_ships(tmp_path: Path) -> None:
    net = Both()
    work = eq.Workload(model=net, train=(X[:80], Y[:80]), test=(X[80:], Y[80:]), validation=0.5, output=1)
    study = eq.optimize(work, time="1s", store=tmp_path / "s")
    assert all(e.ok for e in study.evaluations), [e.error for e in study.evaluations]
    inputs, targets = work.validation.tensors()
    assert study.baseline.quality.get() == pytest.approx(100 * float((net(inputs)[1].argmax(1) == targets).double().mean()))
    bench = Workbench(work, (Target.parse("onnxruntime:cpu"),), lambda data: "")
    assert [group.name for group in bench.builder.subject.groups if group.prunable]
