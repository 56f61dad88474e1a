"""Records: each training of a plan is one of its own, and what is written is read back."""

from __future__ import annotations

import json
import traceback
from dataclasses import replace

import pytest

from equipoise.errors import InputError
from equipoise.records import (
    Evaluation,
    Knob,
    LayerRow,
    Plan,
    ProgramRef,
    Training,
    as_data,
    dumps,
    evaluation_from,
    measured,
    program_ref,
    unavailable,
)

POINTS = measured(1.0, "points")
TRIAL = Evaluation(Plan({"width.a": 8}), "recovered", POINTS, POINTS, {}, leg=1)


def test_two_trainings_of_a_plan_have_two_keys() -> None:
    second = replace(TRIAL, leg=2)
    assert TRIAL.key == f"{TRIAL.plan.digest}:recovered:1"
    assert second.key == f"{TRIAL.plan.digest}:recovered:2"
    assert replace(TRIAL, fidelity="one-shot", leg=0).key == f"{TRIAL.plan.digest}:one-shot"
    assert evaluation_from(as_data(second)) == second


def test_every_part_of_an_evaluation_survives_its_record() -> None:
    whole = replace(
        TRIAL,
        cost={"latency_s": measured(1e-3, "s", low=0.9e-3, high=1.1e-3, n=8), "energy_j": unavailable("J", "no counter")},
        predicted={"latency_s": 1.1e-3, "damage": 0.2},
        samples={"latency_s.candidate": (1.0, 2.0)},
        damage=0.25,
        speed_up=measured(2.0, "1", low=1.9, high=2.1, n=8),
        program=ProgramRef("openvino", "mixed", "openvino:cpu?threads=1&batch=1", {"model.xml": "a"}, "b", {"fc": "it failed"}),
        weights="c",
        layers=(LayerRow("a", "Conv2d", 8, 72, 720, 8), LayerRow("fc", "Linear", 3, 24, 24, 32)),
        training=Training(2, 31.5, 400, ("a note",)),
        seconds=40.0,
    )
    for found in (whole, TRIAL, replace(TRIAL, error="ValueError: no", leg=0)):
        assert evaluation_from(json.loads(dumps(found))) == found
    assert program_ref(whole) is whole.program
    with pytest.raises(InputError, match="has no program, because it failed: ValueError: no"):
        program_ref(replace(TRIAL, error="ValueError: no"))


def test_a_knob_is_named_by_kind_and_place_and_nested_where_each_choice_takes_away_more() -> None:
    knobs = (Knob("width.a.b", (8, 4)), Knob("target", ("x", "y")), Knob("r", (4, 8)))
    assert [(k.kind, k.place, k.nested) for k in knobs] == [
        ("width", "a.b", True),
        ("target", "", False),
        ("r", "", False),
    ]
    for name, menu in (("", (1,)), ("a", ()), ("a", (1, 1))):
        with pytest.raises(InputError, match="must be"):
            Knob(name, menu)


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
