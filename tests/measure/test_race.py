"""The race in fresh processes: the process is the sample, and what a child says is all that counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import EquipoiseError, InputError
from equipoise.measure import race as module
from equipoise.measure.child import Children
from equipoise.measure.loads import Load
from equipoise.measure.race import FEWEST, Race, race


def works(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """Contenders of a child: counts to the numbers in its payload."""
    sizes = {name: int((folder / name).read_text()) for name in options["names"]}
    return {name: (lambda n=size: lambda: sum(range(n))) for name, size in sizes.items()}


def fails(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """A child that cannot load its program."""
    raise ValueError("this file is damaged")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "test_race"


def test_real_processes_tell_work_from_ten_times_the_work(importable: str) -> None:
    payload = {"long": b"30000", "short": b"3000"}
    found = race(f"{importable}:works", payload, {"names": ["long", "short"]}, baseline="long", seconds=2.0, precision=0.5)
    assert found.processes >= 2
    assert {len(rows) for rows in found.times.values()} == {found.processes}
    assert found.speedup("long", "short").value > 2
    assert found.latency("long").get() > found.latency("short").get()


def test_a_child_that_fails_is_told_with_its_last_words(importable: str) -> None:
    with pytest.raises(EquipoiseError, match="ValueError: this file is damaged"):
        race(f"{importable}:fails", {}, {}, baseline="a", seconds=1.0)


def test_seconds_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"measure\.race\(seconds\)"):
        race("x:y", {}, {}, baseline="a", seconds=0.0)


class Script:
    """Stands for the children: each answers with the next ratio, and takes a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ratios: list[float]) -> None:
        self.now, self.ratios, self.seeds = 0.0, iter(ratios), []
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(Children, "run", self._run)

    def _run(self, _entry: str, order: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        self.now += 1.0
        self.seeds.append(order["seed"])
        ratio = next(self.ratios)
        return {"times": {"a": [ratio * 0.001] * 4, "b": [0.001] * 4}, "wait": {"a": 1.0, "b": 1.0}}


def run(**options: Any) -> Race:
    return race("x:y", {}, {}, baseline="a", **{"seconds": 100.0, **options})


def test_alike_processes_end_it_at_the_fewest_that_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, [2.0, 2.002] * 20)
    found = run()
    assert (found.stopped, found.processes) == ("precision", FEWEST)
    assert found.speedup("a", "b").value == pytest.approx(2.001)
    assert len(set(script.seeds)) == FEWEST, "each process draws a layout of its own"


def test_processes_that_differ_are_repeated_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [1.6, 2.4] * 20)
    found = run(seconds=15.0)
    assert (found.stopped, found.processes) == ("seconds", 15)
    ratio = found.speedup("a", "b")
    assert ratio.low < 1.8
    assert ratio.high > 2.1


def test_one_disturbed_process_does_not_move_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [2.0, 2.01, 1.99, 1.5, 2.0, 2.0, 2.01, 1.99, *[2.0] * 20])
    found = run()
    assert found.speedup("a", "b").value == pytest.approx(2.0, rel=0.005)
    assert found.speedup("a", "b").half_width < 0.05


def test_two_processes_run_however_little_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [2.0] * 20)
    found = run(seconds=0.001)
    assert (found.stopped, found.processes) == ("seconds", 2)


def test_no_interval_is_narrower_than_what_two_sittings_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [2.0] * 20)
    assert run().speedup("a", "b").half_width > 2.0 * module.SITTING


def test_patience_lets_eight_processes_run_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, [1.6, 2.4] * 20)
    assert run(seconds=2.0, patience=6.0).processes == FEWEST
    Script(monkeypatch, [1.6, 2.4] * 20)
    assert run(seconds=2.0, patience=2.0).processes == 4
