"""Axes: every word of a budget is a row, and quality is bounded in the direction of its metric."""

from __future__ import annotations

import pytest

from equipoise.axes import ALWAYS, AXES, LABELS, SCALE_AXES, TRADED
from equipoise.budget import Budget, parse_budget
from equipoise.errors import InputError
from equipoise.records import Evaluation, Plan, measured
from equipoise.units import SCALES, show

AMOUNTS = {"s": "2ms", "B": "300KB", "1": "2M", "J": "3mJ", "g": "0.5g", "1/s": "50/s", "$": "0.2$", "points": "1.5"}


@pytest.mark.parametrize("table", [AXES, SCALE_AXES])
def test_every_word_parses_in_its_own_direction_alone_and_reads_back(table) -> None:
    for word, axis in table.items():
        for sign in ("<=", ">="):
            text = f"{word}{sign}{AMOUNTS[axis.unit]}"
            if axis.smaller is not None and axis.smaller != (sign == "<="):
                with pytest.raises(InputError, match=f"budget {word} must be a bound with"):
                    parse_budget(text, axes=table)
                continue
            (bound,) = parse_budget(text, axes=table).constraints
            assert (bound.word, bound.axis, bound.unit, bound.upper) == (word, axis.key, axis.unit, sign == "<=")
            assert parse_budget(str(bound), axes=table).constraints == (bound,)
            assert show(bound.bound, axis.unit)


def test_the_table_holds_together() -> None:
    assert {axis.unit for axis in (*AXES.values(), *SCALE_AXES.values())} <= SCALES.keys()
    assert len(LABELS) == len(AXES)
    assert set(ALWAYS) <= AXES.keys()
    assert set(TRADED) <= LABELS.keys()
    for word, axis in AXES.items():
        if axis.of:
            assert not AXES[axis.of].of, f"{word} follows from what itself follows from another"
            assert axis.predicted == AXES[axis.of].predicted
    assert {word for word, axis in AXES.items() if axis.trained} == {"drop", "quality"}


@pytest.mark.parametrize(
    ("text", "met"), [("quality>=90", True), ("quality>=92", False), ("quality<=92", True), ("quality<=90", False)]
)
def test_quality_is_bounded_on_the_side_that_the_budget_names(text, met) -> None:
    found = Evaluation(Plan({}), "untouched", measured(91.0, "points"), measured(0.0, "points"), {})
    assert parse_budget(text).met_by(found) == met


def test_a_word_of_no_axis_and_a_second_bound_are_told_together() -> None:
    with pytest.raises(InputError) as told:
        parse_budget("latncy<=1ms, drop<=1, drop<=2, size<=0B")
    assert "latency" in str(told.value)
    assert "Remove the second drop" in str(told.value)
    assert "budget size must be positive" in str(told.value)
    assert parse_budget(None) == Budget() == parse_budget("")
