"""The time table: what was disturbed while it was timed is timed again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equipoise.ops import Op
from equipoise.road import probing
from equipoise.road.facts import Act, Layer
from equipoise.road.features import entry
from equipoise.road.probing import doubtful, layer_times
from equipoise.runtimes import Target

WHOLE = Op("linear", 64, 64, height=4)
HALF, QUARTER = replace(WHOLE, cout=32), replace(WHOLE, cout=16)
LAYER = Layer("fc", WHOLE, 64 * 64, (Act("width.fc", (64, 32, 16), ((WHOLE,), (HALF,), (QUARTER,))),))


def test_less_work_that_takes_longer_is_in_doubt_with_what_it_stands_beside() -> None:
    times = {entry(WHOLE, 32): 3.0, entry(HALF, 32): 9.0, entry(QUARTER, 32): 1.0, entry(WHOLE, 8): 2.0, entry(HALF, 8): 1.0}
    assert doubtful(times, [LAYER]) == {entry(WHOLE, 32), entry(HALF, 32)}
    assert doubtful({**times, entry(HALF, 32): 2.0}, [LAYER]) == set()
    assert doubtful({entry(HALF, 32): 9.0}, [LAYER]) == set()  # there is nothing that it is slower than
    halves = Layer("fc", WHOLE, 64 * 64, (Act("rank.fc", (100, 50), ((WHOLE,), (HALF, HALF))),))
    assert doubtful(times, [halves]) == set()  # two operators may well take longer than one


def test_a_disturbed_reading_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def read(calls, *, seconds: float) -> dict[str, float]:
        asked.append(set(calls))
        disturbed = len(asked) == 1
        return {key: 9.0 if disturbed and key == entry(HALF, 32) else 3.0 if key == entry(WHOLE, 32) else 2.0 for key in calls}

    monkeypatch.setattr(probing, "_read", read)
    times, failed = layer_times(Target.parse("onnxruntime:cpu"), [LAYER], ["width.fc"], seconds=600.0)
    assert not failed
    assert asked[1:] == [{entry(WHOLE, 32), entry(HALF, 32)}]
    assert times[entry(HALF, 32)] < times[entry(WHOLE, 32)]
