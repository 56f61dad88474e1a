"""`Study.ask` and `Study.tell`: plans to try elsewhere, and what came of them, on a study whose figures are formulas."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted_study
import pytest
from databases import Server
from planted_road import asked, walked
from record_in_memory import Memory

import equipoise as eq
from equipoise.cli.live import table
from equipoise.errors import InputError, StoreError
from equipoise.records import Plan, as_data, estimated, measured, program_ref, unavailable
from equipoise.road import asking
from equipoise.road.jobs import Job
from equipoise.ship.deploy.ladder import _chosen
from equipoise.study.record import Study, describe
from equipoise.study.store import PRUNED, Store

FAST: dict[str, Any] = {"drop": 0.1, "speed_up": 20.0, "cost": {"size_bytes": 300}}
"""Figures that beat whatever was measured."""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    rows = [planted_study.evaluation(plan, planted_study.times()) for plan in planted_study.plans(12)]
    return Study.load(planted_study.record(tmp_path / "study", rows, budget="drop<=1"))


def test_what_is_asked_for_was_not_tried_and_is_asked_for_once(study: Study) -> None:
    tried, seen = {e.plan for e in study.evaluations}, set[Plan]()
    while plans := study.ask(3):
        assert len(plans) == len(set(plans)) <= 3
        assert not set(plans) & (tried | seen)
        seen |= set(plans)
    assert len(tried | seen) == 2**5, "the whole space was handed out in the end"


def test_what_is_asked_for_follows_from_the_record_alone(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.path, tmp_path / "copy")
    first, second = study.ask(2), study.ask(2)
    assert [eq.ask(tmp_path / "copy", 2), eq.ask(str(tmp_path / "copy"), 2)] == [first, second]


def test_asking_and_telling_take_no_time_from_a_search(study: Study) -> None:
    with Store.open(study.path, readonly=True) as store:
        before = store.spent()
        study.tell(study.ask()[0], **FAST)
        assert store.spent() == before > 0


def test_what_is_asked_for_first_is_better_than_most(study: Study) -> None:
    left = [plan for plan in planted_study.plans(32) if plan not in {e.plan for e in study.evaluations}]
    loss = {plan: planted_study.evaluation(plan, planted_study.times()) for plan in left}
    pair = [(loss[p].axis("latency_s").get(), loss[p].drop.get()) for p in left]
    best = study.ask(3)
    worse = [
        sum(a >= x and b >= y for a, b in pair)
        for x, y in ((loss[p].axis("latency_s").get(), loss[p].drop.get()) for p in best)
    ]
    assert sum(worse) > 3, "some of them dominate plans that were left"


def test_what_is_told_counts_in_the_study_and_is_marked(study: Study) -> None:
    (plan,) = study.ask()
    told = study.tell(
        plan,
        drop=measured(0.1, "points", low=-0.2, high=0.4, n=400),
        speed_up=measured(20.0, "1", low=19.0, high=21.0, n=9),
        cost={"size_bytes": 300},
        loss=0.01,
    )
    after = Study.load(study.path)
    assert after.evaluations[-1] == told
    assert told.key == f"{plan.digest}:told"
    assert told in after.front
    assert after.best.key == told.key, "nothing that was measured is as fast within the budget"
    base = study.baseline
    assert told.axis("latency_s").get() == pytest.approx(base.axis("latency_s").get() / 20)
    assert told.quality.get() == pytest.approx(base.quality.get() - 0.1)
    assert (told.quality.low, told.quality.high) == pytest.approx((base.quality.get() - 0.4, base.quality.get() + 0.2))
    assert {told.quality.provenance, told.drop.provenance, *(r.provenance for r in told.cost.values())} == {"told"}
    assert all(text.startswith("told") for text in (told.drop.note, told.axis("size_bytes").note))
    assert "(told)" in str(told.drop)
    assert after.sentence(told).startswith("as told, 20.00× faster")
    assert describe(told, base).startswith("told")
    assert told.damage == 0.01


def test_nothing_that_was_told_ships(study: Study, tmp_path: Path) -> None:
    assert "told, not measured here" not in Path(eq.report(study, out=tmp_path / "before.html")).read_text()
    told = study.tell(study.ask()[0], **FAST)
    after = Study.load(study.path)
    with pytest.raises(InputError, match="made and measured elsewhere"):
        program_ref(told)
    assert after.best.key == told.key
    assert after.verdict() == "budget met, as told: drop<=1"
    assert {e.fidelity for e in after.made.evaluations} == {"untouched", "one-shot"}
    assert after.made.front == study.front
    assert all(e.fidelity != "told" for e in _chosen(after.made, "best"))
    page = eq.report(after, out=tmp_path / "page.html")
    assert "told, not measured here" in Path(page).read_text()
    rows = table("accuracy", [told], study.baseline, marked={})
    assert "told" in list(rows.columns[-2].cells)


@pytest.mark.parametrize("maximize", [True, False])
def test_quality_and_drop_follow_from_each_other_whichever_way_is_better(study: Study, maximize: bool) -> None:
    header = replace(study.header, metric={**study.header.metric, "maximize": maximize})
    turned, base = replace(study, header=header), study.baseline.quality.get()
    empty = replace(study.baseline, fidelity="told")
    given: dict[str, Any] = {"speed_up": None, "cost": {"latency_s": 1e-5, "size_bytes": 9}, "loss": None}
    worse = base - 3 if maximize else base + 3
    by_quality = asking._figured(
        empty, turned, quality=measured(worse, "points", low=worse - 1, high=worse + 2), drop=None, **given
    )
    assert by_quality.drop.get() == pytest.approx(3)
    ends = (1, 4) if maximize else (2, 5)
    assert (by_quality.drop.low, by_quality.drop.high) == pytest.approx(ends)
    by_drop = asking._figured(empty, turned, quality=None, drop=by_quality.drop, **given)
    assert by_drop.quality.get() == pytest.approx(worse)
    assert (by_drop.quality.low, by_drop.quality.high) == pytest.approx((worse - 1, worse + 2))


def test_a_told_speed_up_is_put_beside_the_last_race_and_told_seconds_are_not(study: Study) -> None:
    first, second = study.ask(2)
    study.tell(first, **FAST)
    study.tell(second, drop=0.0, cost={"size_bytes": 300, "latency_s": 1e-3})
    slower = 2 * study.baseline.axis("latency_s").get()
    with Store.open(study.path) as store:
        race = {"reference": as_data(measured(slower, "s")), "ratios": {}, "elasticity": {}}
        store.put("final", "planted", race, seconds=0)
    by_ratio, by_seconds = Study.load(study.path).evaluations[-2:]
    assert by_ratio.axis("latency_s").get() == pytest.approx(slower / 20)
    assert by_ratio.axis("latency_s").provenance == "told"
    assert by_seconds.axis("latency_s").get() == 1e-3


def test_what_was_measured_here_of_a_plan_counts_and_a_failure_is_kept(study: Study) -> None:
    first, second = study.ask(2)
    study.tell(first.choices, **FAST)
    failed = study.tell(second, error="out of memory")
    assert not failed.ok
    after = Study.load(study.path)
    assert after.failures == (failed,)
    assert not {first, second} & set(after.ask(32))
    own = planted_study.evaluation(first, planted_study.times())
    with Store.open(study.path) as store:
        store.put("evaluation", own.key, {"evaluation": as_data(own)}, seconds=1)
    usable = {e.plan: e for e in Study.load(study.path).usable}
    assert usable[first].fidelity == "one-shot"


def test_told_losses_guide_and_told_seconds_do_not(study: Study) -> None:
    first, second = study.ask(2)
    study.tell(first, drop=0.1, cost={"size_bytes": 300, "latency_s": 1e3}, loss=0.5)
    with Store.open(study.path, readonly=True) as store:
        known = asking.known(store, number=0)
    assert known.elsewhere == {first: 0.5, second: None}
    assert len(known.tried.genomes) == len(known.measured.genomes) + 2
    assert known.tried.losses[-2] == 0.5
    assert known.tried.costs[-2, 0] < 1e-3
    without = replace(known, elsewhere={first: None, second: None})
    at = known.space.encode(first)[None]
    assert known.model.losses(at)[0] > without.model.losses(at)[0]
    assert without.tried.losses[-2] == pytest.approx(without.model.losses(at)[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"drop": None}, "quality or drop must be told, one of the two"),
        ({"quality": 90.0}, "quality or drop must be told, one of the two"),
        ({"speed_up": None}, "speed_up or cost"),
        ({"cost": {"size_bytes": 1, "latency_s": 1e-5}}, "speed_up or cost"),
        ({"cost": None}, "cost must be told with size_bytes"),
        ({"cost": {"size_bytes": 1, "sise": 2}}, "cost must be one of .*got 'sise'"),
        ({"cost": {"size_bytes": 0}}, r"cost\['size_bytes'\] must be above 0"),
        ({"cost": {"size_bytes": measured(1, "s")}}, r"cost\['size_bytes'\] must be in B; got 's'"),
        ({"cost": {"size_bytes": 1, "carbon_g": 2}}, "cost must be one of"),
        ({"drop": math.nan}, "drop must be a finite number"),
        ({"drop": "little"}, "drop must be a finite number"),
        ({"drop": True}, "drop must be a finite number"),
        ({"drop": unavailable("points", "lost")}, "drop must be a finite number"),
        ({"drop": measured(1.0, "points", low=2.0, high=3.0)}, "drop must be inside its interval"),
        ({"speed_up": math.inf}, "speed_up must be a finite number"),
        ({"speed_up": measured(1.0, "1", low=-1.0, high=3.0)}, "speed_up must be above 0"),
        ({"loss": -1.0}, "loss must be a finite number"),
        ({"loss": math.inf}, "loss must be a finite number"),
        ({"error": "broke"}, "error must be told instead of figures"),
        ({"error": 5}, "error must be the reason in words; got 5"),
        ({"error": ValueError("broke")}, r"error must be the reason in words; got .*error=repr\(exception\)"),
        ({"error": "  "}, "error must be the reason in words"),
        ({"cost": [1]}, "cost must be a mapping of axes to figures"),
        ({"drop": None, "quality": 0.95}, "quality must be in points, as the untouched model's is; got 0.95"),
    ],
)
def test_figures_that_say_nothing_are_refused_and_nothing_is_recorded(study: Study, change: dict[str, Any], says: str) -> None:
    (plan,) = study.ask()
    with pytest.raises(InputError, match=says):
        study.tell(plan, **{**FAST, **change})
    assert Study.load(study.path).evaluations == study.evaluations
    assert study.tell(plan, **FAST).ok


def test_plans_that_cannot_be_told_are_refused(study: Study) -> None:
    (plan,) = study.ask()
    study.tell(plan, **FAST)
    with pytest.raises(InputError, match="plan must be told once"):
        study.tell(plan, **FAST)
    with pytest.raises(InputError, match="plan must be one that was not measured here"):
        study.tell(study.evaluations[1].plan, **FAST)
    with pytest.raises(InputError, match=r"plan width\.a must be one of \[32, 16\]; got 5"):
        study.tell(plan.but({"width.a": 5}), **FAST)
    with pytest.raises(InputError, match="plan must be a plan, or its choices; got 3"):
        study.tell(3, **FAST)  # type: ignore[arg-type]
    for count in (0, True, 1.5, 100_000):
        with pytest.raises(InputError, match="count must be 1 to 1000"):
            study.ask(count)  # type: ignore[arg-type]


def test_a_study_that_was_pruned_is_not_searched_on(study: Study) -> None:
    (plan,) = study.ask()
    with Store.open(study.path) as store:
        store.put(PRUNED, "0", {"freed": ["0" * 64]}, seconds=0.0)
    for call in (study.ask, lambda: study.tell(plan, **FAST)):
        with pytest.raises(InputError, match="store must be a study that was not pruned"):
            call()


def test_an_estimate_that_is_told_says_so(study: Study) -> None:
    told = study.tell(study.ask()[0], drop=estimated(1.0, "points", note="by a proxy"), speed_up=2, cost={"size_bytes": 9})
    assert told.drop.provenance == "told"
    assert told.drop.note == "told by the user as an estimate: by a proxy"


def test_a_study_without_tables_or_at_work_is_not_asked(tmp_path: Path) -> None:
    rows = [planted_study.evaluation(plan, planted_study.times()) for plan in planted_study.plans(2)]
    bare = planted_study.record(tmp_path / "bare", rows, timed=False)
    with pytest.raises(StoreError, match="no tables yet"):
        eq.ask(bare)
    empty = planted_study.record(tmp_path / "empty", rows, prepared=False)
    with pytest.raises(StoreError, match="must say what the model offers to change"):
        eq.ask(empty)
    with pytest.raises(InputError, match="store must be a study"):
        eq.ask(tmp_path / "nothing")
    whole = planted_study.record(tmp_path / "whole", rows)
    with Store.open(whole), pytest.raises(StoreError, match="in use"):
        eq.ask(whole)


def heard(record: Memory, plan: Plan) -> None:
    """Record of a plan that it was told."""
    row = planted_study.evaluation(planted_study.UNTOUCHED, planted_study.times())
    told = as_data(replace(row, plan=plan, fidelity="told", damage=0.02))
    record.put(Job("told", f"{plan.digest}:told"), {"evaluation": told, "seconds": 0.0})


def test_a_search_that_goes_on_leaves_out_what_was_told_and_what_it_proposed_before_stands() -> None:
    whole = walked(asked())
    proposals = [i for i, (kind, _, _) in enumerate(whole.record.rows) if kind == "proposal"]
    second = json.loads(whole.record.rows[proposals[1]][2])["plans"]
    plan = Plan(second[0])
    record = Memory(whole.record.rows[: proposals[1]])
    heard(record, plan)
    walked(asked(), record)
    after = [row["plans"] for row in record.all("proposal")]
    assert after[0] == whole.record.all("proposal")[0]["plans"], "made before it was told"
    assert all(as_data(plan) not in plans for plans in after)
    assert not any(row["evaluation"]["plan"] == as_data(plan) for row in record.all("evaluation"))
    count = len(record.rows)
    heard(record, Plan(second[1]))
    assert not walked(asked(), record).done, "all that was proposed is found again, whatever is told after"
    assert len(record.rows) == count + 1


def test_losses_that_are_told_change_what_a_search_proposes() -> None:
    whole = walked(asked())
    first = next(i for i, (kind, _, _) in enumerate(whole.record.rows) if kind == "proposal")
    plans = [row["plans"] for row in whole.record.all("proposal")]
    record = Memory(whole.record.rows[:first])
    heard(record, Plan(plans[0][0]))
    walked(asked(), record)
    assert record.all("proposal")[0]["plans"] != plans[0]
    assert np.isfinite([row["seconds"] for row in record.all("proposal")]).all()


@pytest.mark.slow
def test_a_study_in_a_database_is_asked_and_told_as_one_in_a_folder(
    study: Study, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = server.address("asked")
    planted_study.record(address, list(study.evaluations), budget="drop<=1")  # type: ignore[arg-type]
    there = Study.load(address)
    (plan,) = there.ask()
    assert [plan] == study.ask()
    assert there.tell(plan, **FAST) == study.tell(plan, **FAST)
    assert Study.load(address).best.key == f"{plan.digest}:told"
