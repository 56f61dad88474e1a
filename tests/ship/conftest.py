"""One study on real files for the whole room: the exporter alone takes some ten CPU seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save

from equipoise import workloads
from equipoise.budget import parse_budget
from equipoise.compress.technique import Draft
from equipoise.measure import machine
from equipoise.meters import Meters
from equipoise.records import Evaluation, as_data
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.study.header import Header
from equipoise.study.record import interval_of
from equipoise.study.store import Store
from equipoise.workloads import Workload

SOURCE = """
import torch
from sklearn.datasets import load_digits
from equipoise.workloads import Workload

def make_workload():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float() / 16, torch.from_numpy(labels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU(),
                                  torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:1000]), y[:1000]).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return Workload(model=net, train=(x[:800], y[:800]), validation=(x[800:1200], y[800:1200]), test=(x[1200:], y[1200:]))
"""

ALONE = Meters()
"""What is known of a machine of which nothing was told."""


@pytest.fixture(scope="session")
def source() -> str:
    """A module of a user's, with a function that makes a workload."""
    return SOURCE


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("user") / "mymodule.py"
    file.write_text(SOURCE)
    return f"{file}:make_workload"


@pytest.fixture(scope="session")
def work(spec: str) -> Workload:
    return workloads.load(spec)


@pytest.fixture(scope="session")
def study(spec: str, work: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three evaluations: untouched, narrower in fp32, narrower in int8."""
    return measured(work, spec, tmp_path_factory.mktemp("runs") / "a", Target("onnxruntime"))


@pytest.fixture(scope="session")
def study_in_openvino(spec: str, work: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on OpenVINO."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    return measured(work, spec, tmp_path_factory.mktemp("runs") / "openvino", Target("openvino"))


@pytest.fixture(scope="session")
def make_study(spec: str, work: Workload) -> Callable[..., Path]:
    """What makes such a study at a path, with a budget and what is told of the machine."""
    return partial(measured, work, spec)


def measured(
    work: Workload, spec: str, path: Path, target: Target, *, budget: str = "drop<=60", meters: Meters = ALONE
) -> Path:
    with Store.open(path) as store:
        store.identity({"workload": work.fingerprint})
        bench = Workbench(work, (target,), store.blob, meters, meters.extra(parse_budget(budget)))
        space = bench.facts.space
        narrow = space.untouched.but({k.name: k.menu[-1] for k in space.knobs if k.kind == "width"})
        int8 = narrow.but({k.name: 8 for k in space.knobs if k.kind == "bits"})
        base = timed(bench, store, bench.score(space.untouched, Draft(bench.teacher), fidelity="untouched"), seconds=0.1)
        asked = Header(
            workload=spec,
            name=work.name,
            target=str(target),
            budget=budget,
            time_s=60.0,
            seed=0,
            baseline=base.key,
            metric={"name": "accuracy", "maximize": True, "unit": "points"},
            space=bench.facts.offered,
            probe=store.blob(save({"inputs": bench.samples(32)})),
            price_per_hour=meters.price_per_hour,
            grid=meters.grid,
            machine=machine.describe(),
        )
        store.put("study", "header", {"header": as_data(asked)}, seconds=0.0)
        store.put("evaluation", base.key, {"evaluation": as_data(base)}, seconds=0.0)
        for plan in (narrow, int8):
            scored = bench.score(plan, bench.build(plan), fidelity="one-shot")
            made = timed(bench, store, scored, seconds=0.5, reference_s=base.axis("latency_s").get())
            store.put("evaluation", made.key, {"evaluation": as_data(made)}, seconds=0.0)
            assert base.speed_up is not None
            assert made.speed_up is not None
            ratios = {key: told(as_data(interval_of(r))) for key, r in ((base.key, base.speed_up), (made.key, made.speed_up))}
            race = {"ratios": ratios, "reference": as_data(base.cost["latency_s"]), "elasticity": {}}
            store.put("final", made.key, race, seconds=0.0)
    return path


def timed(
    bench: Workbench, store: Store, scored: Evaluation, *, seconds: float, reference_s: float | None = None
) -> Evaluation:
    return bench.time(scored, store.read_blob, reference_s=reference_s, seconds=seconds)


def told(ratio: dict[str, Any]) -> dict[str, Any]:
    """An interval that may be promised, also where the machine is so busy that half a second of timing tells little."""
    value = ratio["value"]
    return {**ratio, "low": max(ratio["low"], value / 3), "high": min(ratio["high"], 3 * value)}
