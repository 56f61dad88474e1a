"""A rung before it answers anyone: held to what was recorded of it, and timed as far as its requests leave time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ladders import PROBE, Sums, ladder

from equipoise.errors import EquipoiseError, InputError
from equipoise.serve import ladder as ladders
from equipoise.serve.dispatch import Cost
from equipoise.serve.ladder import Ladder, Rung
from equipoise.ship.promises import FP32_SLACK, slack


def recorded(off: float, bound: float) -> Rung:
    """A rung whose answers are so far off those that were recorded, relative to the largest."""
    made, (sums,) = ladder(0.0)
    answers = sums.run(PROBE)
    rung = dataclasses.replace(made.rungs[0], answers=answers + np.float32(off * np.abs(answers).max()), bound=bound)
    rung.__dict__["session"] = sums
    return rung


def test_answers_that_were_recorded_are_found_again() -> None:
    assert recorded(0.0, FP32_SLACK).check() == (2,)
    with pytest.raises(EquipoiseError, match="off those that were recorded"):
        recorded(0.01, FP32_SLACK).check()


def test_what_rounds_is_borne_elsewhere_and_not_at_home() -> None:
    assert recorded(0.1, slack("int8", home=False)).check() == (2,)
    for precision, home in (("fp32", True), ("fp32", False), ("int8", True), ("mixed", True)):
        with pytest.raises(EquipoiseError, match="off those"):
            recorded(0.1, slack(precision, home=home)).check()
    with pytest.raises(EquipoiseError, match="off those"):
        recorded(2.0, slack("int8", home=False)).check()


def test_batches_that_leave_too_little_time_are_not_timed() -> None:
    rung = recorded(0.0, 1.0)
    rung.__dict__["session"] = Slow()
    assert [*rung.cost([1, 2, 4, 8, 16], 0.99, slo_s=0.05).usual] == [1, 2, 4]  # 4 takes more than a quarter of it
    assert [*rung.cost([1, 2, 4], 0.99, slo_s=0.001).usual] == [1]
    assert [*rung.cost([1, 2, 4], 0.99).usual] == [1, 2, 4]


def test_each_run_is_done_when_it_is_said() -> None:
    done: list[float] = []

    def alone(run: Callable[[], float]) -> float:
        done.append(run())
        return 1.0

    cost = recorded(0.0, 1.0).cost([1], 0.99, alone=alone)
    assert cost.usual == {1: 1.0}
    assert len(done) >= 7


class Slow(Sums):
    """Takes five milliseconds for each row."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0)

    def run(self, inputs: Any) -> Any:
        self.seconds = 0.005 * len(inputs)
        return super().run(inputs)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ladder]:
    """Reads a ladder from a study that holds rungs which take so long."""
    (tmp_path / "study.db").touch()

    def read(*seconds: float, tell: Callable[[str], None] = lambda _: None, **more: Any) -> Ladder:
        made, _ = ladder(*seconds)
        monkeypatch.setattr(ladders, "_of_study", lambda *_: ("sums", "accuracy", [*made.rungs], {}))
        return ladders.ladder([tmp_path], threads=1, batches=[1], share=0.99, tell=tell, **{"slo_s": 60.0, **more})

    return read


def test_who_is_beaten_here_is_left_out_and_told_by_whom(source: Callable[..., Ladder]) -> None:
    told: list[str] = []
    made = source(0.002, 0.02, 0.0, tell=told.append)
    assert [*made.places] == ["rung0", "rung2"]
    assert len(told) == 1
    assert "rung1 is left out: rung0 loses no more and is as quick here" in told[0]
    assert made.left.keys() == {"rung1"}


def test_a_rung_that_is_hardly_quicker_is_left_out_and_one_that_gains_in_batches_is_not(
    source: Callable[..., Ladder], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"rung0": {1: 1.0, 4: 3.0}, "rung1": {1: 0.95, 4: 2.9}, "rung2": {1: 0.98, 4: 2.0}, "rung3": {1: 0.5, 4: 2.0}}
    monkeypatch.setattr(ladders.Rung, "cost", lambda rung, *_, **__: Cost(times[rung.name], times[rung.name]))
    told: list[str] = []
    assert [*source(0.0, 0.0, 0.0, 0.0, tell=told.append).places] == ["rung0", "rung2", "rung3"]
    assert told == ["rung1 is left out: rung0 loses no more and is as quick here, 1e+03 ms against 950 ms"]


def test_a_source_that_is_as_it_was_gives_the_same_ladder_and_times_nothing(source: Callable[..., Ladder]) -> None:
    made = source(0.002, 0.02, 0.0)
    told: list[str] = []
    assert source(0.02, 0.002, 0.0, old=made, tell=told.append) is made  # other times of the same programs
    assert not told
    assert [*source(0.002, 0.0, old=made).places] == ["rung0", "rung1"]  # one less is another front


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"least": ("quality", 100.0)}, "its quality of 90.00 is below 100"),
        ({"least": ("drop", -1.0)}, "its drop of 0.00 is above -1"),
        ({"slo_s": 1e-4}, "--slo must be above"),
    ],
)
def test_where_none_is_left_each_reason_is_told_once(source: Callable[..., Ladder], more: dict[str, Any], told: str) -> None:
    lines: list[str] = []
    with pytest.raises(InputError, match="no rung of sums can serve, each for the reason told above"):
        source(0.002, tell=lines.append, **more)
    assert len(lines) == 1
    assert told in lines[0]
