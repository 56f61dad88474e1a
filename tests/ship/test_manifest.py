"""Mutants of an artifact over every leaf of its manifest: never a traceback, never a changed claim that is kept."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load, save

from equipoise.budget import parse_budget
from equipoise.errors import EquipoiseError, InputError
from equipoise.measure import machine
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.ship.agreement import contradictions
from equipoise.ship.artifact import Artifact, pack
from equipoise.ship.card import card
from equipoise.ship.manifest import ManifestError, checked, parse
from equipoise.ship.promises import Check
from equipoise.ship.verify import Verification, verify
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.workloads import Workload

ALIKE: set[tuple[str | int, ...]] = {("files",), ("changed",), ("recorded", "machine"), ("recorded", "machine", "versions")}
ALIKE |= {("recorded", "machine", "flags")}
"""Tables whose entries are of one kind: every third is enough."""
pytestmark = pytest.mark.slow  # the exporter alone takes some ten CPU seconds

HARMLESS = ("recorded.",)
"""What is recorded and not checked. Any text may stand there, so any other text may too."""

DEEP: Any = [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]
Json = dict[str, Any]
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def original(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An honest artifact: half the width, repaired, in int8."""
    return exported(study, tmp_path_factory.mktemp("manifests") / "a")


def exported(study: Path, out: Path) -> Artifact:
    """Export the study's model in int8, with one bound that it misses."""
    with Store.open(study, readonly=True) as store:
        return pack(Study.read(store).evaluations[2], store, out, budget=parse_budget("drop<=60, size<=1B"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, original: Artifact) -> None:
    """Take the promised speed for the one found: what is timed is tested elsewhere."""
    monkeypatch.setattr("equipoise.ship.verify._save", lambda artifact, found, **_: None)  # a thousand times to the disk
    monkeypatch.setattr("equipoise.ship.verify.write_atomic", lambda path, data: None)
    here = machine.describe()
    monkeypatch.setattr("equipoise.ship.promises.describe", lambda: here)
    monkeypatch.setattr("equipoise.ship.recheck._costs", lambda scene, found, seconds: iter(()))
    prepared: dict[str, Workbench] = {}

    def prepare(work: Workload, targets: tuple[Target, ...], save: Callable[[bytes], str], **shapes: bool) -> Workbench:
        return prepared.setdefault(f"{targets} {shapes}", Workbench(work, targets, save, **shapes))

    monkeypatch.setattr("equipoise.ship.rebuilt.Workbench", prepare)


# ---- every leaf of the manifest ----------------------------------------------------------------------------------------------


def places(data: Any, here: Place = ()) -> Iterator[Place]:
    """Every place of a JSON document, inner ones too."""
    yield here
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    alike = here in ALIKE
    for key, value in list(inner)[:: 3 if alike else 1]:
        yield from places(value, (*here, key))


def changes(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values for one place."""
    yield from [
        ("null", None),
        ("text", "zz"),
        ("true", True),
        ("deep", DEEP),
    ]
    if isinstance(value, bool):
        yield "flipped", not value
    elif isinstance(value, (int, float)):
        yield from [("scaled", value * 1.5), ("tiny", value * 1e-9), ("turned", -value if value else -1.0), ("more", value + 1)]
        yield from [
            ("zero", 0),
            ("huge", 1e300),
            ("million", 1_000_000),
            ("nan", math.nan),
            ("inf", math.inf),
            ("less", value - 1),
        ]
    elif isinstance(value, str):
        yield from [("longer", value + "x"), ("empty", ""), ("control", "\x1b[31m" + value), ("surrogate", "\ud800")]
        yield from [("other digits", value[::-1]), ("long", "y" * 5000)]
    elif isinstance(value, list):
        yield from [("shorter", value[:-1]), ("twice", value + value)]
    elif isinstance(value, dict):
        yield from [("more keys", value | {"surprise": 1}), ("no keys", {})]
    elif value is None:
        yield from [("number", 0.5), ("zero", 0)]


def changed(data: Json, place: Place, value: Any) -> Json:
    data = copy.deepcopy(data)
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


def removed(data: Json, place: Place) -> Json:
    data = copy.deepcopy(data)
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return data


def mutants(data: Json) -> Iterator[tuple[str, Place, Json]]:
    """Every mutant of a manifest, with its name and where it was changed."""
    for place in places(data):
        if not place or place == ("digest",):
            continue
        name, value = ".".join(map(str, place)), data
        for key in place:
            value = value[key]  # type: ignore[index]
        yield f"{name} removed", place, removed(data, place)
        for word, other in changes(value):
            numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (value, other))
            if other != value or not (numbers or type(other) is type(value)):  # 0 says what 0.0 says, `true` not what 1 says
                yield f"{name} {word}", place, changed(data, place, other)


def rewrite(folder: Path, manifest: Json) -> None:
    """Write a manifest with a digest that fits and a card that fits, as far as one can be made."""
    try:
        manifest = manifest | {"digest": Artifact(folder, manifest).digest}
        text = card(manifest, {})
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, IndexError, EquipoiseError):
        text = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if text is not None:
        (folder / "README.md").write_text(text, errors="replace")


def judge(folder: Path, work: Workload) -> Verification | InputError:
    """Verify, letting through what is told to a user in one line."""
    try:
        return verify(folder, workload=work, seconds=0.05)
    except InputError as error:
        return error


def test_no_mutant_of_any_leaf_is_kept(original: Artifact, work: Workload, quick: None, tmp_path: Path) -> None:
    folder = shutil.copytree(original.path, tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_text())
    kept, seen = [], 0
    for name, place, mutant in mutants(manifest):
        if ".".join(map(str, place)).startswith(HARMLESS):
            continue
        rewrite(folder, mutant)
        found = judge(folder, work)
        seen += 1
        if not isinstance(found, InputError) and found.ok and not found.untold:
            kept.append(name)
    assert kept == []
    assert seen > 700
    rewrite(folder, manifest)
    honest = judge(folder, work)
    assert isinstance(honest, Verification)
    assert [check for check in honest.checks if check.state != "kept"] == []


def test_what_is_recorded_can_be_any_text_but_breaks_nothing(
    original: Artifact, work: Workload, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(original.path, tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_text())
    monkeypatch.setattr("equipoise.ship.verify._measured", lambda *_, **__: ([], {}))
    for _, place, mutant in mutants(manifest):
        if ".".join(map(str, place)).startswith(HARMLESS):
            rewrite(folder, mutant)
            judge(folder, work)


# ---- whole manifests as text, and forgeries that agree with themselves -------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.replace('"fidelity":', '"fidelity": "untouched", "fidelity":', 1), "a key twice"),
        (lambda t: t.replace('"loss":', '"loss": NaN, "lost":', 1), "finite numbers"),
        (lambda t: t.replace('"loss":', '"loss": -Infinity, "lost":', 1), "finite numbers"),
        (lambda t: t.replace('"loss":', '"loss": 1e999, "lost":', 1), "lost"),
        (lambda t: t.replace('"loss":', '"surprise": 1, "loss":', 1), "surprise"),
        (lambda t: t.encode("utf-16"), "an Equipoise manifest"),
        (lambda t: t.encode().replace(b"onnxruntime", b"\xff\xfe", 1), "an Equipoise manifest"),
        (lambda t: "[" * 200_000, "an Equipoise manifest"),
        (lambda t: '{"a":' * 100_000 + "1" + "}" * 100_000, "an Equipoise manifest"),
        (lambda t: t.replace('"loss":', '"loss": ' + "9" * 6000 + ', "lost":', 1), "an Equipoise manifest"),
        (lambda t: t.replace('"schema": 3', '"schema": 4', 1), "newer Equipoise"),
        (lambda t: t.replace('"schema": 3', '"schema": 2', 1), "older than 3"),
        (lambda t: t.replace('"schema": 3', '"schema": true', 1), "an Equipoise manifest"),
        (lambda t: "null", "an Equipoise manifest"),
        (lambda t: "", "an Equipoise manifest"),
    ],
)
def test_a_manifest_that_is_none_is_one_clear_error(original: Artifact, edit: Callable[[str], Any], message: str) -> None:
    content = edit((original.path / "manifest.json").read_text())
    with pytest.raises(InputError, match=message) as caught:
        parse(content if isinstance(content, bytes) else content.encode())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def edited(artifact: Artifact, edit: Callable[[Json], object]) -> Json:
    manifest: Json = copy.deepcopy(dict(artifact.manifest))
    edit(manifest)
    return manifest


def speed(m: Json, value: float, low: float, high: float, n: int = 12) -> None:
    """Promise a speed-up, and the latency that goes with it."""
    base = m["baseline"]["latency_s"]["value"]
    m["promise"]["speed_up"].update(value=value, low=low, high=high, n=n)
    m["promise"]["latency_s"].update(value=base / value, low=base / high, high=base / low, n=n)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: speed(m, 2.0, 2.0, 2.0), "some width"),
        (lambda m: speed(m, 2.0, 0.02, 200.0), "within 10 times"),
        (lambda m: speed(m, 2.0, 2.1, 1.9), "holds its value"),
        (lambda m: speed(m, -2.0, -2.1, -1.9), "positive"),
        (lambda m: speed(m, 2.0, 1.9, 2.1, n=1), "between 2 and"),
        (lambda m: speed(m, 2.0, 1.9, 2.1, n=-1), "between 2 and"),
        (lambda m: speed(m, 2.0, 1.9, 2.1, n=1_000_000), "between 2 and"),
        (lambda m: speed(m, 1e300, 1e299, 1e301), "size that can be"),
        (lambda m: m["promise"]["drop"].update(value=0, low=-100, high=100), "narrower than the 100 points"),
        (lambda m: m["promise"]["drop"].update(value=0, low=0.5, high=1), "holds its value"),
        (lambda m: m["promise"]["drop"].update(value=1, low=1, high=1), "some width"),
        (lambda m: m["promise"]["drop"].update(low=None), "holds its value"),
        (lambda m: m["promise"]["quality"].update(n=1), "between 2 and"),
        (lambda m: m["promise"]["quality"].update(value=101), "between 0 and 100"),
        (lambda m: m["promise"]["quality"].update(low=1, high=99), "no interval is promised"),
        (lambda m: m["promise"]["params"].update(value=10.5), "a whole number"),
        (lambda m: m["promise"]["params"].update(n=7), "it was counted"),
        (lambda m: m["promise"]["latency_s"].update(unit="ms"), "unit must be s"),
        (lambda m: m["promise"]["latency_s"].update(provenance="estimated"), "one of measured"),
        (lambda m: m["promise"].update(energy_j=m["promise"]["params"]), "energy_j"),
        (lambda m: m["promise"].pop("drop"), "drop missing"),
        (lambda m: m.update(loss=-0.5), "0 or more"),
        (lambda m: m.update(loss=None), "finite number"),
        (lambda m: m["files"].pop("probe.safetensors"), "listing probe.safetensors"),
        (lambda m: m["files"].pop("model.safetensors"), "listing model.safetensors"),
        (lambda m: m["files"].pop("model.onnx"), "listing model.onnx"),
        (lambda m: m["files"].update({"../../etc/passwd": m["files"]["model.onnx"]}), "inside the folder"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["model.onnx"]}), "inside the folder"),
        (lambda m: m["files"].update({"a/./b": m["files"]["model.onnx"]}), "inside the folder"),
        (lambda m: m["files"].update({"a\\b": m["files"]["model.onnx"]}), "inside the folder"),
        (lambda m: m["files"].update({"": m["files"]["model.onnx"]}), "inside the folder"),
        (lambda m: m["files"]["model.onnx"].update(bytes=-1), "a size"),
        (lambda m: m["deployable"].update(files=[]), "own files"),
        (lambda m: m["deployable"].update(runtime="tensorrt"), "known runtime"),
        (lambda m: m["deployable"].update(target="onnxruntime:cpu?threads=0&batch=1"), "at least 1"),
        (lambda m: m["reference"].update(precision="int8"), "fp32"),
        (lambda m: m["study"].update(fingerprint="x"), "of the form"),
        (lambda m: m["study"].update(budget="drop<=much"), "finite number"),
        (lambda m: m.update(plan={}), "at least one knob"),
        (lambda m: m.update(fidelity="perfect"), "one of untouched"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(original: Artifact, edit: Callable[[Json], object], message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        checked(edited(original, edit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["promise"]["speed_up"].update(value=1.0001 * m["promise"]["speed_up"]["value"]), "over the speed-up"),
        (lambda m: m["recorded"]["baseline_latency_s"].update(value=1e-9, low=None, high=None), "recorded of the untouched"),
        (lambda m: m["promise"]["size_bytes"].update(value=10), "its files have"),
        (lambda m: m["baseline"]["size_bytes"].update(value=10), "its files have"),
        (lambda m: m["promise"]["drop"].update(n=99), "different samples"),
        (lambda m: m["baseline"]["quality"].update(n=99), "more samples"),
        (lambda m: m.update(bounds="drop<=60, size<=1B", bounds_missed=""), "the figures hold"),
        (lambda m: m["study"].update(budget="drop<=50"), "the figures hold"),
        (lambda m: m["study"].update(target="openvino:cpu?threads=1&batch=1"), "targets"),
        (lambda m: m["plan"].update(target="openvino:cpu?threads=1&batch=1"), "another target"),
        (lambda m: m["study"].update(source_state=True), "source_state"),
        (lambda m: m["plan"].update({k: 32 for k in m["plan"] if k.startswith("bits.")}), "what was changed"),
        (lambda m: m.update(changed={}), "called one-shot"),
        (lambda m: m.update(fidelity="untouched"), "called untouched"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_told(original: Artifact, edit: Callable[[Json], object], message: str) -> None:
    assert message in "; ".join(contradictions(edited(original, edit)))
    assert list(contradictions(original.manifest)) == []


# ---- files -------------------------------------------------------------------------------------------------------------------


def broken(found: Verification) -> dict[str, Check]:
    return {check.name: check for check in found.broken}


@pytest.fixture
def copied(original: Artifact, tmp_path: Path) -> Artifact:
    return Artifact.load(shutil.copytree(original.path, tmp_path / "a"))


def again(artifact: Artifact, edit: Callable[[Json], object] = lambda m: None) -> None:
    """Make every hash, size and digest fit the files again."""
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (artifact.path / name).read_bytes()
        entry.update(bytes=len(content), sha256=sha256(content).hexdigest())
    for part, program in (("promise", "deployable"), ("baseline", "reference")):
        manifest[part]["size_bytes"]["value"] = sum(manifest["files"][n]["bytes"] for n in manifest[program]["files"])
    edit(manifest)
    rewrite(artifact.path, manifest)


@pytest.mark.parametrize("name", ["model.onnx", "reference/model.onnx", "model.safetensors", "probe.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04" * 30, b"\xff" * 4096, b"{}", "flipped", "cut"])
def test_a_file_that_cannot_be_loaded_is_a_failed_check(
    copied: Artifact, work: Workload, quick: None, name: str, content: bytes | str
) -> None:
    file = copied.path / name
    real = file.read_bytes()
    a = len(real) // 2  # whole numbers, whatever their place: a last digit alone would be no damage
    damaged = {"flipped": real[:a] + bytes(255 - b for b in real[a : a + 16]) + real[a + 16 :], "cut": real[:-40]}
    file.write_bytes(damaged[content] if isinstance(content, str) else content)
    again(copied)
    assert broken(verify(copied.path, workload=work, seconds=0.05))


def test_a_garbage_model_with_vacuous_promises_is_broken(copied: Artifact, work: Workload, quick: None) -> None:
    (copied.path / "model.onnx").write_bytes(b"garbage")

    def vacuous(m: Json) -> None:
        m["promise"]["quality"].update(n=1)
        m["promise"]["drop"].update(n=1, low=-100, high=100)
        m["loss"] = None
        del m["files"]["probe.safetensors"], m["files"]["model.safetensors"]

    again(copied, vacuous)
    assert "manifest" in broken(verify(copied.path, workload=work, seconds=0.05))


@pytest.mark.parametrize("where", ["weights.pkl", "reference/.hidden", "a/b/c.so"])
def test_strangers_are_found(copied: Artifact, work: Workload, where: str) -> None:
    file = copied.path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    assert where in broken(verify(copied.path, workload=work))["nothing else"].note


def test_links_are_found_wherever_they_stand(copied: Artifact, work: Workload, tmp_path: Path) -> None:
    (copied.path / "link").symlink_to(tmp_path)
    assert "nothing else" in broken(verify(copied.path, workload=work))
    (copied.path / "link").unlink()
    shutil.move(copied.path / "reference", tmp_path / "elsewhere")
    (copied.path / "reference").symlink_to(tmp_path / "elsewhere")
    assert {"files", "nothing else"} <= broken(verify(copied.path, workload=work)).keys()


def test_another_card_is_found(copied: Artifact, work: Workload) -> None:
    file = copied.path / "README.md"
    text = file.read_text()
    for other in (text + text, text.replace("| Drop", "| Gain"), "", "\x00" * 10, text.replace("<!-- /equipoise -->", "")):
        file.write_text(other)
        assert "model card" in broken(verify(copied.path, workload=work))


def test_scaled_weights_beside_an_int8_program_are_found(copied: Artifact, work: Workload, quick: None) -> None:
    file = copied.path / "model.safetensors"
    weights = load(file.read_bytes())
    for factor, off in ((1.02, True), (0.98, True), (1.0, False)):
        file.write_bytes(save({name: (value * np.float32(factor)).astype(value.dtype) for name, value in weights.items()}))
        again(copied)
        found = broken(verify(copied.path, workload=work, seconds=0.05)).keys()
        assert bool({"weights in the file", "compiled again"} & found) == off


# ---- OpenVINO ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_openvino(study_in_openvino: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same in OpenVINO's int8, where the ONNX file beside it is in fp32."""
    return exported(study_in_openvino, tmp_path_factory.mktemp("openvino") / "a")


def test_an_honest_openvino_artifact_is_kept(in_openvino: Artifact, work: Workload, quick: None, tmp_path: Path) -> None:
    found = verify(shutil.copytree(in_openvino.path, tmp_path / "a"), workload=work, seconds=0.05)
    assert [check for check in found.checks if check.state != "kept"] == []
    assert {"compiled again", "weights in the file"} <= {check.name for check in found.checks}


@pytest.mark.parametrize("name", ["onnx and weights off", "weights off", "garbage bin", "garbage xml", "doctype"])
def test_forged_openvino_artifacts_are_caught(
    in_openvino: Artifact, work: Workload, quick: None, name: str, tmp_path: Path
) -> None:
    artifact = Artifact.load(shutil.copytree(in_openvino.path, tmp_path / "a"))
    weights, graph = artifact.path / "model.safetensors", artifact.path / "openvino/model.xml"
    scaled = {k: (v * np.float32(1.02)).astype(v.dtype) for k, v in load(weights.read_bytes()).items()}
    if name.endswith("off"):
        weights.write_bytes(save(scaled))
    if name.startswith("onnx"):
        model = onnx.load(artifact.path / "model.onnx")
        for tensor in model.graph.initializer:
            value = scaled.get(tensor.name)
            if value is not None:
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        onnx.save(model, artifact.path / "model.onnx")
    elif name == "garbage bin":
        (artifact.path / "openvino/model.bin").write_bytes(b"\x00" * 16)
    elif name == "garbage xml":
        graph.write_bytes(b"<net")
    elif name == "doctype":
        graph.write_bytes(b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + graph.read_bytes().replace(b"main_graph", b"&a;"))
    again(artifact)
    found = verify(artifact.path, workload=work, seconds=0.05)
    assert broken(found) or name == "doctype"  # OpenVINO reads no entities: the name is a name
