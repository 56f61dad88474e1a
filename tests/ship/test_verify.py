"""Verify on real files: the honest artifact passes; every mutant fails though its author rewrote hashes, digest and card."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load, save

from equipoise.budget import Constraint
from equipoise.cli import main
from equipoise.errors import EquipoiseError, InputError
from equipoise.records import Evaluation, Reading, measured, unavailable
from equipoise.runtimes import get
from equipoise.runtimes.base import RUNTIMES, runs_code
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.ship.artifact import Artifact, pack
from equipoise.ship.card import card
from equipoise.ship.promises import Check, State
from equipoise.ship.recheck import held, recheck
from equipoise.ship.scene import Scene
from equipoise.ship.verify import Verification, _died, executes, verify
from equipoise.study.store import Store
from equipoise.workloads import Workload

pytestmark = pytest.mark.slow  # the ONNX exporter alone takes some ten CPU seconds


def exported(study: Path, number: int, out: Path) -> Artifact:
    with Store.open(study, readonly=True) as store:
        from equipoise.study.record import Study

        found: Evaluation = Study.read(store).evaluations[number]
        return pack(found, store, out)


@pytest.fixture(scope="module")
def originals(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {name: exported(study, i, folder / name) for i, name in enumerate(("untouched", "fp32", "int8"))}


@pytest.fixture
def as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the promised speed, without racing: that has tests of its own."""

    def found(scene: Scene, figures: dict[str, Reading], seconds: float) -> Iterator[Check]:
        figures["latency_s"], figures["speed_up"] = (scene.artifact.promise[axis] for axis in ("latency_s", "speed_up"))
        yield Check("times faster", "", "", "kept")

    monkeypatch.setattr("equipoise.ship.recheck.raced", found)


def broken(found: Verification) -> dict[str, Check]:
    return {check.name: check for check in found.broken}


@pytest.mark.parametrize("name", ["untouched", "fp32", "int8"])
def test_the_honest_artifact_passes(originals: dict[str, Artifact], work: Workload, as_fast: None, name: str) -> None:
    found = verify(originals[name].path, workload=work, seconds=0.1)
    assert broken(found) == {}
    names = {check.name for check in found.checks}
    assert {"distance to source", "quality on validation", "drop on test", "times faster", "size", "params", "macs"} <= names
    assert {"weights", "budget drop"} <= names


def test_another_workload_leaves_the_card_as_it_was(originals: dict[str, Artifact], work: Workload, tmp_path: Path) -> None:
    path = shutil.copytree(originals["int8"].path, tmp_path / "a")
    before = (path / "README.md").read_bytes()
    x, y = work.test.tensors()
    other = Workload(model=work.model, train=(x[:200], y[:200]), validation=(x[200:400], y[200:400]), test=(x[400:], y[400:]))
    assert "source model" in broken(verify(path, workload=other, seconds=0.1))
    verify(path, seconds=0.1, trust_nothing=True)
    assert (path / "README.md").read_bytes() == before


