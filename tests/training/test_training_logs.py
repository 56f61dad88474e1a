"""Logs hold each step once, whatever happened to the run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch.nn.functional as F
from toys import Killed, classes, kill_at, mlp, seeded

from equipoise.errors import InputError, MissingExtraError, StoreError
from equipoise.training import Recipe, Trained, fit
from equipoise.training.logs import COLUMNS, CsvLog, TensorBoardLog

DATA = classes()


def leg(log: object, path: Path | None = None, *, at: int = 0, every_s: float = 0.0, steps: int = 20) -> Trained:
    return fit(
        mlp(),
        DATA,
        loss=F.cross_entropy,
        steps=steps,
        recipe=Recipe(batch=32),
        validation=DATA,
        evaluate_steps=6,
        generator=seeded(),
        checkpoint=path,
        every_s=every_s,
        logs=[log],
        on_step=kill_at(at) if at else None,
    )  # type: ignore[list-item]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_the_run(tmp_path: Path) -> None:
    done = leg(CsvLog(tmp_path / "log.csv"))
    found = rows(tmp_path / "log.csv")
    assert tuple(found[0]) == COLUMNS
    assert [int(row["step"]) for row in found] == list(range(1, 21))
    assert [float(row["train_loss"]) for row in found] == list(done.log)
    seen = {int(row["step"]): float(row["validation_loss"]) for row in found if row["validation_loss"]}
    assert seen == {p.step: p.validation_loss for p in done.curve}
    assert {row["validation_metric"] for row in found} == {""}


def test_resumed_log_doubles_no_row(tmp_path: Path) -> None:
    log, path = tmp_path / "log.csv", tmp_path / "run"
    with pytest.raises(Killed):
        leg(CsvLog(log), path, at=9)  # the checkpoint holds 8 steps
    with pytest.raises(Killed):
        leg(CsvLog(log), path, at=13, every_s=1e9)  # more rows, no newer checkpoint
    text = log.read_text()
    assert text.splitlines()[-1].startswith("12,")
    log.write_text(text[:-20])  # a kill in the middle of a row
    whole = leg(CsvLog(log), path)
    found = rows(log)
    assert [int(row["step"]) for row in found] == list(range(1, 21))
    assert [float(row["train_loss"]) for row in found] == list(whole.log)
    leg(CsvLog(log), path)  # the finished run adds nothing
    assert rows(log) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "run"]


def test_control_a_log_that_only_appends_doubles_rows(tmp_path: Path) -> None:
    class Careless(CsvLog):
        def begin(self, step: int) -> None:
            self._file = self.path.open("a", newline="")

    log, path = tmp_path / "log.csv", tmp_path / "run"
    with pytest.raises(Killed):
        leg(Careless(log), path, at=9, every_s=1e9)
    leg(Careless(log), path)
    assert len(log.read_text().splitlines()) > 20


def test_sparse_log_keeps_the_looks(tmp_path: Path) -> None:
    leg(CsvLog(tmp_path / "log.csv", every=10))
    assert [int(row["step"]) for row in rows(tmp_path / "log.csv")] == [6, 10, 12, 18, 20]


def test_files_that_are_no_log_are_left_alone(tmp_path: Path) -> None:
    log, path = tmp_path / "log.csv", tmp_path / "run"
    leg(CsvLog(tmp_path / "other.csv"), path)
    log.write_text("a,b\n1,2\n")
    for checkpoint in (path, None):
        with pytest.raises(StoreError, match="must be a log of a run"):
            leg(CsvLog(log), checkpoint)
    assert log.read_text() == "a,b\n1,2\n"
    with pytest.raises(StoreError, match="must be writable"):
        leg(CsvLog(tmp_path / "missing" / "log.csv"))
    with pytest.raises(InputError, match="every must be at least 1"):
        CsvLog(log, every=0)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, path = tmp_path / "events", tmp_path / "run"
    with pytest.raises(Killed):
        leg(TensorBoardLog(folder), path, at=9)
    done = leg(TensorBoardLog(folder), path)
    read = EventAccumulator(str(folder))
    read.Reload()
    found = read.Scalars("loss/train")
    assert [event.step for event in found] == list(range(1, 21))
    assert [event.value for event in found] == pytest.approx(list(done.log), rel=1e-6)
    assert [event.step for event in read.Scalars("loss/validation")] == [p.step for p in done.curve]


def test_missing_tensorboard_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"equipoise\[tensorboard\]"):
        leg(TensorBoardLog(tmp_path / "events"))
