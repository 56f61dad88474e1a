"""Export and the checks that need no model: hashes, digest, card, and folders that are never half there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many_inputs import paired, pairs
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save
from torch import nn

from equipoise.batch import call, mapped, named, positional
from equipoise.budget import parse_budget
from equipoise.cli import main
from equipoise.errors import InputError, StoreError
from equipoise.records import Evaluation, Plan, ProgramRef, as_data, measured, program_ref
from equipoise.runtimes import Source, available, get
from equipoise.runtimes.export import Exporter
from equipoise.ship.artifact import OWN_FILES, Artifact, pack
from equipoise.ship.card import BEGIN, loading
from equipoise.ship.manifest import PROBE as PROBE_FILE
from equipoise.ship.manifest import WEIGHTS
from equipoise.ship.verify import integrity, verify
from equipoise.study.header import Header
from equipoise.study.store import Store
from equipoise.workloads.beside import LABELS, TAKEN, checked_files, shipped


def program(seed: int, hidden: int) -> bytes:
    """A tiny ONNX program: two matrix products with weights of their own."""
    weights = np.random.default_rng(seed).normal(size=(4, hidden)).astype(np.float32)
    first, second = (numpy_helper.from_array(value, name) for value, name in ((weights, "a"), (weights.T.copy(), "b")))
    nodes = [helper.make_node("MatMul", ["input", "a"], ["x"]), helper.make_node("MatMul", ["x", "b"], ["output"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("input", "output")]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], [first, second])
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    return content


BIG, SMALL = program(0, 64), program(1, 16)
TARGET = "onnxruntime:cpu?threads=1&batch=1"
RATIO = {"value": 2.0, "low": 1.9, "high": 2.1, "n": 12, "confidence": 0.95}
PROBE = save({"inputs": np.eye(4, dtype=np.float32)})


def evaluation(store: Store, name: str, **changes: object) -> Evaluation:
    untouched = name == "base"
    content = BIG if untouched else SMALL
    fields: dict[str, object] = {
        "plan": Plan({"width.conv1": 64 if untouched else 32, "bits.fc": 32}),
        "fidelity": "untouched" if untouched else "recovered",
        "quality": measured(95.0 if untouched else 94.25, "points", n=400),
        "drop": measured(0.0 if untouched else 0.75, "points", low=-0.1, high=1.6, n=400),
        "cost": {
            "latency_s": measured(2e-3 if untouched else 1e-3, "s", low=0.9e-3, high=2.1e-3, n=12),
            "size_bytes": measured(len(content), "B"),
            "params": measured(1000 if untouched else 500, "1"),
            "macs": measured(2000 if untouched else 900, "1"),
        },
        "program": ProgramRef("onnxruntime", "fp32", TARGET, {"model.onnx": store.blob(content)}),
        "weights": store.blob(b"weights"),
        "damage": 0.01,
        "speed_up": measured(2.0, "1", low=1.9, high=2.1, n=12),
    }
    return Evaluation(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, header: Callable[..., Header]) -> Iterator[Store]:
    with Store.open(tmp_path / "study") as store:
        base, small = evaluation(store, "base"), evaluation(store, "small")
        asked = header(
            space=base.plan.choices,
            budget="latency<=1.5ms, drop<=0.5",
            probe=store.blob(PROBE),
            baseline=base.key,
            machine={"cpu": "a <script>|`cpu`", "flags": ["avx2"], "versions": {"onnxruntime": "1.32.0"}},
        )
        store.identity({"workload": "0123456789abcdef"})
        store.put("study", "header", {"header": as_data(asked)}, seconds=0.0)
        for e in (base, small):
            store.put("evaluation", e.key, {"evaluation": as_data(e)}, seconds=1.0)
        store.put("final", "race", race_of(small, store), seconds=1.0)
        yield store


def race_of(found: Evaluation, store: Store, ratio: Mapping[str, float] = RATIO) -> dict[str, Any]:
    """A last race as it is recorded."""
    return {"ratios": {found.key: ratio}, "reference": as_data(evaluation(store, "base").cost["latency_s"]), "elasticity": {}}


@pytest.fixture
def artifact(store: Store, tmp_path: Path) -> Artifact:
    return pack(evaluation(store, "small"), store, tmp_path / "out", pick="fastest")


def recorded(store: Store, found: Evaluation) -> Evaluation:
    """Put one more evaluation into the study, and into a last race."""
    store.put("evaluation", found.key, {"evaluation": as_data(found)}, seconds=1.0)
    store.put("final", found.key, race_of(found, store), seconds=1.0)
    return found


def answered_by(text: str, inputs: np.ndarray) -> np.ndarray:
    """Run the lines of Python of a card, in its folder."""
    found = {"inputs": inputs}
    exec(text.partition("```python\n")[2].partition("```")[0], found)
    return found["outputs"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["small", "base"])
def test_a_race_that_was_cut_short_is_run_again(
    name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that was killed and gone on with had a moment left for its last race: its pick could never be exported."""
    picked, raced = evaluation(store, name), list[list[str]]()
    wide = {"value": 0.95, "low": 0.1, "high": 50.0, "n": 2, "confidence": 0.95}
    store.put("final", "short", race_of(picked, store, wide), seconds=1.0)

    def race(store: Store, baseline: Evaluation, rivals: list[Evaluation], **options: float) -> dict[str, Any]:
        raced.append([e.key for e in rivals])
        return race_of(picked, store)

    monkeypatch.setattr("equipoise.ship.artifact.race_stored", race)
    found = pack(picked, store, tmp_path / "out", pick="fastest")
    assert raced == [[picked.key]]
    assert found.manifest["promise"]["speed_up"]["value"] == (RATIO["value"] if name == "small" else 1.0)
    pack(picked, store, tmp_path / "again", pick="fastest")
    assert len(raced) == 1


