"""Keys of evaluations: each training of a plan is one of its own, in studies of today and in older ones."""

from __future__ import annotations

import traceback
from dataclasses import replace

import pytest

from equipoise.records import Evaluation, Plan, as_data, evaluation_from, measured

POINTS = measured(1.0, "points")
TRIAL = Evaluation(Plan({"width.a": 8}), "recovered", POINTS, POINTS, {}, leg=1)


def test_two_trainings_of_a_plan_have_two_keys() -> None:
    second = replace(TRIAL, leg=2)
    assert TRIAL.key == f"{TRIAL.plan.digest}:recovered:1"
    assert second.key == f"{TRIAL.plan.digest}:recovered:2"
    assert replace(TRIAL, fidelity="one-shot", leg=0).key == f"{TRIAL.plan.digest}:one-shot"
    assert evaluation_from(as_data(second)) == second


def test_a_record_of_before_legs_had_a_field_finds_it_in_its_details() -> None:
    old = as_data(replace(TRIAL, leg=0, details={"leg": 2}))
    del old["leg"]
    assert evaluation_from(old).key == f"{TRIAL.plan.digest}:recovered:2"
    bare = as_data(replace(TRIAL, leg=0))
    del bare["leg"]
    assert evaluation_from(bare).leg == 0


def test_the_reason_of_a_failure_is_the_last_line_of_its_error() -> None:
    assert replace(TRIAL, error="Traceback ...\n  at x\nValueError: no\n").reason == "ValueError: no"
    assert TRIAL.reason == ""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (ValueError("too low for\nmy taste"), "ValueError: too low for my taste"),
        (ValueError("odd:\n    indented\n\nlast"), "ValueError: odd: indented last"),
        (KeyError(), "KeyError"),
        (OSError("see the Traceback\nabove"), "OSError: see the Traceback above"),
    ],
)
def test_a_reason_of_several_lines_keeps_what_was_raised(said: Exception, reason: str) -> None:
    try:
        try:
            raise RuntimeError("before")
        except RuntimeError:
            raise said  # noqa: B904 - a chained traceback holds two
    except Exception:  # noqa: BLE001 - whatever the case raises
        text = traceback.format_exc(limit=-6)
    assert replace(TRIAL, error=text).reason == reason
