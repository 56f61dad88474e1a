"""A study as a frame and as a picture: the values of the record, nothing invented where nothing was measured."""

from __future__ import annotations

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_study import BASE, BROKEN, HALF, TRAINED, evaluation, study

from equipoise.errors import InputError, MissingExtraError
from equipoise.records import unavailable
from equipoise.study.record import Study


@pytest.fixture
def found(tmp_path: Path) -> Study:
    return study(tmp_path, BASE, HALF, TRAINED, BROKEN, budget="drop<=1")


def test_the_frame_holds_the_front_in_its_order_with_units_in_the_names(found: Study) -> None:
    pytest.importorskip("pandas")
    frame = found.frame()
    assert list(frame.index) == [e.key for e in found.front]
    assert list(frame["latency_s"]) == [0.5e-3, 1e-3, 2e-3]
    assert list(frame["drop"]) == [1.5, 0.5, 0.0]
    assert list(frame["drop_low"]) == [1.0, 0.0, -0.5]
    assert list(frame["size_bytes"]) == [200, 500, 1000]
    assert "latency_s_low" not in frame  # of these readings none has an interval
    assert frame.loc[BASE.key, "mark"] == "untouched"
    assert frame.loc[found.best.key, "mark"] == "best"


def test_what_was_not_measured_is_missing_in_the_frame_and_no_number(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    blind = evaluation(0.7, 0.2, width_conv1=24)
    blind = replace(blind, cost={**blind.cost, "energy_j": unavailable("J", "no meter")})
    frame = study(tmp_path, BASE, HALF, blind).frame([HALF, blind])
    assert list(frame.index) == [HALF.key, blind.key]
    assert all(math.isnan(value) for value in frame["energy_j"])


def test_the_picture_shows_every_point_and_names_the_pick(found: Study) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    axes = found.plot()
    (line, *_) = axes.get_lines()
    assert list(line.get_xdata()) == pytest.approx([0.5e-3, 1e-3, 2e-3])
    assert list(line.get_ydata()) == [1.5, 0.5, 0.0]
    assert {text.get_text() for text in axes.texts} >= {"best", "untouched"}
    assert len(axes.collections[0].get_offsets()) == 3
    assert "points" in axes.get_ylabel()
    axes.figure.canvas.draw()
    assert "1 ms" in {text.get_text() for text in (*axes.get_xticklabels(), *axes.get_xticklabels(minor=True))}
    assert found.plot(axes) is axes


@pytest.mark.parametrize(("package", "call"), [("pandas", "frame"), ("matplotlib", "plot")])
def test_without_the_package_the_extra_is_named(found: Study, monkeypatch: pytest.MonkeyPatch, package: str, call: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"equipoise\[(pandas|plot)\]"):
        getattr(found, call)()


def test_a_table_holds_every_evaluation_and_nothing_where_nothing_was_measured(tmp_path: Path, found: Study) -> None:
    blind = replace(HALF, plan=BROKEN.plan, cost={**HALF.cost, "energy_j": unavailable("J", "no meter")})
    path = study(tmp_path / "more", BASE, HALF, TRAINED, blind).write_table(tmp_path / "trials.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["key"] for row in rows] == [BASE.key, HALF.key, TRAINED.key, blind.key]
    assert [row["latency_s"] for row in rows] == ["0.002", "0.001", "0.0005", "0.001"]
    assert [row["energy_j"] for row in rows] == ["", "", "", ""]
    assert [row["drop"] for row in rows][:3] == ["0.0", "0.5", "1.5"]
    with pytest.raises(InputError, match=r"a .csv or .parquet file"):
        found.write_table(tmp_path / "trials.txt")
    assert not (tmp_path / "trials.txt").exists()


def test_optuna_has_a_trial_for_each_evaluation(found: Study, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/trials.db"
    for _ in range(2):  # written anew, not twice
        found.to_optuna(storage, name="mine")
    again = optuna.load_study(study_name="mine", storage=storage)
    trials = again.get_trials()
    assert [t.user_attrs["key"] for t in trials] == [e.key for e in found.evaluations]
    assert [t.values for t in trials[:3]] == [[0.0, 2e-3], [0.5, 1e-3], [1.5, 0.5e-3]]
    assert trials[3].state.name == "FAIL"
    assert trials[3].user_attrs["reason"]
    assert trials[1].params.items() <= HALF.plan.choices.items()
    assert trials[1].params
    assert {t.number for t in again.best_trials} == {0, 1, 2}
