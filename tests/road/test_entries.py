"""What the search is offered when tables are incomplete, on tables made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from equipoise.records import Knob
from equipoise.road.entries import Loss, leant, offered, ordered
from equipoise.road.facts import TARGET, Facts
from equipoise.road.jobs import Job, Walk
from equipoise.road.table_reading import TableReading
from equipoise.search import Space, loss_table
from equipoise.study.header import Offered

SPACE = Space(
    (
        Knob(TARGET, ("onnxruntime", "openvino")),
        Knob("width.a", (64, 48, 32, 24, 16)),
        Knob("width.b", (16, 8)),
        Knob("depth.block", ("keep", "drop")),
        Knob("bits.a", (32, 8)),
        Knob("bits.b", (32, 8)),
    ),
    {("depth.block", "drop"): ("width.b", "bits.b")},
)


def test_the_most_telling_entries_come_first() -> None:
    acts = {"width.a": ("a",), "width.b": ("b", "a"), "depth.block": ("block.c",), "bits.a": ("a",), "bits.b": ("b",)}
    facts = Facts(tuple(Offered(knob, acts.get(knob.name, ())) for knob in SPACE.knobs), ())
    order = ordered(SPACE, facts, {"a": 10.0, "b": 500.0, "block.c": 90.0})
    names = [(k.name, c) for k, c in order]
    assert names == [
        ("bits.b", 8),
        ("depth.block", "drop"),
        ("width.b", 8),  # the heaviest of each kind
        ("width.a", 32),
        ("bits.a", 8),  # the other middles, by what they weigh
        ("width.a", 16),  # ends
        ("width.a", 48),
        ("width.a", 24),  # between
    ]
    assert len(set(names)) == sum(len(k.menu) - 1 for k in SPACE.knobs if k.kind != TARGET)


def test_a_failed_choice_leaves_its_menu_and_the_rest_stays() -> None:
    read = {("width.a", 32): 0.1, ("width.b", 8): 0.2, ("depth.block", "drop"): 0.3, ("bits.b", 8): 0.05}
    space, known = offered(SPACE, read, {("width.a", 16): "it crashed", ("bits.a", 8): "it crashed"})
    menus = {k.name: k.menu for k in space.knobs}
    assert menus["width.a"] == (64, 48, 32, 24)
    assert menus["bits.a"] == (32,)
    assert menus["bits.b"] == (32, 8)
    assert menus[TARGET] == ("onnxruntime", "openvino")
    table = loss_table(space, known)
    assert table.predict(space.untouched) == 0.0
    assert table.predict(space.untouched.but({"width.a": 32})) == pytest.approx(0.1)


def test_what_found_no_time_is_predicted_from_its_kind() -> None:
    space, known = offered(SPACE, {("width.a", 32): 0.1, ("bits.a", 8): 0.05}, {})
    assert known["bits.b", 8] == pytest.approx(0.05)
    assert known["width.b", 8] == pytest.approx(0.1)  # half taken away, as of a
    assert {k.name: k.menu for k in space.knobs}["depth.block"] == ("keep",)  # nothing is known of any block
    loss_table(space, known)


def test_with_nothing_read_there_is_one_plan_of_each_target() -> None:
    space, known = offered(SPACE, {}, {})
    assert space.size == 2
    loss_table(space, known)


TRUTH = {"width.a": 0.4, "width.b": 0.1, "depth.block": 0.2, "bits.a": 0.01, "bits.b": 0.01}
TODO = [(knob, choice) for knob in SPACE.knobs[1:] for choice in knob.menu[1:]]


def truth(name: str, choice: int | str) -> float:
    knob = SPACE.knob(name)
    return TRUTH[name] * (1 - int(choice) / 64 if knob.nested else 1)


def probed(until: float):
    """Drive the reading of a table whose steps take a second each; every estimate is three times too low."""
    walk, rows = Walk(1000.0, lambda event: None), {}
    reading = TableReading(walk, {(knob.name, choice): knob.kind for knob, choice in TODO}, samples=1000, trial_s=1.0)

    def answer(job: Job) -> dict[str, Any]:
        if job.kind == "table":
            name, choice = job.args["knob"], job.args["choice"]
            found = {"loss": truth(name, choice), "se": 0.02, "samples": job.args["samples"]}
        else:
            apart = job.args.get("apart", False)
            scale = {"bits.a": 4.0} if apart else {}
            found = {"estimated": [[*key, truth(*key) / 3 * scale.get(key[0], 1.0), 0.0] for key in job.args["entries"]]}
            found["apart"] = apart
        return rows.setdefault((job.kind, job.key), {**found, "seconds": 1.0})

    steps = reading.steps(until)
    try:
        asked = next(steps)
        while True:
            asked = steps.send([answer(job) for job in asked] if isinstance(asked, list) else answer(asked))
    except StopIteration as end:
        return (end.value, reading.failed), rows, walk.spent_s


def test_where_time_is_ample_only_what_cannot_be_told_apart_is_read_again() -> None:
    (losses, failed), rows, _ = probed(1000.0)
    assert losses.keys() == {(knob.name, choice) for knob, choice in TODO}
    assert not failed
    again = {key.partition("@")[0] for kind, key in rows if kind == "table" and "@" in key}
    assert "bits.a=8" in again  # as bad as bits.b
    assert "width.a=16" not in again  # far from every other
    assert [row["apart"] for (kind, _), row in rows.items() if kind == "guess"] == [True]  # nothing else is left to guess
    assert 2 < losses["bits.a", 8].mean / losses["bits.b", 8].mean < 3  # read alike; its score is four times the other's
    assert losses["width.a", 16].mean == truth("width.a", 16)


def test_what_has_a_score_leans_on_it_and_the_level_stays() -> None:
    means = {"a": 0.02, "b": 0.01, "middle": 0.014, "chance": 1e-9, "high": 5.0, "unscored": 0.3, "nothing": 0.0}
    read = {key: Loss(mean, 0.1, 64) for key, mean in means.items()}
    scores = {key: Loss(7.0, 0.0, 0) for key in (*means, "unread") if key != "unscored"}
    found = leant(read, scores)
    assert found["a"].mean / found["b"].mean == pytest.approx(2**0.5)
    assert found["middle"].mean == pytest.approx(0.014)
    assert found["chance"].mean == pytest.approx(0.014 / 2**0.5)  # as far as a reading may go from its score
    assert found["high"].mean == pytest.approx(0.014 * 2**0.5)
    assert (found["unscored"], found["nothing"]) == (read["unscored"], read["nothing"])
    assert found.keys() == read.keys()
    assert leant(read, {}) == read


def test_what_found_no_time_is_estimated_on_the_scale_of_what_was_read() -> None:
    (losses, _), rows, spent_s = probed(7.0)
    read = [key for kind, key in rows if kind == "table"]
    assert 0 < len(read) < len(TODO)
    unread = [(knob.name, choice) for knob, choice in TODO if f"{knob.name}={choice}" not in read]
    guessed = [key for key in unread if key in losses]
    assert guessed
    for key in guessed:
        assert losses[key].mean == pytest.approx(truth(*key), rel=0.2)
    assert spent_s <= 8.0


def test_a_choice_that_found_no_time_is_predicted_from_others_of_its_knob() -> None:
    menu = (32, "8-weights", 8, "4-weights")
    space = Space(tuple(Knob(f"bits.{layer}", menu) for layer in "abcd"))
    read = {
        (f"bits.{layer}", way): loss for layer in "ab" for way, loss in (("8-weights", 0.01), (8, 0.02), ("4-weights", 0.08))
    }
    known = offered(space, {**read, ("bits.c", 8): 0.1}, {("bits.c", "8-weights"): "it crashed"})
    assert known[1]["bits.c", "4-weights"] == pytest.approx(0.4)  # four times what was read of it, as elsewhere
    assert known[0].knob("bits.c").menu == (32, 8, "4-weights")
    assert known[0].knob("bits.d").menu == menu  # of which nothing was read: typical losses
    alone = offered(space, {("bits.c", 8): 0.1}, {})
    assert alone[0].knob("bits.c").menu == (32, 8)  # nothing tells how much more the others lose
