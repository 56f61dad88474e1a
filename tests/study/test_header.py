"""The header of a study: read back as it was written, and the same asking has the same name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from equipoise.records import Knob, Plan, as_data, dumps
from equipoise.study.header import SCHEMA, Header, Offered, header_from

SPACE = (
    Offered(Knob("target", ("onnxruntime:cpu?threads=1&batch=1", "torch:cpu?threads=1&batch=1"))),
    Offered(Knob("width.a", (64, 32)), ("a", "b")),
    Offered(Knob("depth.block", ("keep", "drop")), ("block.b",)),
)
HEADER = Header(
    workload="digits",
    name="digits",
    target="onnxruntime:cpu?threads=1&batch=1",
    budget="drop<=1",
    time_s=60.0,
    seed=3,
    baseline="0:untouched",
    metric={"name": "accuracy", "maximize": True},
    space=SPACE,
    left_whole={"fc": "it is read outside"},
    notes=("few samples",),
    price_per_hour=0.5,
)


def test_a_header_survives_its_record() -> None:
    found = header_from(json.loads(dumps(HEADER)))
    assert found == HEADER
    assert found.asked == HEADER.asked
    assert found.schema == SCHEMA


@pytest.mark.parametrize(
    "change",
    [
        {"budget": "drop<=2"},
        {"time_s": 61.0},
        {"seed": 4},
        {"target": "torch:cpu"},
        {"space": SPACE[1:]},
        {"grid": 200.0},
        {"left_whole": {}},
        {"damage_unit": "squared spreads"},
    ],
)
def test_another_asking_has_another_name(change) -> None:
    assert replace(HEADER, **change).asked != HEADER.asked


@pytest.mark.parametrize(
    "change",
    [{"probe": "a" * 64}, {"source_state": "b" * 64}, {"files": {"a.json": "c" * 64}}, {"machine": {"cpu": "another"}}],
)
def test_where_it_ran_and_what_it_keeps_is_no_part_of_what_was_asked(change) -> None:
    assert replace(HEADER, **change).asked == HEADER.asked


def test_what_a_plan_changes_is_told_in_the_order_of_the_space() -> None:
    assert HEADER.untouched == Plan({"target": SPACE[0].knob.menu[0], "width.a": 64, "depth.block": "keep"})
    plan = HEADER.untouched.but({"depth.block": "drop", "width.a": 32})
    assert list(HEADER.changed(plan).items()) == [("width.a", (64, 32)), ("depth.block", ("keep", "drop"))]
    assert HEADER.changed(HEADER.untouched) == {}
    assert HEADER.changed(Plan({"width.a": 32})) == {"width.a": (64, 32)}  # what a plan does not name is untouched
    assert [knob.name for knob in HEADER.acting_on("b")] == ["width.a"]
    assert HEADER.acting_on("c") == ()


def test_it_is_plain_data() -> None:
    assert json.loads(json.dumps(as_data(HEADER)))["space"][1] == {
        "knob": {"name": "width.a", "menu": [64, 32]},
        "layers": ["a", "b"],
    }


def test_a_header_of_version_3_had_no_files() -> None:
    former = {name: value for name, value in json.loads(dumps(HEADER)).items() if name != "files"} | {"schema": 3}
    assert header_from(former) == replace(HEADER, schema=3)
    assert header_from(former).files == {}
