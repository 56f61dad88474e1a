"""The untouched model's program is held to the user's own model before anything is measured against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.compress.technique import Draft
from equipoise.errors import EquipoiseError
from equipoise.road.bench import Workbench
from equipoise.road.faithful import answers, gap, hold
from equipoise.runtimes import Target
from equipoise.workloads import METRICS, Workload

pytestmark = pytest.mark.slow  # trains and compiles a candidate


class NormAct(nn.BatchNorm2d):
    """The activation is not a child: the norm cannot be folded, and must not be."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp_min(0)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3), NormAct(16), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(256, 3)
        )
        x = torch.randn(120, 1, 8, 8)
        net.train()(x)
    net.eval()
    with torch.no_grad():
        y = net(x).argmax(1)
    work = Workload(model=net, train=(x[:80], y[:80]), test=(x[80:], y[80:]), metric="accuracy")
    return Workbench(work, (Target("onnxruntime"),), lambda content: str(len(content)))


def test_the_baseline_is_the_users_own_model(bench: Workbench) -> None:
    found = bench.score(bench.facts.space.untouched, Draft(bench.teacher), fidelity="untouched")
    assert found.quality.get() == pytest.approx(100.0)
    assert bench.builder.subject.left == {"1": "a NormAct that does more than normalise"}
    assert isinstance(bench.teacher[3], nn.Identity)


def test_a_wrong_program_ends_the_run_before_any_work(bench: Workbench) -> None:
    wrong = Workbench(bench.work, bench.targets, bench.save)
    with torch.no_grad():
        wrong.teacher[5].bias += torch.tensor([30.0, 0.0, 0.0])
    with pytest.raises(EquipoiseError, match=r"untouched model's program must answer as the model does in torch.*accuracy \d"):
        wrong.score(wrong.facts.space.untouched, Draft(wrong.teacher), fidelity="untouched")


def test_a_candidates_program_is_held_to_the_candidate(bench: Workbench) -> None:
    space = bench.facts.space
    knob = next(k for k in space.knobs if k.kind == "width")
    plan = space.untouched.but({knob.name: knob.menu[-1]})
    model = bench.build(plan).model
    assert bench.score(plan, Draft(model), fidelity="one-shot").ok
    other = bench.build(plan).model
    with torch.no_grad():
        other[5].bias += 30.0
    program = bench.compile(Draft(other), bench.source(other), bench.targets[0])
    outputs = bench.outputs(program, 16)
    bench._hold(program, other, outputs, untouched=False)
    with pytest.raises(EquipoiseError, match="the program must answer as the model does"):
        bench._hold(program, model, outputs, untouched=False)
    bench._hold(replace(program, precision="int8"), model, outputs, untouched=False)  # rounding is not judged here


def test_gap_sees_values_shapes_and_places_that_cannot_be_read() -> None:
    one = np.array([[1.0, -2.0]])
    assert gap(one, one) == 0.0
    assert gap(one * 1.01, one) == pytest.approx(0.01 / 1.01)
    assert gap(one, one[:, :1]) == float("inf")
    assert gap(np.array([[np.nan, -2.0]]), one) == float("inf")
    assert gap(np.array([[np.inf, -2.0]]), np.array([[np.inf, -2.0]])) == 0.0


def test_hold_quotes_both_qualities() -> None:
    model, inputs = nn.Identity(), torch.eye(4)
    hold(answers(model, inputs), model, inputs, torch.arange(4), METRICS["accuracy"], what="it")
    with pytest.raises(EquipoiseError, match=r"accuracy 0\.00 where torch has 100\.00 \(4 samples\)"):
        hold(np.roll(np.eye(4), 1, axis=1), model, inputs, torch.arange(4), METRICS["accuracy"], what="it")
