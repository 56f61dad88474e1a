"""A quality that puts its own questions: a walk of several steps, each of which the model decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, fit
from equipoise.workloads import Scores, Split, Task, asked, metric_of
from equipoise.workloads.check import check

STARTS = 40


@dataclass
class Walk:
    """Points for ending near zero: from each start the model says four times whether to step left or right."""

    name: str = "walk"
    maximize: bool = True
    steps: int = 4
    short: int = 0
    calls: int = 0

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        each = 100 - 10 * (outputs - targets).abs()
        return Scores(float(each.mean()), each)

    def ask(self, run: Callable[[Tensor], Tensor], split: Split) -> tuple[Tensor, Tensor]:
        self.calls += 1
        place = torch.linspace(-4, 4, STARTS)
        for _ in range(self.steps):
            said = run(torch.stack((place, place.square()), 1))
            place = place + (2 * said.argmax(1) - 1)
        return place, torch.zeros(STARTS - self.short)


def made(metric: Walk) -> eq.Workload:
    torch.manual_seed(0)
    x = torch.randn(900, 1) * 3
    inputs, targets = torch.cat((x, x.square()), 1), (x[:, 0] < 0).long()  # left of zero one steps to the right
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    net = fit(net, Samples(inputs[:600], targets[:600]), loss=nn.functional.cross_entropy, epochs=20, recipe=Recipe()).model
    rest = {"validation": (inputs[600:750], targets[600:750]), "test": (inputs[750:], targets[750:])}
    return eq.Workload(model=net, train=(inputs[:600], targets[:600]), metric=metric, name="walk", **rest)


def test_the_quality_is_of_what_it_asked_and_the_meaning_of_what_one_call_gives() -> None:
    metric = Walk()
    work = made(metric)
    check(work)
    outputs, targets = asked(work.metric, work.model, work.validation)
    assert outputs.shape == targets.shape == (STARTS,)
    assert work.quality() == metric.read(outputs, targets).value > 90
    assert work.quality(lambda inputs: -work.model(inputs)) < 70  # a model that walks away is seen as such
    assert work.divergence.kind == "softmax"


def test_without_a_question_of_its_own_a_metric_reads_one_call() -> None:
    split = Split.of((torch.arange(4.0)[:, None], torch.arange(4)))
    outputs, targets = asked(metric_of("accuracy"), lambda inputs: 2 * inputs, split)
    assert torch.equal(outputs[:, 0], 2 * targets)


def test_rows_that_do_not_match_are_told() -> None:
    with pytest.raises(InputError, match=r"walk\.ask.*40 outputs and 37 targets"):
        made(Walk(short=3)).quality()


def test_training_looks_at_the_loss_and_asks_at_the_end(tmp_path: Path) -> None:
    metric = Walk()
    work = made(metric)
    task = Task.of(train=work.train, validation=work.validation, test=work.test, metric=metric, name="walk")
    metric.calls = 0
    done = eq.train("mlp", task, {"width": 32}, store=tmp_path / "run", epochs=10, test=True)
    assert metric.calls == 2  # validation and test, once each
    assert done.reached["quality"].get() == task.metric.score(*asked(task.metric, done.model, task.validation))
    assert done.reached["test_quality"].n == STARTS


@pytest.mark.slow
def test_the_whole_road_is_walked_on_it(tmp_path: Path) -> None:
    work = made(Walk())
    study = eq.optimize(work, budget="drop<=5", time="8s", store=tmp_path / "study")
    best = study.best
    assert best.quality.n == STARTS
    assert best.drop.note.startswith("paired")
    found = eq.verify(study.export("best", out=tmp_path / "artifact"), workload=work)
    told = {check.name: check for check in found.checks}
    assert told["quality on validation"].state == "kept"
    assert told["quality on test"].found.count("against") == 1
    assert found.ok
