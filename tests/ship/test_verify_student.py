"""Verify of a new model in the trained one's place: rebuilt by its name; drawn weights, another scale and another net fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import timed
from test_verify import as_fast, broken, forge

from equipoise.records import Plan, as_data
from equipoise.road.bench import Workbench
from equipoise.road.training import train
from equipoise.runtimes import Target
from equipoise.ship.artifact import Artifact, pack
from equipoise.ship.verify import verify
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.workloads import Workload

pytestmark = pytest.mark.slow  # exports
__all__ = ["as_fast"]

NAME = "mlp:width=24,depth=1"


@pytest.fixture(scope="module")
def artifacts(make_study: Callable[..., Path], work: Workload, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A student that was trained, the same as it was drawn, and the narrower model of a study that had students too."""
    folder = tmp_path_factory.mktemp("students")
    path = make_study(folder / "study", Target("onnxruntime"), budget="drop<=100")
    with Store.open(path) as store:
        bench = Workbench(work, (Target("onnxruntime"),), store.blob, student=NAME)
        study = Study.read(store)
        store.put("study", "students", {"header": as_data(replace(study.header, space=bench.facts.offered))}, seconds=0.0)
        base, narrow = study.baseline, study.evaluations[1]
        plan = Plan({**base.plan.choices, "student": NAME})
        draft = bench.build(plan)
        trained = train(bench, plan, draft, seconds=2.0, checkpoint=folder / "c", leg=1, seed=0)
        drafts = {"drawn": draft, "trained": replace(draft, model=trained.model)}
        made = {name: bench.score(plan, each, fidelity="recovered") for name, each in drafts.items()}
        made["cut"] = replace(narrow, plan=Plan({**narrow.plan.choices, "student": "teacher"}))
        out = {}
        for leg, (name, scored) in enumerate(made.items(), 1):
            found = replace(timed(bench, store, scored, seconds=0.3, reference_s=base.axis("latency_s").get()), leg=leg)
            store.put("evaluation", found.key, {"evaluation": as_data(found)}, seconds=0.0)
            out[name] = pack(found, store, folder / name)
    return out


def test_a_trained_student_passes_and_it_learned(artifacts: dict[str, Artifact], work: Workload, as_fast: None) -> None:
    found = verify(artifacts["trained"].path, workload=work, seconds=0.1)
    assert broken(found) == {}
    names = {check.name for check in found.checks if check.state == "kept"}
    assert {"plan", "params", "macs", "weights", "weights in the file", "bits", "precision", "fidelity"} <= names
    claims = artifacts["trained"].claims
    assert claims.changed == {"student": ("teacher", NAME)}
    assert artifacts["trained"].promise["drop"].get() < 20 < artifacts["drawn"].promise["drop"].get()


def test_drawn_weights_are_not_called_trained(artifacts: dict[str, Artifact], work: Workload, as_fast: None) -> None:
    assert set(broken(verify(artifacts["drawn"].path, workload=work, seconds=0.1))) == {"fidelity"}


def test_a_plan_that_keeps_the_model_passes_where_there_were_students(
    artifacts: dict[str, Artifact], work: Workload, as_fast: None
) -> None:
    assert broken(verify(artifacts["cut"].path, workload=work, seconds=0.1)) == {}


def test_another_scale_is_not_what_ships(artifacts: dict[str, Artifact], work: Workload, as_fast: None, tmp_path: Path) -> None:
    path = shutil.copytree(artifacts["trained"].path, tmp_path / "a")

    def edit(manifest):
        manifest["plan"]["student"] = manifest["changed"]["student"][1] = "mlp:width=32,depth=1"

    forge(Artifact.load(path), edit)
    assert {"params", "macs"} <= set(broken(verify(path, workload=work, seconds=0.1)))


def test_a_student_in_eight_bits_is_no_student_in_floats(
    artifacts: dict[str, Artifact], work: Workload, as_fast: None, tmp_path: Path
) -> None:
    path = shutil.copytree(artifacts["trained"].path, tmp_path / "a")

    def edit(manifest):
        manifest["plan"]["student"] = manifest["changed"]["student"][1] = f"{NAME}@8"

    forge(Artifact.load(path), edit)
    assert {"precision", "bits"} <= set(broken(verify(path, workload=work, seconds=0.1)))
