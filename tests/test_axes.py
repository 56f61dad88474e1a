"""Axes: every word of a budget is a row, and quality is bounded in the direction of its metric."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.axes import ALWAYS, AXES, LABELS, SCALE_AXES, TRADED, Axis, on_request
from equipoise.budget import Budget, parse_budget
from equipoise.errors import InputError
from equipoise.meters import meter
from equipoise.records import Evaluation, Plan, measured
from equipoise.road.features import FEATURES, PRIORS
from equipoise.units import SCALES, show

PAGE = Path(__file__).resolve().parent.parent / "docs/add-an-axis.md"
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


def faults(table: Mapping[str, Axis]) -> list[str]:
    """Every row that nothing reads, or that is predicted by nothing."""
    out, words = [], list(table)
    for word, axis in table.items():
        sources = [bool(axis.meter), bool(axis.of), word in ALWAYS]
        if sum(sources) != 1:
            out.append(f"{word} must be read by a meter, follow from another axis, or be one of ALWAYS: one of the three")
        if axis.of and (axis.of not in words[: words.index(word)] or table[axis.of].of):
            out.append(f"{word} must follow from a row above it that follows from none")
        elif axis.of and axis.predicted != table[axis.of].predicted:
            out.append(f"{word} must be predicted exactly where {axis.of} is")
        if word in ALWAYS and axis.predicted == axis.trained:
            out.append(f"{word} must be predicted unless training changes it")
        if axis.predicted and not axis.of and not (axis.key in FEATURES and axis.key in PRIORS):
            out.append(f"{word} is predicted without features and a prior")
    return out


def test_the_table_holds_together() -> None:
    assert faults(AXES) == []
    assert {axis.unit for axis in (*AXES.values(), *SCALE_AXES.values())} <= SCALES.keys()
    assert len(LABELS) == len(AXES)
    assert set(ALWAYS) <= AXES.keys()
    assert set(TRADED) <= LABELS.keys()
    assert {word for word in ALWAYS if AXES[word].trained} == {"drop", "quality"}


def test_a_row_that_is_made_by_the_page_holds() -> None:
    (line,) = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("AXES["))
    table = dict(AXES)
    exec(line, {"AXES": table, "Axis": Axis})
    assert table.keys() - AXES.keys() == {"start"}
    assert faults(table) == []


def test_what_every_evaluation_has_is_predicted_unless_training_changes_it() -> None:
    (fault,) = faults({**AXES, "drop": replace(AXES["drop"], trained=False)})
    assert fault == "drop must be predicted unless training changes it"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Axis("start_s", "s", "Cold start"), "be read by a meter"),
        (Axis("start_s", "s", "Cold start", of="latency", meter="start:Start", predicted=True), "one of the three"),
        (Axis("start_s", "s", "Cold start", of="heat"), "a row above it"),
        (Axis("start_s", "s", "Cold start", of="price"), "follows from none"),
        (Axis("start_s", "s", "Cold start", of="latency"), "exactly where latency is"),
        (Axis("start_s", "s", "Cold start", meter="start:Start", predicted=True), "without features and a prior"),
    ],
)
def test_a_row_that_nothing_reads_or_predicts_is_caught(row, said) -> None:
    (fault,) = faults({**AXES, "start": row})
    assert said in fault


def test_every_meter_is_there_and_says_why_it_cannot_be_used() -> None:
    for word, axis in AXES.items():
        if axis.meter:
            module, _, name = axis.meter.partition(":")
            assert isinstance(meter(word), getattr(importlib.import_module(module), name))
            assert isinstance(meter(word).missing(), str)


def test_what_only_a_budget_asks_for_is_told_from_what_every_evaluation_has() -> None:
    assert on_request(["price_per_million", "latency_s", "energy_j", "speed_up"]) == ("energy", "price")


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
    assert parse_budget(None) == Budget() == parse_budget("") == parse_budget(" ")


@pytest.mark.parametrize("text", [",", " , ", ",,"])
def test_commas_alone_are_no_budget(text) -> None:
    with pytest.raises(InputError, match="budget must be bounds separated by commas"):
        parse_budget(text)
    assert parse_budget("drop<=1,").text == "drop<=1"
