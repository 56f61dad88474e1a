"""A study made small: what nobody would pick is freed, every figure stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from databases import Server
from test_study import BASE, BROKEN, HALF, SLOWER, TINY, TRAINED, fill

from equipoise.cli import main
from equipoise.errors import StoreError
from equipoise.records import Evaluation, ProgramRef
from equipoise.study.pruning import prune_store
from equipoise.study.record import Study
from equipoise.study.store import Store

ROWS = (BASE, HALF, TINY, TRAINED, SLOWER, BROKEN)


@pytest.fixture(params=["folder", pytest.param("database", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    if request.param == "folder":
        yield str(tmp_path / "study")
        return
    server: Server = request.getfixturevalue("server")
    with Store.open(server.address("unpruned")) as other:  # another study of the database, with files of its own
        fill(other, [stored(other, row, "other") for row in ROWS], "")
    yield server.address("pruned")
    with Store.open(server.address("unpruned"), readonly=True) as other:
        assert all(other.read_blob(e.weights) for e in Study.read(other).evaluations if e.ok)


def stored(store: Store, row: Evaluation, mark: str = "") -> Evaluation:
    """The evaluation with files of its own, and one that all share."""
    files = {"model.onnx": store.blob(f"{mark}{row.key}".encode() * 100), "shared": store.blob(b"shared")}
    program = ProgramRef("onnxruntime", "fp32", "onnxruntime:cpu?threads=1&batch=1", files)
    return replace(row, program=program, weights=store.blob(f"{mark}weights of {row.key}".encode() * 50))


def test_the_front_keeps_its_files_and_every_point_its_figures(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(place) as store:
        fill(store, [stored(store, row) for row in ROWS], "drop<=1")
        before = Study.read(store)
        dry = prune_store(store, dry=True)
    assert dry.files > 0
    assert main(["prune-store", place]) == 0
    assert f"freed {dry.files} files" in capsys.readouterr().out
    with Store.open(place, readonly=True) as store:
        after = Study.read(store)
        assert after.evaluations == before.evaluations
        for e in (after.baseline, after.best, after.knee, *after.front):
            assert e.program is not None
            assert all(store.read_blob(sha) for sha in (e.weights, *e.program.files.values()))
        beaten = next(e for e in after.evaluations if e.plan == SLOWER.plan)
        with pytest.raises(StoreError, match=r"freed by prune-store. Pick one of the front"):
            store.read_blob(beaten.weights)
        assert sum(store.files.held().values()) == dry.kept_bytes
        again = prune_store(store, dry=True)
    assert again.files == 0
