"""A study as a frame and as a picture: the values of the record, nothing invented where nothing was measured."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_study import BASE, BROKEN, HALF, TRAINED, evaluation, study

from equipoise.errors import MissingExtraError
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