def test_the_scored_bytes_ship(artifact: Artifact) -> None:
    found = files(artifact.path)
    assert found["model.onnx"] == SMALL
    assert found["reference/model.onnx"] == BIG
    own = {"manifest.json", "README.md", "model.onnx", "model.safetensors", "probe.safetensors", "reference/model.onnx"}
    assert set(found) == own
    assert artifact.program.files == {"model.onnx": SMALL}
    assert artifact.reference.files == {"model.onnx": BIG}
    assert [p.name for p in artifact.path.parent.iterdir() if p.name.startswith(".")] == []


def test_openvino_goes_into_its_own_folder_beside_onnx(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    compiled = get("openvino").compile(Source.of_onnx(SMALL))
    base, kept = evaluation(store, "small"), {name: store.blob(content) for name, content in compiled.files.items()}
    ref = ProgramRef("openvino", "fp32", "openvino:cpu?threads=1&batch=3", kept, onnx=store.blob(SMALL))
    cost = {**base.cost, "size_bytes": measured(compiled.size_bytes, "B")}
    plan = Plan({"width.conv1": 32, "bits.fc": 8})
    made = recorded(store, evaluation(store, "small", program=ref, cost=cost, plan=plan))
    found = pack(made, store, tmp_path / "out")
    assert {"openvino/model.xml", "openvino/model.bin", "model.onnx"} <= files(found.path).keys()
    assert found.program == compiled
    text = (found.path / "README.md").read_text()
    assert "`inputs` is a batch of exactly N=3 samples (N, ...), as it was timed, as the training code makes it" in text
    assert "The file takes `input` (3, 4): an axis with a number is fixed" in text
    assert "first axis is free" not in text
    monkeypatch.chdir(found.path)
    assert answered_by(text, np.ones((3, 4), np.float32)).shape == (3, 4)
    with pytest.raises(RuntimeError):
        answered_by(text, np.ones((2, 4), np.float32))


def test_the_manifest_promises_what_was_measured_and_only_bounds_that_hold(artifact: Artifact) -> None:
    assert artifact.promise["drop"] == measured(0.75, "points", low=-0.1, high=1.6, n=400)
    assert artifact.promise["latency_s"] == measured(1e-3, "s", low=2e-3 / 2.1, high=2e-3 / 1.9, n=12)
    assert artifact.promise["speed_up"].get() == 2.0
    assert artifact.baseline["latency_s"].get() == 2e-3
    assert artifact.plan == Plan({"width.conv1": 32, "bits.fc": 32})
    assert artifact.manifest["changed"] == {"width.conv1": [64, 32]}
    assert [c.word for c in artifact.bounds] == ["latency"]
    assert artifact.manifest["bounds_missed"] == "drop<=0.5"
    assert artifact.manifest["recorded"]["workload"] == "digits"
    assert all(check.ok for check in integrity(artifact))


def test_a_picked_budget_is_the_one_promised(store: Store, tmp_path: Path) -> None:
    found = pack(evaluation(store, "small"), store, tmp_path / "out", budget=parse_budget("latency<=1.1ms, drop<=1"))
    assert found.manifest["bounds"] == "latency<=1.1ms, drop<=1"


def asked_more(store: Store, header: Callable[..., Header], budget: str, **told: float) -> Evaluation:
    """Record what a run with `budget` measured of a further model, at twice the latency that it has since its last race."""
    cost = {
        **evaluation(store, "small").cost,
        "peak_memory_bytes": measured(20e6, "B", low=19.7e6, high=20.3e6),
        "energy_j": measured(0.36, "J", low=0.3, high=0.4, n=10),
        "carbon_g": measured(5e-5, "g", n=10),
        "throughput_per_s": measured(1000.0, "1/s", n=12),
        "price_per_million": measured(1.0, "$", n=12),
    }
    made = recorded(store, evaluation(store, "small", cost=cost, plan=Plan({"width.conv1": 16, "bits.fc": 32})))
    base = evaluation(store, "base")
    asked = header(space=base.plan.choices, budget=budget, probe=store.blob(PROBE), baseline=base.key, **told)
    store.put("study", "asked more", {"header": as_data(asked)}, seconds=0.0)
    return made


MORE = "memory<=100MB, throughput>=900/s, price<=2$, energy<=1J, carbon<=1g"


def test_every_axis_that_the_budget_named_is_promised(store: Store, header: Callable[..., Header], tmp_path: Path) -> None:
    made = asked_more(store, header, MORE, price_per_hour=3.6, grid=500.0)
    found = pack(made, store, tmp_path / "out")
    assert (found.manifest["bounds"], found.manifest["bounds_missed"]) == (MORE, "")
    assert found.manifest["study"]["told"] == {"price_per_hour": 3.6, "grid": 500.0}
    assert found.promise["peak_memory_bytes"] == measured(20e6, "B", low=19.7e6, high=20.3e6)
    assert found.promise["price_per_million"] == measured(1.0, "$", low=1 / 1.05, high=1 / 0.95, n=12)
    assert found.promise["throughput_per_s"].get() == pytest.approx(1000.0)
    assert found.promise["carbon_g"].get() == pytest.approx(5e-5)
    text = (found.path / "README.md").read_text()
    assert f"Promised: `{MORE}`." in text
    assert "not** reached" not in text
    for row in (
        "| Peak memory |  | 20 MB [19.7 MB, 20.3 MB] |",
        "| Throughput |  | 1000/s [950/s, 1050/s] |",
        "| Price per million |  | $1 [$0.952, $1.05] |",
    ):
        assert row in text
    assert "Told, not measured: grid 500, price_per_hour 3.6." in text
    assert all(check.ok for check in integrity(found))


def test_a_bound_that_is_missed_or_was_not_measured_is_not_promised(
    store: Store, header: Callable[..., Header], tmp_path: Path
) -> None:
    made = asked_more(store, header, "memory<=10MB, throughput>=900/s, price<=2$")  # the price is no longer told
    found = pack(made, store, tmp_path / "out")
    assert (found.manifest["bounds"], found.manifest["bounds_missed"]) == ("throughput>=900/s", "memory<=10MB, price<=2$")
    assert {"price_per_million", "carbon_g"}.isdisjoint(found.promise)
    assert "peak_memory_bytes" in found.promise
    assert found.manifest["study"]["told"] == {}
    assert all(check.ok for check in integrity(found))


def test_the_card_tells_and_cannot_be_broken_out_of(artifact: Artifact) -> None:
    text = (artifact.path / "README.md").read_text()
    assert "2.00× [1.90, 2.10]" in text
    assert "| Drop (points) |  | 0.75 [-0.10, 1.60] |" in text
    assert "Promised: `latency<=1.5ms`." in text
    assert "Asked for and **not** reached: `drop<=0.5`." in text
    assert "<script>" not in text
    assert 'InferenceSession("model.onnx", options)' in text
    assert "intra_op_num_threads = 1 " in text
    assert "The file takes `input` (batch, 4): an axis with a number is fixed, one with a word is free." in text


def test_the_card_loads_what_was_timed_as_it_was_timed(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (artifact.path / "README.md").read_text()
    inputs = np.eye(4, dtype=np.float32)
    monkeypatch.chdir(artifact.path)
    np.testing.assert_allclose(
        answered_by(text, inputs), get("onnxruntime").load(artifact.program, batch=1).run(inputs), rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore:This API is experimental")  # ExecuTorch's says so on import
@pytest.mark.parametrize("runtime", available())
@pytest.mark.parametrize("several", [False, True])
def test_the_cards_lines_load_and_run_whatever_the_runtime(
    runtime: str, several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, example = (paired(), positional(pairs(3)[0])) if several else (nn.Linear(4, 2).eval(), torch.randn(3, 4))
    made = get(runtime).compile(Exporter().source(net, example, topology=""))
    made.write(tmp_path)
    deployable = {"runtime": runtime, "files": list(made.files), "target": f"{runtime}:cpu?threads=1&batch=3"}
    monkeypatch.chdir(tmp_path)
    found = {"inputs": mapped(example, torch.Tensor.numpy)}
    exec(loading(deployable, tuple(named(example))), found)
    np.testing.assert_allclose(torch.as_tensor(found["outputs"]).detach(), call(net, example).detach(), atol=1e-5)


def test_a_file_of_the_users_own_is_not_lost_to_overwrite(artifact: Artifact, store: Store) -> None:
    mine = artifact.path / "mine.txt"
    mine.write_text("precious")
    with pytest.raises(InputError, match=r"an artifact and nothing else.*mine\.txt"):
        pack(evaluation(store, "small"), store, artifact.path, overwrite=True)
    assert mine.read_text() == "precious"


def change(artifact: Artifact, edit: Callable[[dict], None], *, fix: bool = False) -> None:  # type: ignore[type-arg]
    """Rewrite the manifest as an attacker would, with `fix` its digest and card too."""
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    edit(manifest)
    if fix:
        manifest["digest"] = Artifact(artifact.path, manifest).digest
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))


MUTANTS: dict[str, tuple[str, Callable[[Artifact], None]]] = {
    "truncated program": ("files", lambda a: (a.path / "model.onnx").write_bytes(SMALL[:-1])),
    "empty program": ("files", lambda a: (a.path / "model.onnx").write_bytes(b"")),
    "one flipped bit": ("files", lambda a: (a.path / "model.onnx").write_bytes(bytes([SMALL[0] ^ 1]) + SMALL[1:])),
    "swapped model file": ("files", lambda a: shutil.copy(a.path / "reference/model.onnx", a.path / "model.onnx")),
    "swapped reference": ("files", lambda a: shutil.copy(a.path / "model.onnx", a.path / "reference/model.onnx")),
    "missing program": ("files", lambda a: (a.path / "model.onnx").unlink()),
    "missing weights": ("files", lambda a: (a.path / "model.safetensors").unlink()),
    "missing reference": ("files", lambda a: shutil.rmtree(a.path / "reference")),
    "missing card": ("model card", lambda a: (a.path / "README.md").unlink()),
    "prettier card": (
        "model card",
        lambda a: (a.path / "README.md").write_text((a.path / "README.md").read_text().replace("0.75", "0.05")),
    ),
    "prettier drop": ("manifest", lambda a: change(a, lambda m: m["promise"]["drop"].update(value=0.1))),
    "prettier speed": ("manifest", lambda a: change(a, lambda m: m["promise"]["speed_up"].update(value=3.0))),
    "prettier budget": ("manifest", lambda a: change(a, lambda m: m.update(bounds="latency<=1.5ms, drop<=0.5"))),
    "another plan": ("manifest", lambda a: change(a, lambda m: m["plan"].update({"bits.fc": 8}))),
    "card left behind": ("model card", lambda a: change(a, lambda m: m["promise"]["drop"].update(value=0.1), fix=True)),
    "forgotten hash": ("manifest", lambda a: change(a, lambda m: m["files"].pop("model.onnx"), fix=True)),
    "link for a file": ("files", lambda a: link(a.path / "model.onnx", a.path / "reference/model.onnx")),
    "link for a folder": ("files", lambda a: link(a.path / "reference", a.path.parent)),
    "way out": (
        "manifest",
        lambda a: change(a, lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}}), fix=True),
    ),
}


