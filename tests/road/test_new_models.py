"""New models beside those that the trained one is cut down to: they are never searched, always trained, and may win."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted_study import evaluation, plans, record, times
from record_in_memory import Memory
from test_decisions import ONE, POINTS_PER_NAT, TWO, Formula, asked, evaluations, facts, road, study_of

from equipoise.budget import parse_budget
from equipoise.events import Event
from equipoise.records import Evaluation, Knob, Plan, as_data, evaluation_from, measured
from equipoise.road.decisions import Asked
from equipoise.road.explain import explain
from equipoise.road.facts import Facts, facts_from
from equipoise.road.jobs import Job
from equipoise.road.rungs import FRESH, RUNGS, beside, fresh, trainees
from equipoise.study.header import Offered
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.study.summary import layer_rows

NEW = {"net:1@8": (60e-6, 9e3, 4e5), "net:1": (90e-6, 36e3, 4e5), "net:0.5": (30e-6, 3e3, 1e5), "net:4": (900e-6, 9e5, 2e6)}
"""New model -> seconds, bytes, MACs; the last is slower and larger than the untouched one."""


def with_new(*targets: str) -> Facts:
    """The planted problem and four new models."""
    old, menu = facts(*targets), ("teacher", *NEW)
    rows = (Offered(Knob("student", menu), ("a", "b.one", "b.two", "c")), *old.offered)
    others = tuple(row.knob.name for row in old.offered if row.knob.name != "target")
    moot = (*old.moot, *(("student", choice, others) for choice in NEW))
    return replace(old, offered=rows, moot=moot, untrained=tuple(("student", choice) for choice in NEW))


class WithNew(Formula):
    """Answers for new models too: drawn they are worth nothing, and they learn quickly."""

    learns: float = 0.05

    def new(self, job: Job):
        assert job.args["fidelity"] == "untrained"
        return self.evaluation(job)

    def evaluation(self, job: Job):
        answer = super().evaluation(job)
        choice = Plan(job.args["plan"]).choices.get("student", "teacher")
        if choice == "teacher":
            return answer
        seconds, size, macs = NEW[choice]
        found = evaluation_from(answer["evaluation"])
        drop = measured(POINTS_PER_NAT * self.learns / max(job.args.get("training_s", 0.0), 1e-3) ** 0.4, "points")
        cost = {
            **found.cost,
            "latency_s": measured(seconds, "s"),
            "size_bytes": measured(size, "B"),
            "macs": measured(macs, "1"),
        }
        return {**answer, "evaluation": as_data(replace(found, cost=cost, drop=drop, damage=drop.get() / POINTS_PER_NAT))}


def walked(what: Asked, record: Memory | None = None, *, learns: float = 0.05, said: list[Event] | None = None) -> WithNew:
    record = Memory() if record is None else record
    here = road(what, said)
    formula = WithNew(record, here, with_new(*what.targets))
    formula.learns = learns
    while jobs := here.next(record):
        for job in jobs:
            record.put(job, formula.run(job))
    return formula


@pytest.fixture(scope="module")
def whole() -> WithNew:
    return walked(asked("latency<=100us, drop<=2", 240.0))


def student(e: Evaluation) -> str:
    return str(e.plan["student"])


def test_they_are_measured_once_trained_beside_the_others_and_never_searched(whole: WithNew) -> None:
    rows = evaluations(whole.record)
    assert {student(e) for e in rows if e.fidelity != "recovered"} == {"teacher"}
    assert not any(e.fidelity == "untrained" for e in rows)  # none is a result of the study before it is trained
    measured_ones = [job for job in whole.done if job.kind == "new"]
    assert sorted(Plan(job.args["plan"])["student"] for job in measured_ones) == sorted(NEW)
    first = [job for job in whole.done if job.args.get("rung") == 1]
    kinds = [Plan(job.args["plan"])["student"] for job in first]
    assert len(kinds) == RUNGS[0][0]
    assert {"teacher", "net:1@8", "net:0.5"} == set(kinds)  # not net:1, which holds as much and costs more; net:4 is too slow
    assert len({job.args["training_s"] for job in first}) == 1  # all for as long
    assert not [job for job in whole.done if job.kind == "table" and job.args["knob"] == "student"]
    assert whole.record.spent_s <= 240 + 1e-6  # a sum of floats


def test_the_better_of_both_kinds_is_picked() -> None:
    bounds = asked("latency<=61us, size<=9.1KB", 240.0)
    assert student(study_of(walked(bounds, learns=0.001).record).best) != "teacher"
    assert student(study_of(walked(bounds, learns=9.0).record).best) == "teacher"


def test_walked_again_it_decides_the_same(whole: WithNew) -> None:
    assert walked(asked("latency<=100us, drop<=2", 240.0), whole.record).done == []


def test_with_little_time_one_of_each_kind_is_trained_before_two_of_one() -> None:
    found = walked(asked("drop<=2", 45.0))
    trained = [student(e) for e in evaluations(found.record) if e.fidelity == "recovered"]
    assert "teacher" in trained
    assert set(trained) & set(NEW)


def test_where_none_can_compete_it_is_said_and_why() -> None:
    said: list[Event] = []
    walked(asked("latency<=1us, drop<=2", 240.0), said=said)
    assert [e.text for e in said if "no new model" in e.text] == [
        "WARNING: no new model is trained: of those measured none is cheaper within the bounds"
    ]


def test_each_target_has_costs_of_its_own() -> None:
    found = walked(asked("drop<=2", 400.0, targets=(ONE, TWO)))
    places = {(Plan(job.args["plan"])["target"], Plan(job.args["plan"])["student"]) for job in found.done if job.kind == "new"}
    assert places == {(target, name) for target in (ONE, TWO) for name in NEW}


def test_facts_survive_the_record_and_split_the_space() -> None:
    found = with_new(ONE)
    assert facts_from(as_data(found)) == found
    assert found.searched.knob("student").menu == ("teacher",)
    assert [plan["student"] for plan in found.fresh] == list(NEW)
    older = {key: value for key, value in as_data(facts(ONE)).items() if key != "untrained"}
    assert facts_from(older) == facts(ONE)


# ---- what is told of them ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen plans that are exact, and a new model twice as fast as the untouched one, its layers named as the model's are."""
    rows = [evaluation(plan, times()) for plan in plans(16)]
    rows = [replace(row, plan=row.plan.but({"student": "teacher"})) for row in rows]
    cost = {"latency_s": measured(rows[0].axis("latency_s").get() / 2, "s"), "size_bytes": measured(400.0, "B")}
    new = replace(
        rows[0],
        plan=rows[0].plan.but({"student": "net:1"}),
        fidelity="recovered",
        leg=1,
        drop=measured(0.7, "points", low=0.2, high=1.2),
        cost={**rows[0].cost, **cost},
    )
    return record(tmp_path_factory.mktemp("planted") / "study", [*rows, new], students=("net:1",)), rows, new


