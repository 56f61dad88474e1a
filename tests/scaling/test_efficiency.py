"""The mission's efficiency, by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cli import main
from equipoise.errors import InputError
from equipoise.scaling import efficiency, statement, worked_case

positive = st.floats(1e-3, 1e15)


def test_the_worked_case_by_hand() -> None:
    """D/V = 1e7, R/V = 1e15: E = 1e7 + 1e15 / S."""
    cases = worked_case()
    assert [c.scale for c in cases] == [100e6, 200e6, 150e6, 125e6]
    assert [c.training for c in cases] == pytest.approx([1e15, 2e15, 1.5e15, 1.25e15])
    assert all(c.utilization == 1e15 for c in cases)
    assert [c.value for c in cases] == pytest.approx([2e7, 1.5e7, 5e7 / 3, 1.8e7])
    assert cases[0].seconds == 1e7


@given(scale=positive, data=positive, resources=positive, speed=positive, more=st.floats(1.01, 100))
def test_it_only_falls_with_scale_and_never_below_d_over_v(
    scale: float, data: float, resources: float, speed: float, more: float
) -> None:
    small = efficiency(scale, data=data, resources=resources, speed=speed)
    large = efficiency(scale * more, data=data, resources=resources, speed=speed)
    assert small.value == pytest.approx(data / speed + resources / (speed * scale))
    assert large.value <= small.value * (1 + 1e-9)
    assert large.value >= data / speed * (1 - 1e-9)


def test_units_change_its_ranking_of_machines() -> None:
    """Two machines swap places when seconds become hours: the sum has no dimension of its own."""
    fast, strong = {"resources": 1e9, "speed": 10.0}, {"resources": 1e3, "speed": 1.0}
    seconds = [efficiency(1e6, data=1e3, **m).value for m in (fast, strong)]
    hours = [efficiency(1e6, data=1e3, resources=m["resources"] * 3600, speed=m["speed"] * 3600).value for m in (fast, strong)]
    assert seconds[0] < seconds[1]
    assert hours[0] > hours[1]


def test_with_the_speed_that_hardware_allows_it_is_training_time() -> None:
    """V = R / (k S): E = k S D / R + k, which grows with S."""
    k, resources, data = 6.0, 1e15, 1e7
    values = [efficiency(s, data=data, resources=resources, speed=resources / (k * s)).value for s in (1e8, 2e8)]
    assert values == pytest.approx([k * 1e8 * data / resources + k, k * 2e8 * data / resources + k])
    assert values[1] > values[0]


def test_the_command_prints_the_cases_as_json(capsys) -> None:
    assert main(["scale", "efficiency", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in found["cases"]] == [e.value for e in worked_case()]


def test_the_statement_says_what_it_does_not_say() -> None:
    text = statement(worked_case())
    for needle in ("E = 2e+07", "(-25.0 %)", "quality is not in it", "no optimum", "units", "prefers the largest scale (200 M"):
        assert needle in text, needle
    with pytest.raises(InputError):
        statement([])
    with pytest.raises(InputError, match="efficiency speed"):
        efficiency(1e6, data=1, resources=1, speed=0.0)
