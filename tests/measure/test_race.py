"""The race in fresh processes: the process is the sample, and what a child says is all that counts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import EquipoiseError, InputError
from equipoise.measure import race as module
from equipoise.measure.child import Children
from equipoise.measure.loads import Load
from equipoise.measure.race import FEWEST, Loads, Race, race


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
    assert {len(rows) for rows in found.rounds.values()} == {found.processes}
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
        return {"rounds": {"a": [[0.002] * 4] * 4, "b": [[0.002 / ratio] * 4] * 4}, "wait": {"a": 1.0, "b": 1.0}}


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
    assert found.speedup("a", "b").half_width < 0.08


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


class Drift:
    """Races on a machine whose state wanders from look to look; the new program feels `share` of what slows the baseline."""

    def __init__(self, *, share: float, wander: float, seed: int) -> None:
        self.rng, self.share, self.wander = random.Random(seed), share, wander

    def race(self, state: float, *, processes: int = 9, wait: float = 1.0) -> Race:
        """Return a race of a baseline of 2 ms and a program of 1 ms, in states around `state` (log)."""
        rounds: dict[str, list[Loads]] = {"a": [], "b": []}
        for _ in range(processes):
            states = [state + self.rng.gauss(0, self.wander) for _ in range(4)]
            for name, seconds, felt in (("a", 2e-3, 1.0), ("b", 1e-3, self.share)):
                loads = [[seconds * math.exp(felt * s + self.rng.gauss(0, 0.004)) for s in states] for _ in range(4)]
                rounds[name].append(tuple(map(tuple, loads)))
        return Race({name: tuple(rows) for name, rows in rounds.items()}, "seconds", 20.0, {"a": wait, "b": wait})


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_elasticity_is_what_the_new_program_does_not_feel(share: float) -> None:
    found, error = Drift(share=share, wander=0.04, seed=1).race(0.0).elasticity("a", "b")
    assert found == pytest.approx(1.0 - share, abs=0.1)
    assert 0.0 < error < 0.1


def test_errors_of_single_loads_are_not_taken_for_the_state() -> None:
    """The slope of the ratio on the baseline's own time is near one half where both have noise of their own and no more."""
    assert Drift(share=1.0, wander=0.02, seed=2).race(0.0).elasticity("a", "b")[0] < 0.2


def test_a_ratio_is_carried_to_the_state_that_is_asked_for() -> None:
    """Promised in one state, checked in another: raw ratios miss the promise, those of one state meet it."""
    raw = carried = 0
    for seed in range(40):
        drift = Drift(share=0.5, wander=0.03, seed=seed)
        then, now = drift.race(0.0), drift.race(0.15)
        promise = then.speedup("a", "b")
        at = then.latency("a").get()
        raw += promise.low <= now.speedup("a", "b").value <= promise.high
        carried += promise.low <= now.speedup("a", "b", at=at).value <= promise.high
    assert raw <= 2
    assert carried >= 38


def test_where_the_state_did_not_move_its_effect_is_unknown_and_widens_the_interval() -> None:
    still = Drift(share=0.5, wander=0.0, seed=3).race(0.0)
    assert still.elasticity("a", "b")[1] > 0.2
    here, there = still.speedup("a", "b"), still.speedup("a", "b", at=2e-3 * 1.2)
    assert there.half_width > 3 * here.half_width
    far = still.speedup("a", "b", at=1.0)
    assert far.value == pytest.approx(still.speedup("a", "b", at=2e-3 * module.MOST_EXPLAINED).value, rel=0.01)


def test_a_busy_machine_may_slow_the_small_program_more() -> None:
    few = Drift(share=0.5, wander=0.0, seed=3).race(0.0, processes=3, wait=2.0)
    assert few.elasticity("a", "b")[1] > module.DOUBT_BUSY > module.DOUBT
