"""Verify on real files: the honest artifact passes; every mutant fails though its author rewrote hashes, digest and card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load, save

from equipoise import workloads
from equipoise.artifact import Artifact, export
from equipoise.budget import Constraint
from equipoise.card import card
from equipoise.cli import main
from equipoise.errors import InputError
from equipoise.examine import held
from equipoise.measure import machine
from equipoise.records import Evaluation, as_data, measured, unavailable
from equipoise.runtimes import Target
from equipoise.store import Store
from equipoise.verify import Check, State, Verification, verify
from equipoise.workbench import Workbench
from equipoise.workloads import Workload

pytestmark = pytest.mark.slow  # the ONNX exporter alone takes some ten CPU seconds

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


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("user") / "mymodule.py"
    file.write_text(SOURCE)
    return f"{file}:make_workload"


@pytest.fixture(scope="module")
def work(spec: str) -> Workload:
    return workloads.load(spec)


@pytest.fixture(scope="module")
def study(spec: str, work: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three evaluations: untouched, narrower in fp32, narrower in int8."""
    path = tmp_path_factory.mktemp("runs") / "a"
    target = Target("onnxruntime")
    with Store.open(path) as store:
        store.identity({"workload": work.fingerprint})
        bench = Workbench.prepare(work, (target,), store.blob)
        space = bench.space
        narrow = space.untouched.but({k.name: k.menu[-1] for k in space.knobs if k.kind == "width"})
        int8 = narrow.but({k.name: 8 for k in space.knobs if k.kind == "bits"})
        base = bench.evaluate(space.untouched, bench.teacher, fidelity="untouched", reference_s=None, seconds=0.5)
        header = {
            "workload": spec,
            "name": work.name,
            "target": str(target),
            "budget": "drop<=60",
            "seed": 0,
            "probe": store.blob(save({"inputs": bench.validation[0][:32].numpy()})),
            "baseline": base.key,
            "metric": {"name": "accuracy", "maximize": True, "unit": "points"},
            "machine": machine.describe(),
        }
        store.put("study", "header", {"header": header}, seconds=0.0)
        store.put("evaluation", base.key, {"evaluation": as_data(base)}, seconds=0.0)
        for plan in (narrow, int8):
            made = bench.evaluate(
                plan, bench.build(plan), fidelity="one-shot", reference_s=base.axis("latency_s").get(), seconds=0.5
            )
            store.put("evaluation", made.key, {"evaluation": as_data(made)}, seconds=0.0)
    return path


def exported(study: Path, number: int, out: Path) -> Artifact:
    with Store.open(study, readonly=True) as store:
        from equipoise.study import Study

        found: Evaluation = Study.read(store).evaluations[number]
        return export(found, store, out)