def test_a_clean_process_finds_the_workload_by_itself(
    originals: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(originals["int8"].path, tmp_path / "a")
    assert main(["verify", str(path), "--seconds", "1"]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("verify executes, in a clean process: the Python file ")
    assert "mymodule.py, which the manifest names" in told.err.splitlines()[0]
    assert told.err.splitlines()[-1].endswith("once it is written again: equipoise report STUDY")
    assert told.out.startswith("on 597 test samples that the search never saw: drop ")
    assert "broken promise" not in told.out
    written = json.loads((path / "verify.json").read_text())
    assert written["ok"] is True
    assert written["headline"] == told.out.splitlines()[0]
    assert written["test"]["drop"]["n"] == 597
    card_ = (path / "README.md").read_text()
    assert written["headline"][1:] in card_
    assert "Not verified yet" not in card_
    assert main(["verify", str(path), "--seconds", "1", "--trust-nothing"]) == 0
    assert json.loads((path / "verify.json").read_text()) == written  # it says more than what was looked at now
    capsys.readouterr()
    swap_weight(Artifact.load(path))
    assert main(["verify", str(path), "--seconds", "1", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["verify", str(path), "--workload", "nothing.py:here"]) == 2


def test_an_artifact_that_was_moved_asks_for_its_workload(
    originals: dict[str, Artifact], work: Workload, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(originals["fp32"].path, tmp_path / "a")
    for spec in ("elsewhere/mymodule.py:make_workload", "Sequential"):  # another folder; a study made from Python
        forge(Artifact.load(path), lambda m, spec=spec: m["recorded"].update(workload=spec))  # type: ignore[misc]
        assert main(["verify", str(path)]) == 2
        told = capsys.readouterr().err
        assert "--workload SPEC" in told
        assert ("eq.verify(artifact, workload=work)" in told) == (spec == "Sequential")


def test_a_workload_inside_the_artifact_is_never_run(originals: dict[str, Artifact], tmp_path: Path) -> None:
    path = shutil.copytree(originals["fp32"].path, tmp_path / "a")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")

    def name(m: dict[str, Any]) -> None:
        m["recorded"]["workload"] = f"{path}/evil.py:make_workload"
        m["files"]["evil.py"] = {"bytes": 0, "sha256": "0" * 64}

    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["evil.py"] = {"bytes": 0, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(manifest))
    forge(Artifact.load(path), name)
    with pytest.raises(InputError, match="outside the artifact"):
        verify(path)
    assert not (tmp_path / "pwned").exists()


# ---- mutants by someone who can rewrite hashes ------------------------------------------------------------------------------


def forge(artifact: Artifact, edit: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Rewrite the manifest, then every hash and size, its digest and the card, so that the files alone look honest."""
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (artifact.path / name).read_bytes()
        entry.update(bytes=len(content), sha256=sha256(content).hexdigest())
    for part, program in (("promise", "deployable"), ("baseline", "reference")):
        manifest[part]["size_bytes"]["value"] = sum(manifest["files"][n]["bytes"] for n in manifest[program]["files"])
    edit(manifest)
    manifest["digest"] = Artifact(artifact.path, manifest).digest
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    (artifact.path / "README.md").write_text(card(manifest, {}))


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


def faster(factor: float) -> Callable[[dict[str, Any]], None]:
    """Promise more speed, and the latency that goes with it."""

    def edit(manifest: dict[str, Any]) -> None:
        for axis, by in (("speed_up", factor), ("latency_s", 1 / factor)):
            for part in ("value", "low", "high"):
                manifest["promise"][axis][part] *= by

    return edit


def drop(manifest: dict[str, Any], **changes: float | None) -> None:
    manifest["promise"]["drop"].update(changes)


def other_plan(manifest: dict[str, Any]) -> None:
    knob = next(k for k in manifest["changed"] if k.startswith("width."))
    manifest["plan"][knob] += 8
    manifest["changed"][knob][1] += 8


def other_bits(manifest: dict[str, Any]) -> None:
    """Call every float layer an int8 one, everywhere."""
    for knob in [k for k in manifest["plan"] if k.startswith("bits.")]:
        manifest["plan"][knob] = 8
        manifest["changed"][knob] = [32, 8]
    manifest["deployable"]["precision"] = "int8"


def noisy(artifact: Artifact) -> None:
    """Add a little noise to what the program answers."""
    model = onnx.load(artifact.path / "model.onnx")
    graph = model.graph
    last = next(node for node in graph.node if "output" in node.output)
    last.output[:] = ["quiet"]
    graph.node.append(onnx.helper.make_node("RandomNormalLike", ["quiet"], ["noise"], scale=1e-4))
    graph.node.append(onnx.helper.make_node("Add", ["quiet", "noise"], ["output"]))
    onnx.save(model, artifact.path / "model.onnx")
    forge(artifact)


def outside(artifact: Artifact) -> None:
    """Let the largest tensor lie in another file."""
    model = onnx.load(artifact.path / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    (artifact.path / "model.onnx").write_bytes(model.SerializeToString())
    forge(artifact)


def foreign(artifact: Artifact) -> None:
    """Call an operator of somebody's library."""
    model = onnx.load(artifact.path / "model.onnx")
    model.opset_import.append(onnx.helper.make_opsetid("evil.corp", 1))
    model.graph.node[0].domain = "evil.corp"
    (artifact.path / "model.onnx").write_bytes(model.SerializeToString())
    forge(artifact)


def hollow(artifact: Artifact) -> None:
    """Declare a tensor of a terabyte."""
    model = onnx.load(artifact.path / "model.onnx")
    model.graph.initializer[0].dims[:] = [2**20, 2**18]
    (artifact.path / "model.onnx").write_bytes(model.SerializeToString())
    forge(artifact)


def unlisted(name: str) -> Callable[[Artifact], None]:
    """Remove a file, and its entry with it."""

    def mutate(artifact: Artifact) -> None:
        (artifact.path / name).unlink()
        manifest = json.loads((artifact.path / "manifest.json").read_text())
        del manifest["files"][name]
        (artifact.path / "manifest.json").write_text(json.dumps(manifest))
        forge(artifact)

    return mutate


def stranger(artifact: Artifact) -> None:
    (artifact.path / "reference" / "more.pkl").write_bytes(b"x")


def scaled_safetensors(artifact: Artifact) -> None:
    """Ship weights that are 2 % off those of the program."""
    file = artifact.path / "model.safetensors"
    file.write_bytes(save({name: (value * 1.02).astype(value.dtype) for name, value in load(file.read_bytes()).items()}))
    forge(artifact)


def garbage_tensors(artifact: Artifact) -> None:
    (artifact.path / "model.safetensors").write_bytes(b"\xff" * 64)
    forge(artifact)


def other_probe(artifact: Artifact) -> None:
    """Answers that are the program's, to inputs of somebody's own."""
    inputs = np.zeros((32, 64), np.float32)
    answers = get("onnxruntime").load(artifact.program).run(inputs)
    (artifact.path / "probe.safetensors").write_bytes(save({"inputs": inputs, "outputs": answers}))
    forge(artifact)


ITSELF = "agrees with itself"
MUTANTS: dict[str, tuple[str, Callable[[Artifact], None]]] = {
    "swapped weight": ("distance to source", swap_weight),
    "swapped reference": ("reference numerics", lambda a: swap_weight(a, name="reference/model.onnx")),
    "swapped model file": ("weights in the file", lambda a: copied(a, "reference/model.onnx", "model.onnx")),
    "swapped safetensors": ("weights", swap_safetensors),
    "truncated file": ("structure of model.onnx", lambda a: cut(a, -100)),
    "empty file": ("manifest", lambda a: cut(a, 0)),
    "text for a model": ("structure of model.onnx", lambda a: copied(a, "README.md", "model.onnx")),
    "wrong quality": ("quality on validation", figure("quality", plus=1.0)),
    "wrong drop": ("drop on validation", figure("drop", plus=-1.5)),
    "wrong baseline": ("baseline on validation", figure("quality", plus=-1.0, of="baseline")),
    "wrong size": (ITSELF, figure("size_bytes", plus=-1)),
    "wrong baseline size": (ITSELF, figure("size_bytes", 2, of="baseline")),
    "wrong latency": (ITSELF, figure("latency_s", 0.5)),
    "wrong baseline latency": (ITSELF, figure("latency_s", 9.0, of="baseline")),
    "wrong speed-up": (ITSELF, figure("speed_up", 3.0)),
    "wrong params": ("params", figure("params", plus=-1)),
    "wrong macs": ("macs", figure("macs", plus=1)),
    "wrong loss": ("distance to source", lambda a: forge(a, lambda m: m.update(loss=m["loss"] * 0.5))),
    "wrong plan": ("params", lambda a: forge(a, other_plan)),
    "unknown knob": ("plan", lambda a: forge(a, lambda m: m["plan"].update({"width.nowhere": 8}))),
    "wrong source": ("source model", lambda a: forge(a, lambda m: m["study"].update(fingerprint="0" * 16))),
    "wrong size bound": (ITSELF, lambda a: forge(a, lambda m: m.update(bounds="size<=1KB"))),
    "wrong drop bound": (ITSELF, lambda a: forge(a, lambda m: m.update(bounds="drop<=0"))),
    "wrong quality bound": (ITSELF, lambda a: forge(a, lambda m: m.update(bounds="quality>=99.9"))),
    "wrong latency bound": (ITSELF, lambda a: forge(a, lambda m: m.update(bounds="latency<=0.1us"))),
    "unmeasured bound": (ITSELF, lambda a: forge(a, lambda m: m.update(bounds="energy<=1J"))),
    "other bits": ("bits", lambda a: forge(a, other_bits)),
    "other precision": ("precision", lambda a: forge(a, lambda m: m["deployable"].update(precision="mixed"))),
    "called recovered": ("fidelity", lambda a: forge(a, lambda m: m.update(fidelity="recovered"))),
    "other metric": ("metric", lambda a: forge(a, lambda m: m["study"]["metric"].update(name="f1"))),
    "other direction": ("metric's direction", lambda a: forge(a, lambda m: m["study"]["metric"].update(maximize=False))),
    "other name": ("name", lambda a: forge(a, lambda m: m["study"].update(name="GPT"))),
    "other target": (ITSELF, lambda a: forge(a, lambda m: m["study"].update(target="onnxruntime:cpu?threads=2&batch=1"))),
    "fewer samples": ("samples", lambda a: forge(a, lambda m: [m["promise"][x].update(n=2) for x in ("quality", "drop")])),
    "narrower drop": ("drop on validation", lambda a: forge(a, lambda m: drop(m, low=m["promise"]["drop"]["value"] - 0.1))),
    "drop without interval": ("drop on validation", lambda a: forge(a, lambda m: drop(m, low=None, high=None))),
    "noise in the graph": ("structure of model.onnx", noisy),
    "data outside": ("structure of model.onnx", outside),
    "operator of a library": ("structure of model.onnx", foreign),
    "tensor of a terabyte": ("structure of model.onnx", hollow),
    "probe taken out": ("manifest", unlisted("probe.safetensors")),
    "weights taken out": ("manifest", unlisted("model.safetensors")),
    "a file too many": ("nothing else", stranger),
    "weights 2 % off": ("weights in the file", scaled_safetensors),
    "garbage for weights": ("plan", garbage_tensors),
    "other probe": ("probe's inputs", other_probe),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_forged_mutants_are_caught(
    originals: dict[str, Artifact], work: Workload, as_fast: None, name: str, tmp_path: Path
) -> None:
    where, mutate = MUTANTS[name]
    original = originals["fp32"]
    artifact = Artifact.load(shutil.copytree(original.path, tmp_path / "a"))
    mutate(artifact)
    found = verify(artifact.path, workload=work, seconds=0.1)
    hashes = {check.name: check.ok for check in found.checks if check.name in ("files", "model card")}
    assert all(hashes.values()), "the forgery is good: hashes and card agree"
    assert where in broken(found), found.checks


def test_a_promised_speed_that_is_not_there_is_broken(originals: dict[str, Artifact], work: Workload, tmp_path: Path) -> None:
    artifact = Artifact.load(shutil.copytree(originals["fp32"].path, tmp_path / "a"))
    forge(artifact, faster(20.0))
    assert verify(artifact.path, workload=work, seconds=8.0).ok is False


INT8_MUTANTS: dict[str, tuple[str, Callable[[Artifact], None]]] = {
    "swapped weight": ("distance to source", swap_weight),
    "weights 2 % off": ("compiled again", scaled_safetensors),
    "noise in the graph": ("structure of model.onnx", noisy),
    "program in fp32": ("bits", lambda a: copied(a, "reference/model.onnx", "model.onnx")),
}


@pytest.mark.parametrize("name", INT8_MUTANTS)
def test_forged_int8_mutants_are_caught(
    originals: dict[str, Artifact], work: Workload, as_fast: None, name: str, tmp_path: Path
) -> None:
    where, mutate = INT8_MUTANTS[name]
    artifact = Artifact.load(shutil.copytree(originals["int8"].path, tmp_path / "a"))
    mutate(artifact)
    assert where in broken(verify(artifact.path, workload=work, seconds=0.1))


def test_another_model_is_not_the_source(originals: dict[str, Artifact], work: Workload, as_fast: None) -> None:
    torch.manual_seed(1)
    x, y = work.test.tensors()
    other = Workload(model=torch.nn.Linear(64, 10), train=(x, y), validation=work.validation.tensors(), test=(x, y))
    assert {"source model", "reference numerics"} <= broken(verify(originals["fp32"].path, workload=other, seconds=0.1)).keys()


def test_a_workload_of_other_samples_is_bad_input_and_no_broken_promise(
    originals: dict[str, Artifact], source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(originals["fp32"].path, tmp_path / "a", ignore=shutil.ignore_patterns("verify.json"))
    file = tmp_path / "other.py"
    file.write_text(
        source.replace("from_numpy(images)", "from_numpy(images[:, :60])").replace("Linear(64, 64)", "Linear(60, 64)")
    )
    assert main(["verify", str(path), "--workload", f"{file}:make_workload", "--seconds", "0.1"]) == 2
    told = capsys.readouterr().err
    assert (
        "--workload must be what the artifact was made of, with samples that are float32 of (64,); got 'float32 of (60,)'"
        in told
    )
    assert not (path / "verify.json").exists()


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


def test_a_bound_on_what_cannot_be_read_here_cannot_be_told() -> None:
    check = held(DROP, unavailable("points", "no counter"))
    assert (check.state, check.note) == ("cannot tell", "no counter")


@pytest.mark.parametrize(("states", "code", "strict"), [("k", 0, 0), ("kc", 0, 4), ("kb", 4, 4), ("kbc", 4, 4)])
def test_what_cannot_be_told_is_said_and_counts_only_when_strict(
    states: str, code: int, strict: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named: dict[str, State] = {"k": "kept", "b": "broken", "c": "cannot tell"}
    checks = tuple(Check(f"check {s}", "", "", named[s], f"reason {s}") for s in states)
    monkeypatch.setattr("equipoise.ship.verify.verify", lambda *_, **__: Verification("a", checks, 1.0, saved=True))
    assert main(["verify", "a"]) == code
    assert ("cannot tell here: check c: reason c" in capsys.readouterr().out) == ("c" in states)
    assert main(["verify", "a", "--strict"]) == strict


def test_bad_seconds(originals: dict[str, Artifact]) -> None:
    with pytest.raises(InputError, match="seconds must be positive"):
        verify(originals["fp32"].path, seconds=0)


# ---- without trusting anything ----------------------------------------------------------------------------------------------


def test_nothing_of_the_author_is_executed_without_trust(
    originals: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(originals["int8"].path, tmp_path / "a")
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    forge(Artifact.load(path), lambda m: m["recorded"].update(workload=f"{evil}:make_workload"))
    assert main(["verify", str(path), "--seconds", "0.5", "--trust-nothing"]) == 0
    told = capsys.readouterr()
    assert "no workload, no pickle, no code from the folder" in told.err.splitlines()[0]
    assert "cannot tell here: everything else: no code that the artifact names was executed" in told.out
    assert not (tmp_path / "pwned").exists()
    found = json.loads((path / "verify.json").read_text())
    states = {check["name"]: check["state"] for check in found["checks"]}
    checked = ("files", "structure of model.onnx", "probe", "program repeats", "size", "bits")
    assert {states[name] for name in checked} == {"kept"}
    assert states["budget drop"] == "cannot tell"
    assert states["weights in the file"] == "cannot tell"  # int8 is rounded for what it reads: the source compiles it again


UNTRUSTED: dict[str, tuple[str, Callable[[Artifact], None]]] = {
    "noise in the graph": ("int8", noisy),
    "data outside": ("int8", outside),
    "operator of a library": ("int8", foreign),
    "tensor of a terabyte": ("int8", hollow),
    "weights 2 % off": ("fp32", scaled_safetensors),
    "swapped weight": ("int8", swap_weight),
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_forgeries_are_caught_without_trust(originals: dict[str, Artifact], as_fast: None, name: str, tmp_path: Path) -> None:
    which, mutate = UNTRUSTED[name]
    artifact = Artifact.load(shutil.copytree(originals[which].path, tmp_path / "a"))
    mutate(artifact)
    checks = recheck(Artifact.load(artifact.path), None, seconds=0.1)
    assert [check.name for check in checks if check.state == "broken"]


def test_what_trust_nothing_refuses(originals: dict[str, Artifact], work: Workload, tmp_path: Path) -> None:
    path = shutil.copytree(originals["fp32"].path, tmp_path / "a")
    with pytest.raises(InputError, match="left out with trust_nothing"):
        verify(path, workload=work, trust_nothing=True)

    def torch_program(m: dict[str, Any]) -> None:
        m["reference"].update(runtime="torch", target="torch:cpu?threads=1&batch=1")

    forge(Artifact.load(path), torch_program)
    with pytest.raises(InputError, match="whose files hold no code; got 'torch'"):
        verify(path, trust_nothing=True)


class Undeclared(OnnxRuntime):
    """Inherits what another class says of its own files."""


def test_a_runtime_that_does_not_say_that_its_files_hold_no_code_is_not_trusted(
    originals: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [runs_code(name) for name in ("onnxruntime", "openvino", "torch")] == [False, False, True]
    assert executes(originals["fp32"], trust_nothing=True).startswith("nothing")
    monkeypatch.setitem(RUNTIMES, "onnxruntime", f"{__name__}:Undeclared")
    assert runs_code("onnxruntime")
    with pytest.raises(InputError, match="whose files hold no code"):
        verify(originals["fp32"], trust_nothing=True)


def test_a_file_that_brings_the_process_down_is_a_failed_check(originals: dict[str, Artifact], tmp_path: Path) -> None:
    done = subprocess.CompletedProcess([], -11, "", "something\nlast words")
    assert _died(done, loaded=True, spec="x").state == "broken"
    with pytest.raises(EquipoiseError, match="could not be loaded in a clean process: the process died of signal 11"):
        _died(done, loaded=False, spec="x")
