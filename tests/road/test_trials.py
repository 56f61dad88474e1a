"""Trials: what they take is counted whole, and what goes wrong in one is its result, not the study's end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.errors import EquipoiseError, StoreError
from equipoise.records import Plan, as_data
from equipoise.road import isolated, trials
from equipoise.road.bench import Workbench
from equipoise.road.jobs import Job
from equipoise.road.trials import Trials
from equipoise.runtimes import Target
from equipoise.study.store import Store
from equipoise.workloads import Workload


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Trials]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
        x = torch.randn(400, 8)
    with torch.no_grad():
        y = net(x).argmax(1)
    rows = {name: (x[i : i + 100], y[i : i + 100]) for name, i in (("train", 0), ("validation", 100), ("test", 200))}
    with Store.open(tmp_path / "study") as store:
        yield Trials(Workbench(Workload(model=net, **rows), (Target("onnxruntime"),), store.blob), store, 0, lambda *_: None)


def job(fidelity: str, **args: Any) -> Job:
    given = {"plan": as_data(Plan({"width.0": 16})), "fidelity": fidelity, "leg": 0, "predicted": {}, **args}
    return Job("evaluation", "planted", given)


@pytest.mark.slow  # exports and trains
def test_building_and_training_count_in_what_a_trial_takes(made: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, clock = [0.0], trials.time.perf_counter  # type: ignore[attr-defined]
    monkeypatch.setattr(trials.time, "perf_counter", lambda: clock() + seconds[0])  # type: ignore[attr-defined]
    build = made.bench.build

    def slowly(*args: Any, **options: Any) -> Any:
        seconds[0] += 100.0
        return build(*args, **options)

    monkeypatch.setattr(Workbench, "build", lambda self, *args, **options: slowly(*args, **options))
    first = made.scored(job("one-shot"))
    assert 100 < first.seconds < 150
    trained = made.scored(job("recovered", leg=1, weights=first.weights, lost=first.damage, training_s=0.5, rung=1))
    assert trained.training is not None
    assert trained.seconds > 100 + trained.training.seconds


def test_answers_that_are_not_finite_are_a_failed_trial(made: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = made.bench.outputs

    def lost(self: Workbench, program: Any, samples: int) -> Any:
        found = outputs(program, samples).copy()
        found[3, 1] = np.nan
        return found

    _ = made.bench.reference
    monkeypatch.setattr(Workbench, "outputs", lost)
    monkeypatch.setattr(Workbench, "_hold", lambda *_, **__: None)
    with pytest.raises(EquipoiseError, match="not all finite"):
        made.scored(job("one-shot"))


def test_a_full_disk_in_the_child_is_the_parents_too(made: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise StoreError("planted: no space is left")

    monkeypatch.setattr(Trials, "scored", full)
    answer = isolated._scored(made, job("one-shot"))
    child = isolated.Child({}, 1e9, lambda *_: None)
    monkeypatch.setattr(isolated.Child, "_ask", lambda *_: answer)
    with pytest.raises(StoreError, match="no space is left"):
        child.scored(job("one-shot"))


def test_a_choice_that_cannot_be_made_is_not_estimated_and_the_others_are(
    made: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Trials._change

    def some(self: Trials, knob: str, choice: Any) -> Any:
        if choice == 8:
            raise ValueError("planted")
        return change(self, knob, choice)

    monkeypatch.setattr(Trials, "_change", some)
    found = made.estimates(Job("guess", "planted", {"entries": [["width.0", 16], ["width.0", 8], ["width.0", 24]]}))
    assert [row[1] for row in found["estimated"]] == [16, 24]
