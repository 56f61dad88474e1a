"""The whole road of a planted problem, in moments: a formula answers every job, and the record is a dictionary."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import planted_road
import pytest
from planted_road import (
    ONE,
    POINTS_PER_NAT,
    TWO,
    Formula,
    asked,
    evaluations,
    facts,
    loss_of,
    memory_of,
    road,
    study_of,
    walked,
)
from record_in_memory import Memory

from equipoise.budget import parse_budget
from equipoise.errors import EquipoiseError, InputError
from equipoise.events import Event
from equipoise.meters import Meters
from equipoise.records import (
    Evaluation,
    Knob,
)
from equipoise.road import decisions, prediction, proposals, rungs
from equipoise.road.facts import TARGET, Facts
from equipoise.road.jobs import TOGETHER
from equipoise.road.proposals import Known
from equipoise.search import converged
from equipoise.study.header import Offered


@pytest.fixture(scope="module")
def whole() -> Formula:
    """A walk with recovery, in which nothing fails."""
    return walked(asked())


# ---- the road ----------------------------------------------------------------------------------------------------------------


def test_the_whole_road_ends_with_a_front_within_its_budget_and_its_time_in_moments() -> None:
    began, said = time.process_time(), list[Event]()
    formula = walked(asked(), said=said)
    took = time.process_time() - began
    study = study_of(formula.record)
    assert took < 30  # no model is run
    assert study.met
    assert study.best.drop.get() <= 1
    assert study.best.axis("latency_s").get() < 0.5 * study.baseline.axis("latency_s").get()
    assert len(study.front) >= 8
    assert study.searched
    assert 100 < formula.record.spent_s <= 120
    assert said[-1].spent_s == pytest.approx(formula.record.spent_s, abs=15)  # the last race is told before it is run
    assert [event.text for event in said if event.stage == "notes"] == ["WARNING: few samples"]


def test_an_axis_that_is_asked_for_later_is_read_of_what_is_recorded_and_only_once() -> None:
    record = walked(asked(limit_s=60.0)).record
    before = {e.key for e in evaluations(record)}
    budget = "drop<=1, memory<=30KB"
    again = walked(asked(budget, 120.0), record)
    read = [job.args["evaluation"] for job in again.done if job.kind == "meter"]
    assert sorted(read) == sorted(before)
    assert len(evaluations(record)) > len(before)
    study = study_of(record)
    assert study.met
    assert study.best.axis("peak_memory_bytes").get() <= 30e3
    assert all(e.axis("peak_memory_bytes").get() == memory_of(e).get() for e in study.evaluations)
    assert not [job for job in walked(asked(budget, 120.0), record).done if job.kind == "meter"]


@pytest.mark.parametrize("bound", ["throughput>=10000/s", "latency<=100us"])
def test_a_bound_on_what_follows_from_another_axis_leaves_plans_to_train(bound: str) -> None:
    record = walked(asked(f"drop<=0.4, {bound}", 120.0)).record
    assert [e for e in evaluations(record) if e.fidelity == "recovered"]


def test_an_axis_that_follows_from_another_is_known_of_all_that_is_recorded() -> None:
    record = walked(asked(limit_s=60.0)).record
    walked(asked("drop<=1, throughput>=10000/s", 60.0), record)
    for found in study_of(record).evaluations:
        assert found.axis("throughput_per_s").get() == pytest.approx(1 / found.axis("latency_s").get())
    assert study_of(record).met
    cheap = asked("price<=1$", 60.0, meters=Meters(1, price_per_hour=3.6))
    walked(cheap, record)
    before = study_of(record).best.axis("price_per_million").get()
    walked(replace(cheap, meters=Meters(1, price_per_hour=7.2)), record)  # the machine has become dearer
    assert study_of(record).baseline.axis("price_per_million").get() == pytest.approx(
        2e3 * study_of(record).baseline.axis("latency_s").get()
    )
    assert before > 0


def test_only_the_techniques_asked_for_are_searched_and_what_they_showed_is_there_for_others() -> None:
    said: list[Event] = []
    record = walked(asked(limit_s=60.0, only=("bits",)), said=said).record
    plain = facts(ONE).space.untouched
    kinds = {knob.partition(".")[0] for e in evaluations(record) for knob, c in e.plan.choices.items() if c != plain[knob]}
    assert kinds == {"bits"}
    assert [e.text for e in said if e.stage == "notes"] == ["WARNING: few samples", "WARNING: searched as asked: bits alone"]
    before = {e.key for e in evaluations(record)}
    again = walked(asked(limit_s=120.0), record)
    assert before < {e.key for e in evaluations(record)}
    assert any(job.kind == "table" and job.args["knob"].startswith("width") for job in again.done)
    with pytest.raises(InputError, match="only must be something that this model offers; got 'student'"):
        walked(asked(only=("student",)))


def test_every_kind_of_step_is_taken_in_its_turn(whole: Formula) -> None:
    kinds = list(dict.fromkeys(job.kind for job in whole.done))
    assert kinds == ["prepare", "notes", "evaluation", "study", "table", "guess", "lut", "extent", "proposal", "leg", "final"]
    fidelities = [job.args["fidelity"] for job in whole.done if job.kind == "evaluation"]
    assert fidelities[0] == "untouched"
    assert fidelities.count("untouched") == 1
    rungs = [job.args["rung"] for job in whole.done if job.args.get("training_s")]
    assert rungs == sorted(rungs)
    assert {1, 2, 3} <= set(rungs)


def test_what_is_timed_is_done_where_times_are_compared_and_only_that(whole: Formula) -> None:
    assert {job.kind for job in whole.done if job.where == "measuring host"} == {"evaluation", "lut", "final"}


@pytest.mark.parametrize("budget", ["drop<=1", "drop<=1, size<=20KB"])
def test_the_last_race_is_run_by_what_is_fastest_within_the_budget_however_wide_its_interval(budget: str) -> None:
    """Two loads, which is all that a second has room for, tell nothing for certain: the race is there for it."""
    formula = walked(asked(budget, targets=(ONE, TWO)), known_to=8.0)
    (race,) = (job for job in formula.done if job.kind == "final")
    within = [e for e in evaluations(formula.record) if parse_budget(budget).met_by(e)]
    assert min(within, key=lambda e: e.axis("latency_s").get()).key in race.args["keys"]


def test_every_proposed_plan_was_predicted_and_the_predictions_are_close(whole: Formula) -> None:
    rows = [e for e in evaluations(whole.record) if e.predicted and e.fidelity == "one-shot"]
    assert len(rows) > 20
    for axis, off in (("latency_s", 0.25), ("size_bytes", 0.2)):
        errors = sorted(abs(e.predicted[axis] / e.axis(axis).get() - 1) for e in rows[len(rows) // 2 :])
        assert errors[len(errors) // 2] < off
    assert all(e.predicted["damage"] >= 0 for e in rows)


def test_where_hand_use_tells_what_a_loss_costs_no_first_plan_is_beyond_hope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_road, "loss_of", lambda plan, old=loss_of: old(plan) + 0.03 * (8 in plan.choices.values()))
    done = walked(asked("drop<=0.2")).done
    turns = [i for i, job in enumerate(done) if job.kind == "proposal"]
    first = [job.args["predicted"]["damage"] for job in done[turns[0] : turns[1]] if job.kind == "evaluation"]
    assert first
    assert max(first) <= max(rungs.MENDABLE * 0.2 / POINTS_PER_NAT, rungs.MENDABLE_LOSS) + 1e-9 < proposals.WORST_LOSS


def test_a_training_starts_from_the_weights_of_its_plan_and_none_is_made_twice(whole: Formula) -> None:
    trained = [job for job in whole.done if job.args.get("training_s")]
    assert trained
    assert all(job.args["weights"] == "w" * 64 for job in trained)
    assert len({job.key for job in trained}) == len(trained)
    assert all("damage" not in job.args["predicted"] for job in trained)  # it was predicted of the untrained model


@pytest.mark.parametrize("budget", ["", "drop<=1", "latency<=60us, drop<=3", "size<=3KB, drop<=2", "params<=1000, drop<=2"])
@pytest.mark.parametrize("recovery", [True, False])
def test_budgets_that_can_be_met_are_met_on_either_road(budget: str, recovery: bool) -> None:
    formula = walked(asked(budget, 60.0, recovery=recovery))
    study = study_of(formula.record)
    assert study.met or not budget
    assert formula.record.spent_s <= 60
    assert any(e.training for e in study.evaluations) <= recovery


def test_a_bound_out_of_reach_is_told_before_the_search() -> None:
    said: list[Event] = []
    walked(asked("latency<=1us, drop<=1", 60.0), said=said)
    told = [event.text for event in said if "below the least" in event.text]
    assert told == ["WARNING: latency<=1 µs is below the least that this space is predicted to reach"]
    first = next(i for i, e in enumerate(said) if e.evaluation is not None and e.evaluation.predicted)
    assert said.index(next(e for e in said if e.text == told[0])) < first


def test_a_price_is_a_bound_on_the_latency_that_it_follows_from() -> None:
    meters = Meters(1, price_per_hour=0.36)  # a hundredth of a cent a second: 60 us are 0.6 $ for a hundred million
    formula = walked(replace(asked("price<=0.006$, drop<=3"), meters=meters))
    rows = [e for e in evaluations(formula.record) if e.predicted and e.fidelity == "one-shot"]
    free = [e for e in evaluations(walked(asked("drop<=3")).record) if e.predicted and e.fidelity == "one-shot"]

    def within(some: list[Evaluation]) -> float:
        return sum(e.axis("latency_s").get() <= 66e-6 for e in some) / len(some)

    assert within(rows) > within(free) + 0.1  # the search is drawn to it


def test_of_several_targets_the_faster_is_found_and_each_is_tried_by_hand() -> None:
    formula = walked(asked(targets=(ONE, TWO)))
    study = study_of(formula.record)
    assert study.best.plan[TARGET] == TWO
    by_hand = [e.plan for e in study.evaluations[1:4]]
    assert [(plan[TARGET], plan["bits.a"]) for plan in by_hand] == [(ONE, 8), (TWO, 32), (TWO, 8)]
    assert [job.key for job in formula.done if job.kind == "lut"] == [ONE, TWO]


# ---- time --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [20.0, 40.0, 75.0, 300.0])
def test_the_recorded_seconds_stay_within_the_time(limit: float) -> None:
    formula = walked(asked(limit_s=limit))
    assert formula.record.spent_s <= limit + 1e-9
    assert study_of(formula.record).searched


@pytest.mark.parametrize(("budget", "told"), [("drop<=1", False), ("drop<=90", True)])
def test_recovery_without_a_candidate_is_told(budget: str, told: bool) -> None:
    said: list[Event] = []
    formula = walked(asked(budget), said=said)
    assert told == any(event.text.startswith("nothing is trained") for event in said)
    assert told != any(e.training for e in study_of(formula.record).evaluations)


@pytest.mark.parametrize("limit", [0.0, 3.0, 6.0])
def test_too_little_time_measures_the_untouched_model_and_tells_how_much_is_enough(limit: float) -> None:
    formula = walked(asked(limit_s=limit))
    assert not any(job.kind in ("table", "proposal") for job in formula.done)
    extent = formula.record.all("extent")[-1]
    assert extent["read"] == 0
    assert extent["entries"] == 14
    study = walked(asked(limit_s=extent["enough_s"]))
    assert study_of(study.record).searched  # what was advised is enough


@pytest.mark.parametrize("recovery", [True, False])
@pytest.mark.parametrize(("trial_s", "limit"), [(1.0, 0.0), (3.7, 25.0), (5.0, 20.0), (30.0, 60.0)])
def test_the_time_that_is_advised_is_enough_and_not_far_from_what_is_needed(
    trial_s: float, limit: float, recovery: bool
) -> None:
    formula = walked(asked(limit_s=limit, recovery=recovery), trial_s=trial_s)
    assert not study_of(formula.record).searched
    enough = formula.record.all("extent")[-1]["enough_s"]
    assert enough > limit
    assert study_of(walked(asked(limit_s=enough, recovery=recovery), trial_s=trial_s).record).searched
    less = walked(asked(limit_s=enough / 1.5, recovery=recovery), trial_s=trial_s)
    assert not study_of(less.record).searched


def test_recovery_that_had_no_time_is_told(whole: Formula) -> None:
    study = study_of(walked(asked(limit_s=7.0), trial_s=0.1, probe_s=0.02).record)
    assert study.searched
    assert not any(e.training for e in study.evaluations)
    assert study.verdict().endswith(" s it takes at least")
    assert "; no plan was trained: " in study.verdict()
    without = walked(asked(limit_s=7.0, recovery=False), trial_s=0.1, probe_s=0.02)
    assert "trained" not in study_of(without.record).verdict()
    assert "trained" not in study_of(whole.record).verdict()


def test_slow_tables_end_within_their_share_and_the_search_begins() -> None:
    formula = walked(asked(limit_s=120.0), probe_s=6.0)
    extent = formula.record.all("extent")[-1]
    assert 0 < extent["read"] < extent["entries"]
    assert extent["before_s"] < 0.5 * 120
    assert study_of(formula.record).searched
    assert formula.record.spent_s <= 120


# ---- what fails --------------------------------------------------------------------------------------------------------------


def test_failing_trials_are_survived_and_never_on_the_front() -> None:
    formula = walked(asked(), fails=(32, 16))  # type: ignore[arg-type]
    study = study_of(formula.record)
    assert study.failures
    assert all(e.ok for e in study.front)
    assert study.met
    assert all(e.plan["width.a"] not in (16, 32) for e in study.front)


def test_when_every_trial_fails_the_untouched_model_is_the_answer() -> None:
    formula = walked(asked(), fails=("one-shot",))
    study = study_of(formula.record)
    assert study.best.key == study.baseline.key
    assert not any(job.kind == "final" for job in formula.done)
    assert len(study.failures) == sum(e.fidelity == "one-shot" for e in study.evaluations) > 0
    assert not study.searched
    assert not study.answered
    first = f"(plan {study.failures[0].plan.digest})"
    assert study.verdict() == f"nothing was searched: all {len(study.failures)} trials failed: ValueError: planted {first}"
    assert len(study.failures) < decisions.FEWEST_TRIALS + TOGETHER  # and no time is spent on more of them
    assert formula.record.spent_s < 60


def test_the_extent_tells_how_many_plans_there_are() -> None:
    formula = walked(asked())
    told = [job.args for job in formula.done if job.kind == "extent"]
    assert told
    assert all(args["plans"] > args["entries"] for args in told)


def test_a_contender_that_was_well_does_not_blame_the_time_for_searched_plans_that_fail() -> None:
    formula = walked(asked(), fails=("searched",))
    study = study_of(formula.record)
    assert not study.searched
    total = sum(e.fidelity == "one-shot" for e in study.evaluations)
    said = f"nothing was searched: {total - 1} trials failed of {total}: ValueError: planted"
    assert study.unsearched().startswith(said)
    assert "--time" not in study.verdict()


def test_when_every_training_fails_nothing_is_trained_after_the_first_rung_and_the_search_goes_on() -> None:
    formula = walked(asked(), fails=("recovered",))
    trained = [job.args["rung"] for job in formula.done if job.args.get("training_s")]
    assert set(trained) == {1}
    last = max(i for i, job in enumerate(formula.done) if job.args.get("training_s"))
    assert formula.road is not None
    assert any(job.kind == "proposal" for job in formula.done[last:]) or converged(formula.road.volumes)
    assert study_of(formula.record).met


def test_an_untouched_model_that_fails_ends_the_road() -> None:
    with pytest.raises(EquipoiseError, match=r"the untouched model could not be measured on onnxruntime.*ValueError: planted"):
        walked(asked(), fails=("untouched",))


def test_a_choice_whose_probe_fails_is_never_tried() -> None:
    formula = walked(asked(), fails=("bits.a=8", "width.c=16"))
    tried = [e for e in evaluations(formula.record) if e.predicted]
    assert tried
    assert all(e.plan["bits.a"] == 32 and e.plan["width.c"] != 16 for e in tried)
    assert any(e.plan["bits.c"] == 8 for e in tried)


def test_with_every_probe_failing_there_is_nothing_to_search() -> None:
    every = tuple(f"{k.name}={c}" for k in facts(ONE).space.knobs for c in k.menu[1:])
    formula = walked(asked(), fails=every)
    assert not study_of(formula.record).searched
    assert formula.record.all("extent")[-1]["read"] == 14


# ---- a record is all that decisions depend on --------------------------------------------------------------------------------


def test_a_resumed_walk_asks_for_nothing(whole: Formula) -> None:
    before = list(whole.record.rows)
    again = road(asked())
    assert again.next(whole.record) == []
    assert again.next(whole.record) == []
    assert whole.road is not None
    assert again.header == whole.road.header
    assert whole.record.rows == before


def test_a_replay_fits_nothing(whole: Formula, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object) -> None:
        raise AssertionError("what is recorded was predicted again")

    monkeypatch.setattr(prediction, "fit", fit)
    monkeypatch.setattr(proposals, "fit_loss", fit)
    assert road(asked()).next(whole.record) == []


def test_from_every_prefix_of_a_record_the_very_next_job_is_asked_for() -> None:
    formula = walked(asked("drop<=2", 80.0), trial_s=1.5, probe_s=1.0)
    rows = formula.record.rows
    assert len(rows) > 30
    for end in range(len(rows)):
        job, *_ = road(asked("drop<=2", 80.0)).next(Memory(rows[:end]))
        assert (job.kind, job.key) == rows[end][:2]
        assert job == formula.done[end]


def test_asking_twice_gives_the_same_job_and_touches_nothing(whole: Formula) -> None:
    for end in (0, 1, 5, 20, len(whole.record.rows) - 1):
        part = Memory(whole.record.rows[:end])
        again = road(asked())
        first, second = again.next(part), again.next(part)
        assert first == second
        assert [(job.kind, job.key) for job in first] == [row[:2] for row in whole.record.rows[end : end + 1]]
        assert part.rows == whole.record.rows[:end]


def test_a_proposal_is_worked_out_again_as_it_was_recorded(whole: Formula) -> None:
    for end, (kind, _, text) in enumerate(whole.record.rows):
        if kind == "proposal":
            again = road(asked())
            (job,) = again.next(Memory(whole.record.rows[:end]))
            assert job.kind == "proposal"
            found, recorded = json.loads(json.dumps(again.proposal())), json.loads(text)
            assert found["plans"] == recorded["plans"]


def test_more_time_goes_on_from_what_is_recorded() -> None:
    record = Memory()
    walked(asked(limit_s=0.0), record)
    few = len(record.rows)
    first = walked(asked(limit_s=120.0), record)
    assert len(record.rows) > few
    assert "prepare" not in {job.kind for job in first.done}
    fresh = walked(asked(limit_s=120.0))
    tried = [{e.key for e in evaluations(r)} for r in (record, fresh.record)]
    assert tried[0] == tried[1]  # what the shorter asking recorded is found, and nothing of it changes what follows


def test_another_budget_is_proposed_for_anew_and_measures_no_table_twice() -> None:
    record = Memory()
    walked(asked("drop<=1", 60.0), record)
    tables = len(record.all("table"))
    other = walked(asked("latency<=60us, drop<=3", 60.0), record)
    assert len(record.all("table")) == tables  # what is measured is measured
    assert any(job.kind == "proposal" for job in other.done)
    assert [row["header"]["budget"] for row in record.all("study")] == ["drop<=1", "latency<=60us, drop<=3"]


def test_where_targets_alone_differ_each_is_measured_and_the_road_ends() -> None:
    bare = Facts((Offered(Knob(TARGET, (ONE, TWO))),), (), (), {"0": "it feeds the model's output"})
    record = Memory()
    here = road(asked("drop<=1", targets=(ONE, TWO)))
    found = Formula(record, here, bare)
    while jobs := here.next(record):
        for job in jobs:
            record.put(job, found.run(job))
    assert [str(e.plan[TARGET]) for e in evaluations(found.record)] == [ONE, TWO]
    assert {job.kind for job in found.done} == {"prepare", "notes", "study", "evaluation", "final"}
    assert study_of(found.record).best.plan[TARGET] == TWO


def test_an_unreachable_bound_is_named_even_where_another_has_the_same_number() -> None:
    budget = parse_budget("size<=1KB, params<=1000")
    known = SimpleNamespace(bounds={"size_bytes": 1000.0, "params": 1000.0}, budget=budget, meters=Meters(1))
    reach = {"latency_s": [1e-3, 2e-3, 3e-3], "size_bytes": [500.0, 2000.0, 3000.0], "params": [2000.0, 3000.0, 4000.0]}
    (told,) = [text for text in Known.reached(known, reach) if "below the least" in text]  # type: ignore[arg-type]
    assert "params" in told


# ---- several jobs at once ----------------------------------------------------------------------------------------------------


def test_what_may_be_done_together_is_named_together_and_the_end_is_the_same_in_any_order(whole: Formula) -> None:
    """The jobs of a group are done backwards, as several workers might: nothing is decided otherwise."""
    record = Memory()
    here = road(asked())
    formula, groups = Formula(record, here, facts(ONE)), list[list[str]]()
    while jobs := here.next(record):
        groups.append([job.kind for job in jobs])
        for job in reversed(jobs):
            record.put(job, formula.run(job))
    assert {(job.kind, job.key) for job in formula.done} == {(job.kind, job.key) for job in whole.done}
    assert {e.key: e for e in evaluations(record)} == {e.key: e for e in evaluations(whole.record)}
    together = {kind for group in groups for kind in group if len(group) > 1}
    assert {"table", "evaluation", "leg"} <= together
    assert max(map(len, groups)) == TOGETHER
    assert all(len(set(group)) == 1 for group in groups)


def test_a_group_of_which_some_are_recorded_is_gone_on_with(whole: Formula) -> None:
    """Killed in the midst of a group: the rest of it is asked for, and no other job."""
    asked_for: list[tuple[str, str]] = []
    for cut in (len(whole.done) // 3, len(whole.done) // 2, 2 * len(whole.done) // 3):
        record = Memory()
        for job in whole.done[:cut]:
            data = whole.record.get(job.kind, job.key)
            assert data is not None
            record.put(job, data)
        here = road(asked())
        formula = Formula(record, here, facts(ONE))
        while jobs := here.next(record):
            for job in jobs:
                asked_for.append((job.kind, job.key))
                record.put(job, formula.run(job))
        assert [(job.kind, job.key) for job in [*whole.done[:cut], *formula.done]] == [(j.kind, j.key) for j in whole.done]


def test_each_evaluation_is_told_when_it_is_recorded_not_when_its_group_is(whole: Formula) -> None:
    record, said = Memory(), list[Event]()
    here = road(asked(), said)
    formula = Formula(record, here, facts(ONE))
    while jobs := here.next(record):
        for job in jobs:
            data = formula.run(job)
            record.put(job, data)
            here.heard(job, data)
            if job.kind == "evaluation":
                assert said[-1].evaluation is not None
                assert said[-1].evaluation.key == job.key
    told = [event.evaluation.key for event in said if event.evaluation is not None]
    assert len(told) == len(set(told)) == len(evaluations(record))
    assert [event.spent_s for event in said] == sorted(event.spent_s for event in said)