def test_a_new_model_is_one_change_and_its_gains_are_those_that_were_measured(folder) -> None:
    path, rows, new = folder
    found = explain(path, new.key)
    (change,) = found.changes
    assert (change.knob, change.where, change.points.get()) == ("student", "the whole model", 0.7)
    assert change.what == "a new net:1 stands in its place, taught by the model"
    assert change.seconds.get() == pytest.approx(rows[0].axis("latency_s").get() / 2)
    assert change.bytes.get() == rows[0].axis("size_bytes").get() - 400
    assert change.loss.value is None
    assert found.next == ()
    assert not found.predicted.known
    assert "a new net:1" in found.what


def test_the_tables_of_the_others_are_as_if_it_were_not_there(folder, tmp_path) -> None:
    path, rows, _ = folder
    alone = record(tmp_path / "study", [evaluation(plan, times()) for plan in plans(16)])
    last = plans(16)[-1]
    one, other = explain(path, rows[-1].key), explain(alone, evaluation(last, times()).key)
    assert [(c.knob, c.seconds, c.bytes) for c in one.changes] == [(c.knob, c.seconds, c.bytes) for c in other.changes]
    assert one.predicted == other.predicted
    assert "student" not in {c.knob for c in (*one.next, *one.rejected)}


def test_in_the_report_every_layer_of_the_model_is_gone(folder) -> None:
    path, rows, new = folder
    with Store.open(path, create=False, readonly=True) as store:
        header = Study.read(store).header
    assert [row["after"] for row in layer_rows(header, new, rows[0], {})] == [None] * 3
    assert {row["why"] for row in layer_rows(header, new, rows[0], {})} == {
        "a new net:1 stands in its place, taught by the model"
    }
    assert all(row["after"] for row in layer_rows(header, rows[1], rows[0], {}))


# ---- which of them -----------------------------------------------------------------------------------------------------------


def cost(name: str, ms: float, size: float, macs: float) -> Evaluation:
    readings = {"latency_s": measured(ms / 1e3, "s"), "size_bytes": measured(size, "B"), "macs": measured(macs, "1")}
    ruined = measured(80.0, "points")
    return Evaluation(Plan({"student": name}), "untrained", ruined, ruined, readings, damage=3.0)


BASE = cost("teacher", 2.0, 500, 1000)


def test_what_is_slower_and_larger_than_the_model_is_not_trained() -> None:
    worse, faster, smaller = cost("worse", 3, 600, 800), cost("faster", 1, 600, 700), cost("smaller", 3, 100, 600)
    assert {student(e) for e in fresh([worse, faster, smaller], BASE, parse_budget(None))} == {"faster", "smaller"}
    assert fresh([worse], BASE, parse_budget(None)) == []


def test_under_a_bound_the_largest_that_keeps_it_comes_first_and_without_one_the_middle() -> None:
    rows = [cost(str(n), n / 5, 50 * n, 100 * n) for n in range(1, 8)]
    assert [student(e) for e in fresh(rows, BASE, parse_budget("latency<=0.9ms"))] == ["4", "3"]
    assert student(fresh(rows, BASE, parse_budget("drop<=1"))[0]) == "4"
    assert len(fresh(rows, BASE, parse_budget(None))) == FRESH


def test_both_kinds_take_turns() -> None:
    cut, new = [cost(f"cut{n}", 1, 1, 1) for n in range(4)], [cost(f"new{n}", 1, 1, 1) for n in range(2)]
    assert [student(e) for e in beside(cut, new)] == ["cut0", "new0", "cut1", "new1"]
    assert beside(cut, []) == cut
    assert [student(e) for e in beside([], new)] == ["new0", "new1"]


def test_a_rung_without_room_for_one_of_each_kind_leaves_its_time_but_the_last_takes_what_there_is() -> None:
    last = len(RUNGS) - 1
    assert trainees(0, 4, 150.0, 4.0, 0.12)[0] == 2
    assert trainees(0, 4, 100.0, 4.0, 0.12)[0] == 0
    assert trainees(0, 4, 150.0, 4.0, 0.12, kinds=3)[0] == 0
    assert trainees(last, 2, 60.0, 4.0, 1.0, kinds=2)[0] == 2
    assert trainees(last, 2, 8.0, 4.0, 1.0, kinds=2)[0] == 1
    assert trainees(last, 2, 60.0, 4.0, 1.0)[0] == 1