def link(path: Path, to: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(to)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught_without_loading_anything(artifact: Artifact, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, mutate = MUTANTS[name]
    monkeypatch.setattr("equipoise.ship.verify._measured", lambda *_, **__: pytest.fail("a suspicious file was loaded"))
    mutate(artifact)
    found = verify(artifact.path)
    assert not found.ok
    assert where in [check.name for check in found.broken]
    assert json.loads((artifact.path / "verify.json").read_text())["ok"] is False


def test_words_around_the_cards_figures_are_free(artifact: Artifact) -> None:
    card = artifact.path / "README.md"
    card.write_text("# My model\n\n" + card.read_text().replace("## Limits", "## My limits"))
    assert all(check.ok for check in integrity(artifact))
    assert BEGIN in card.read_text()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 1}', '{"schema": "x", "kind": "equipoise artifact"}', "[" * 100_000]
)
def test_a_damaged_manifest_is_one_clear_error(artifact: Artifact, text: str) -> None:
    (artifact.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json must be an Equipoise manifest"):
        verify(artifact.path)


def test_a_manifest_of_wrong_types_is_told(artifact: Artifact) -> None:
    original = (artifact.path / "manifest.json").read_text()
    for field in json.loads(original):
        for value in (None, 5, "x", [1], {"a": 1}):
            (artifact.path / "manifest.json").write_text(original)
            change(artifact, lambda m, f=field, v=value: m.update({f: v}))  # type: ignore[misc]
            try:
                checks = list(integrity(Artifact.load(artifact.path)))
            except InputError:
                continue
            assert not all(check.ok for check in checks) or json.loads(original)[field] == value


def test_a_newer_manifest_is_refused(artifact: Artifact) -> None:
    change(artifact, lambda m: m.update(schema=4))
    with pytest.raises(InputError, match="newer Equipoise"):
        Artifact.load(artifact.path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder with a manifest\.json"):
        verify(tmp_path)


def test_nothing_is_written_over(store: Store, tmp_path: Path) -> None:
    small, out = evaluation(store, "small"), tmp_path / "out"
    out.mkdir()
    pack(small, store, out)  # an empty folder is free
    before = files(out)
    with pytest.raises(InputError, match="absent or empty"):
        pack(small, store, out)
    base = pack(evaluation(store, "base"), store, out, overwrite=True)
    assert base.program.files == {"model.onnx": BIG}
    assert files(out) != before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="an artifact, to be overwritten"):
        pack(small, store, mine, overwrite=True)
    with pytest.raises(InputError, match="must be a folder"):
        pack(small, store, mine / "thesis.tex")
    assert files(mine) == {"thesis.tex": b"x"}


def test_a_failed_export_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = evaluation(store, "small"), tmp_path / "out"
    pack(evaluation(store, "base"), store, out)
    before, written = files(out), list[Path]()

    def full(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise StoreError("no space left")
        path.write_bytes(data)
        written.append(path)

    monkeypatch.setattr("equipoise.ship.artifact.write_atomic", full)
    for target in (out, tmp_path / "new"):
        written.clear()
        with pytest.raises(StoreError, match="no space"):
            pack(small, store, target, overwrite=True)
    assert files(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "study"]


def test_what_cannot_be_exported(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this one failed: boom"):
        pack(evaluation(store, "small", error="Traceback\nboom"), store, tmp_path / "out")
    small = evaluation(store, "small")
    (store.path / "blobs" / program_ref(small).files["model.onnx"]).write_bytes(b"other")
    with pytest.raises(StoreError, match="changed on the disk"):
        pack(small, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_says_what_is_gained(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(store.path), "--pick", "drop<=1", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert "2.00× faster" in told.err
    assert main(["export", str(store.path), "--pick", "latency<=1.2ms", "--out", str(out), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bounds"] == "latency<=1.2ms"


@pytest.mark.parametrize(
    ("pick", "code", "message"),
    [
        ("latency<=1us", 1, "binds"),
        ("fasttest", 2, "pick must be one of"),
        ("latency<=1", 2, "units"),
    ],
)
def test_a_pick_that_cannot_be_is_told_and_nothing_is_written(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], pick: str, code: int, message: str
) -> None:
    assert main(["export", str(store.path), "--pick", pick, "--out", str(tmp_path / "out")]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_exporting_and_checking_files_needs_no_torch(artifact: Artifact) -> None:
    code = "import sys; import equipoise.ship.artifact, equipoise.ship.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- what goes with a model ------------------------------------------------------------------------------------------------


def test_the_workloads_files_ship_and_are_hashed(store: Store, header: Callable[..., Header], tmp_path: Path) -> None:
    base = evaluation(store, "base")
    kept = {name: store.blob(content) for name, content in shipped({"tokenizer.json": b"{}"}, ("no", "yes")).items()}
    asked = header(space=base.plan.choices, probe=store.blob(PROBE), baseline=base.key, files=kept, budget="drop<=2")
    store.put("study", "again", {"header": as_data(asked)}, seconds=0.0)
    made = pack(evaluation(store, "small"), store, tmp_path / "texts")
    assert made.read("tokenizer.json") == b"{}"
    assert json.loads(made.read("labels.json")) == ["no", "yes"]
    assert made.manifest["files"]["tokenizer.json"] == {"bytes": 2, "sha256": sha256(b"{}").hexdigest()}
    assert "## From text to label" in (made.path / "README.md").read_text()
    assert made.unlisted == ()


def test_names_that_an_artifact_takes_are_those_that_no_file_may_have(artifact: Artifact) -> None:
    assert {*OWN_FILES, WEIGHTS, PROBE_FILE, "model.onnx", LABELS} == set(TAKEN)
    for name in (*TAKEN, "a/b.json", "../x.json", ".hidden", "plain"):
        with pytest.raises(InputError, match="files must be named"):
            checked_files({name: b""})