@pytest.fixture(scope="module")
def originals(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {name: exported(study, i, folder / name) for i, name in enumerate(("untouched", "fp32", "int8"))}


def broken(found: Verification) -> dict[str, Check]:
    return {check.name: check for check in found.broken}


@pytest.mark.parametrize("name", ["untouched", "fp32", "int8"])
def test_the_honest_artifact_passes(originals: dict[str, Artifact], work: Workload, name: str) -> None:
    found = verify(originals[name].path, workload=work, seconds=1.0)
    assert broken(found) == {}
    names = {check.name for check in found.checks}
    assert {"distance to source", "quality on validation", "drop on test", "times faster", "size", "params", "macs"} <= names
    assert {"weights", "budget drop"} <= names


def test_a_clean_process_finds_the_workload_by_itself(
    originals: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(originals["int8"].path, tmp_path / "a")
    assert main(["verify", str(path), "--seconds", "1"]) == 0
    assert "every promise is kept" in capsys.readouterr().out
    assert json.loads((path / "verify.json").read_text())["ok"] is True
    swap_weight(Artifact.load(path))
    assert main(["verify", str(path), "--seconds", "1", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["verify", str(path), "--workload", "nothing.py:here"]) == 2


# ---- mutants by someone who can rewrite hashes ------------------------------------------------------------------------------


def forge(artifact: Artifact, edit: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Rewrite the manifest, then every hash, its digest and the card, so that the files alone look honest."""
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    edit(manifest)
    for name, entry in manifest["files"].items():
        content = (artifact.path / name).read_bytes()
        entry.update(bytes=len(content), sha256=sha256(content).hexdigest())
    manifest["digest"] = Artifact(artifact.path, manifest).digest
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    (artifact.path / "README.md").write_text(card(manifest))


def swap_weight(artifact: Artifact, *, name: str = "model.onnx") -> None:
    """Change one weight tensor of a program by a few percent and forge the rest."""
    model = onnx.load(artifact.path / name)
    tensor = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    value = numpy_helper.to_array(tensor)
    changed = np.roll(value, 1, axis=0) if value.dtype == np.int8 else (value * 1.05).astype(value.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, artifact.path / name)
    forge(artifact)


def swap_safetensors(artifact: Artifact) -> None:
    file = artifact.path / "model.safetensors"
    weights = load(file.read_bytes())
    name = max(weights, key=lambda k: weights[k].size)
    file.write_bytes(save({**weights, name: -weights[name]}))
    forge(artifact)


def copied(artifact: Artifact, a: str, b: str) -> None:
    shutil.copy(artifact.path / a, artifact.path / b)
    forge(artifact)


def cut(artifact: Artifact, keep: int) -> None:
    (artifact.path / "model.onnx").write_bytes((artifact.path / "model.onnx").read_bytes()[:keep])
    forge(artifact)


def figure(axis: str, factor: float = 1.0, plus: float = 0.0, *, of: str = "promise") -> Callable[[Artifact], None]:
    def edit(manifest: dict[str, Any]) -> None:
        reading = manifest[of][axis]
        for part in ("value", "low", "high"):
            if reading[part] is not None:
                reading[part] = reading[part] * factor + plus

    return lambda artifact: forge(artifact, edit)


def other_plan(manifest: dict[str, Any]) -> None:
    knob = next(k for k in manifest["plan"] if k.startswith("width."))
    manifest["plan"][knob] += 8


MUTANTS: dict[str, tuple[str, Callable[[Artifact], None]]] = {
    "swapped weight": ("distance to source", swap_weight),
    "swapped reference": ("reference numerics", lambda a: swap_weight(a, name="reference/model.onnx")),
    "swapped model file": ("size", lambda a: copied(a, "reference/model.onnx", "model.onnx")),
    "swapped safetensors": ("weights", swap_safetensors),
    "truncated file": ("loads and runs", lambda a: cut(a, -100)),
    "empty file": ("loads and runs", lambda a: cut(a, 0)),
    "text for a model": ("loads and runs", lambda a: copied(a, "README.md", "model.onnx")),
    "wrong quality": ("quality on validation", figure("quality", plus=1.0)),
    "wrong drop": ("drop on validation", figure("drop", plus=-1.5)),
    "wrong baseline": ("baseline on validation", figure("quality", plus=-1.0, of="baseline")),
    "wrong size": ("size", figure("size_bytes", 0.9)),
    "wrong baseline size": ("baseline size", figure("size_bytes", 1.5, of="baseline")),
    "wrong latency": ("latency", figure("latency_s", 0.5)),
    "wrong baseline latency": ("baseline latency", figure("latency_s", 9.0, of="baseline")),
    "wrong speed-up": ("times faster", figure("speed_up", 3.0)),
    "wrong params": ("params", figure("params", plus=-1)),
    "wrong macs": ("macs", figure("macs", 0.5)),
    "wrong loss": ("distance to source", lambda a: forge(a, lambda m: m.update(loss=m["loss"] * 0.5))),
    "wrong plan": ("params", lambda a: forge(a, other_plan)),
    "unknown knob": ("plan", lambda a: forge(a, lambda m: m["plan"].update({"width.nowhere": 8}))),
    "wrong source": ("source model", lambda a: forge(a, lambda m: m["study"].update(fingerprint="0" * 16))),
    "wrong size bound": ("budget size", lambda a: forge(a, lambda m: m.update(bounds="size<=1KB"))),
    "wrong drop bound": ("budget drop", lambda a: forge(a, lambda m: m.update(bounds="drop<=0"))),
    "wrong quality bound": ("budget quality", lambda a: forge(a, lambda m: m.update(bounds="quality>=99.9"))),
    "wrong latency bound": ("budget latency", lambda a: forge(a, lambda m: m.update(bounds="latency<=0.1us"))),
    "unmeasured bound": ("budget energy", lambda a: forge(a, lambda m: m.update(bounds="energy<=1J"))),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_forged_mutants_are_caught(originals: dict[str, Artifact], work: Workload, name: str, tmp_path: Path) -> None:
    where, mutate = MUTANTS[name]
    original = originals["fp32"]
    artifact = Artifact.load(shutil.copytree(original.path, tmp_path / "a"))
    mutate(artifact)
    found = verify(artifact.path, workload=work, seconds=0.5)
    assert all(check.ok for check in found.checks[:3]), "the forgery is good: files, digest and card agree"
    assert where in broken(found), found.checks


def test_a_swapped_int8_weight_is_caught(originals: dict[str, Artifact], work: Workload, tmp_path: Path) -> None:
    artifact = Artifact.load(shutil.copytree(originals["int8"].path, tmp_path / "a"))
    swap_weight(artifact)
    assert "distance to source" in broken(verify(artifact.path, workload=work, seconds=0.5))


def test_another_model_is_not_the_source(originals: dict[str, Artifact], work: Workload) -> None:
    torch.manual_seed(1)
    x, y = work.test.tensors()
    other = Workload(model=torch.nn.Linear(64, 10), train=(x, y), test=(x, y))
    assert {"source model", "reference numerics"} <= broken(verify(originals["fp32"].path, workload=other, seconds=0.5)).keys()


DROP = Constraint("drop", "drop", "points", 2.0, upper=True)
QUALITY = Constraint("quality", "quality", "points", 95.0, upper=False)


@pytest.mark.parametrize(
    ("bound", "value", "low", "high", "state"),
    [
        (DROP, 3.33, 0.18, 6.49, "cannot tell"),  # the interval spans the bound: not shown
        (DROP, 4.3, 2.1, 6.5, "broken"),
        (DROP, 0.5, -0.7, 1.7, "kept"),
        (DROP, 1.9, 1.0, 2.8, "cannot tell"),  # the value is within, the interval is not
        (DROP, 2.5, None, None, "broken"),  # no interval: the value decides
        (DROP, 2.0, None, None, "kept"),
        (QUALITY, 96.0, 95.5, 96.5, "kept"),
        (QUALITY, 94.8, 94.0, 95.6, "cannot tell"),
        (QUALITY, 94.0, 93.0, 94.9, "broken"),
    ],
)
def test_a_bound_is_kept_broken_or_not_shown(
    bound: Constraint, value: float, low: float | None, high: float | None, state: str
) -> None:
    assert held(bound, measured(value, "points", low=low, high=high, n=300)).state == state


def test_a_bound_that_is_not_measured_is_broken() -> None:
    assert held(DROP, unavailable("points", "nobody looked")).state == "broken"


@pytest.mark.parametrize(("states", "code", "strict"), [("k", 0, 0), ("kc", 0, 4), ("kb", 4, 4), ("kbc", 4, 4)])
def test_what_cannot_be_told_is_said_and_counts_only_when_strict(
    states: str, code: int, strict: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named: dict[str, State] = {"k": "kept", "b": "broken", "c": "cannot tell"}
    checks = tuple(Check(f"check {s}", "", "", named[s], f"reason {s}") for s in states)
    monkeypatch.setattr("equipoise.verify.verify", lambda *_, **__: Verification("a", checks, 1.0, saved=True))
    assert main(["verify", "a"]) == code
    assert ("cannot tell here: check c: reason c" in capsys.readouterr().out) == ("c" in states)
    assert main(["verify", "a", "--strict"]) == strict


def test_bad_seconds(originals: dict[str, Artifact]) -> None:
    with pytest.raises(InputError, match="seconds must be positive"):
        verify(originals["fp32"].path, seconds=0)
