"""The profile of small models: on planted runtimes, where every figure is known, and on a real one."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from equipoise.errors import InputError
from equipoise.measure import energy
from equipoise.measure.energy import Access
from equipoise.measure.memory import PeakMemory
from equipoise.records import dumps, measured
from equipoise.runtimes import base
from equipoise.runtimes.base import Program, Source, Target
from equipoise.verbs import profile as profiler
from equipoise.verbs.profile import Profile, profile, program_memory

pytestmark = pytest.mark.slow  # compiles and times real programs


class Planted:
    """A runtime that needs no export and sees every batch it is given."""

    name = "planted"
    precisions = (32,)
    seen: tuple[int, ...] = ()

    def unavailable(self) -> str:
        return ""

    def compile(self, source: Source, **_: Any) -> Program:
        return Program(self.name, "fp32", {"a.bin": b"x" * 300, "b.bin": b"y" * 12})

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Planted:
        return self

    def run(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        Planted.seen = tuple({*Planted.seen, len(inputs)})
        return inputs


class Absent(Planted):
    """A runtime whose library is not installed."""

    name = "absent"

    def unavailable(self) -> str:
        return "absent is not installed"


class Refusing(Planted):
    """A runtime that cannot express the model."""

    name = "refusing"

    def compile(self, source: Source, **_: Any) -> Program:
        raise InputError("the model branches on values")


class Meter:
    """A counter that gains 1 J each time it is read."""

    name = "planted meter"
    joules = 0.0

    def counters(self) -> Mapping[str, float]:
        Meter.joules += 1.0
        return {"all": Meter.joules}

    def between(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        return after["all"] - before["all"]


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for planted in (Planted, Absent, Refusing):
        monkeypatch.setitem(base.RUNTIMES, planted.name, f"{__name__}:{planted.__name__}")
    monkeypatch.setattr(energy, "rapl", lambda: Access(None, "no counter here"))
    monkeypatch.setattr(profiler, "program_memory", lambda *_: PeakMemory(measured(7, "B"), measured(9, "B")))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 3))


def _profile(**options: Any) -> Profile:
    return profile(_mlp(), torch.zeros(2, 10), **{"targets": ["planted"], "batch": 4, "seconds": 0.2, **options})


def test_the_figures_of_a_planted_runtime() -> None:
    Planted.seen = ()
    found = _profile(price_per_hour=3.6)
    (target,) = found.targets
    assert (found.name, found.counts.params, found.counts.macs) == ("Sequential", 703, 650)
    assert (target.target, target.reason, target.precision) == ("planted:cpu?threads=1&batch=1", "", "fp32")
    assert target.size_bytes.value == 312
    assert [timing.batch for timing in target.timings] == [1, 4]
    assert set(Planted.seen) == {1, 4}
    for timing in target.timings:
        p50 = timing.latency.p50.get()
        assert timing.latency.throughput.get() == pytest.approx(timing.batch / p50)
        assert timing.price_per_million.get() == pytest.approx(p50 * 1000 / timing.batch)
    assert found.machine["versions"]["torch"]


def test_what_cannot_be_measured_is_unavailable_with_its_reason() -> None:
    (target,) = _profile().targets
    assert "no counter here" in target.energy_j.note
    assert "--watts-per-core" in target.energy_j.note
    assert not target.flops_per_joule.known
    assert not target.timings[0].price_per_million.known
    memory = program_memory(Target("planted"), Program("planted", "fp32", {}), np.zeros((1, 2), np.float32))
    assert "planted" in memory.added.note, "the child process does not know this runtime"


def test_an_estimate_of_the_energy_only_on_request() -> None:
    (target,) = _profile(watts_per_core=(4.0, 9.0)).targets
    assert target.energy_j.provenance == target.flops_per_joule.provenance == "estimated"
    assert target.flops_per_joule.get() == pytest.approx(2 * 650 / target.energy_j.get())


def test_a_meter_is_read_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "WINDOW_S", 0.002)
    monkeypatch.setattr(energy, "rapl", lambda: Access(Meter()))
    (target,) = _profile(watts_per_core=5.0).targets
    note = target.energy_j.note
    assert "planted meter" in note
    assert "W a core" not in note, "a meter goes before an estimate"


def test_a_target_that_cannot_run_says_why_and_the_others_go_on() -> None:
    absent, planted = _profile(targets=["absent", Target("planted", batch=2)]).targets
    assert absent.reason == "absent is not installed"
    assert absent.size_bytes.note == absent.energy_j.note == absent.memory.added.note == absent.reason
    assert absent.timings == ()
    assert [timing.batch for timing in planted.timings] == [1, 4, 2]


def test_the_record_is_json_with_raw_samples() -> None:
    found = json.loads(dumps(_profile()))
    times = found["targets"][0]["timings"][0]["latency"]["times"]
    assert len(times) >= 2
    assert all(seconds > 0 for seconds in times)
    assert found["counts"]["by_layer"][0]["params"] == 550


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    profile(model, torch.randn(8, 10), targets=["planted"], batch=1, seconds=0.1)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"example": None}, "example"),
        ({"example": torch.zeros(0, 10)}, "example"),
        ({"batch": 0}, "batch"),
        ({"seconds": 0.0}, "seconds"),
        ({"price_per_hour": -1.0}, "price_per_hour"),
        ({"watts_per_core": 0.0}, "watts_per_core"),
        ({"targets": ["plantd"]}, "Did you mean 'planted'"),
    ],
)
def test_bad_input_is_told_before_any_work(options: dict[str, Any], told: str) -> None:
    steps: list[str] = []
    arguments = {"example": torch.zeros(2, 10), "targets": ["planted"], "on_step": steps.append, **options}
    with pytest.raises(InputError, match=told):
        profile(_mlp(), **arguments)
    assert steps == []


def test_a_model_that_one_runtime_refuses_is_still_counted() -> None:
    refused, planted = _profile(targets=["refusing", "planted"]).targets
    assert refused.reason == "the model branches on values"
    assert planted.reason == ""


def test_a_real_profile_on_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "program_memory", program_memory)
    (target,) = _profile(targets=["onnxruntime"]).targets
    assert target.reason == ""
    assert target.size_bytes.get() > 4 * 703
    assert target.memory.added.known
    assert target.timings[0].latency.p95.get() >= target.timings[0].latency.p50.get() > 0


def _gemm(width: int) -> Program:
    """An ONNX file of one matrix product with `width`² weights."""
    weight = numpy_helper.from_array(np.ones((width, width), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", width])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program("onnxruntime", "fp32", {"model.onnx": model.SerializeToString()})


def test_memory_grows_with_the_weights_and_the_library_is_no_part_of_it() -> None:
    small, large = (program_memory(Target("onnxruntime"), _gemm(n), np.ones((1, n), np.float32)).added for n in (32, 2048))
    weights = 4 * 2048**2
    assert small.get() < 30e6, small.note  # the session itself
    assert weights < large.get() - small.get() < 6 * weights


def test_importing_the_profiler_imports_no_torch() -> None:
    code = "import sys, equipoise.verbs.profile; print({'torch', 'onnxruntime', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
