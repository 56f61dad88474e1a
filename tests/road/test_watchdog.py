"""A stuck step is named, with the line of the user's code that it is in; a quick one never is."""

from __future__ import annotations

import time

import pytest

from equipoise.road.watchdog import watched


def my_slow_metric(seconds: float) -> None:
    time.sleep(seconds)


def test_a_stuck_step_is_told_with_the_users_own_line() -> None:
    said: list[str] = []
    with watched("evaluating plan ab12", said.append, least_s=0.05):
        my_slow_metric(0.5)
    assert len(said) >= 2  # told again as the span doubles
    assert "evaluating plan ab12" in said[0]
    assert "my_slow_metric (test_watchdog.py:" in said[0]
    before = len(said)
    time.sleep(0.2)
    assert len(said) == before  # nothing is said of a step that has ended


def test_a_quick_step_and_one_within_what_was_expected_are_not_told() -> None:
    said: list[str] = []
    with watched("quick", said.append):
        pass
    with watched("long, but expected to be", said.append, least_s=0.01, expected_s=10.0):
        time.sleep(0.05)
    assert said == []


def test_an_error_inside_passes_through() -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="mine"), watched("broken", said.append, least_s=5.0):
        raise ValueError("mine")
    assert said == []
