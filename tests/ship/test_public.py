"""The Python face of what the command line does with a study: export and verify give what the verbs give."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_artifact import store as store  # a study of two evaluations, made by hand

import equipoise as eq
from equipoise.cli import main
from equipoise.errors import InputError
from equipoise.ship.artifact import Artifact
from equipoise.study.store import Store


@pytest.fixture
def folder(store: Store) -> Path:
    store.close()
    return store.path


def test_export_takes_a_study_or_its_folder_and_writes_what_the_verb_writes(folder: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("of-study", "of-folder", "of-verb")]
    made = [eq.Study.load(folder).export("knee", out=outs[0]), eq.export(str(folder), "knee", out=outs[1])]
    assert main(["export", str(folder), "--pick", "knee", "--out", str(outs[2])]) == 0
    made.append(Artifact.load(outs[2]))
    assert [a.path for a in made] == outs
    assert made[0].manifest["recorded"]["pick"] == "knee"
    assert made[0].manifest["files"] == made[1].manifest["files"] == made[2].manifest["files"]
    assert made[0].promise == made[1].promise == made[2].promise


def test_without_out_the_artifact_lies_beside_the_study_named_after_the_pick(folder: Path) -> None:
    assert eq.export(folder, "knee").path == folder.with_name("study-knee")
    bounded = eq.export(folder, "latency<=1.2ms")
    assert bounded.path == folder.with_name("study-latency-1.2ms")
    assert [str(bound) for bound in bounded.bounds] == ["latency<=1.2 ms"]


def test_a_taken_place_is_told_with_the_name_that_python_gives_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"^out must be absent or empty"):
        eq.export(folder, "knee", out=tmp_path / "mine")
    with pytest.raises(InputError, match="pick must be one of"):
        eq.export(folder, "nicest", out=tmp_path / "a")
    with pytest.raises(InputError, match="study must be a study or the path"):
        eq.export(3, out=tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="store must be a study folder"):
        eq.export(tmp_path / "nowhere", out=tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "study"]


def test_verify_takes_an_artifact_or_its_folder(folder: Path, tmp_path: Path) -> None:
    artifact = eq.export(folder, "knee", out=tmp_path / "out")
    (artifact.path / "model.onnx").write_bytes(b"another")
    found = [eq.verify(artifact, trust_nothing=True), eq.verify(str(artifact.path), trust_nothing=True)]
    assert [{c.name for c in each.broken} for each in found] == [{"files", "figures"}] * 2
