"""The whole road of the advisor on a planted law, in moments: a formula answers every job, and the record is a list."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from record_in_memory import Memory
from test_shapes import CNN, LAW, available

from equipoise.axes import SCALE_AXES
from equipoise.budget import parse_budget
from equipoise.errors import InputError, StoreError
from equipoise.events import Event
from equipoise.records import as_data, estimated, measured
from equipoise.road.jobs import Job
from equipoise.scaling import Available, Fit, Law, Option, Run
from equipoise.scaling.decide import SLACK
from equipoise.scaling.runs import BACKWARD
from equipoise.sizing import advice, decisions
from equipoise.sizing.advice import HEADER_SCHEMA, Advice
from equipoise.sizing.costs import ScaleCost
from equipoise.sizing.decisions import Advisor, Asked
from equipoise.sizing.sizes import Sizes
from equipoise.sizing.small_runs import SMALL, planned_from
from equipoise.sizing.walk import scale
from equipoise.study.store import Store
from equipoise.training import Recipe
from equipoise.units import duration

# ---- what is planted ---------------------------------------------------------------------------------------------------------

FLOPS_PER_S, SERVED_PER_S = 1e12, 1e10
EMBEDDED = 300
"""Params of each size that the law leaves out."""
"""Training FLOPs and forward FLOPs in a second, whatever the size."""
BEST_RATE = 0.04
"""Twice the rate at which the search for one begins."""
EPOCHS = 5.0
"""R*, a third of what is believed of it before any run."""
HUNGRY = Law(0.4, 20.0, 120.0, 0.4, 0.4)
"""Data are worth more than under `LAW`, so that smaller models are best."""
ABOUT = {
    "family": "cnn", "task": "planted", "spec": "cnn planted", "target": "onnxruntime:cpu", "requests": None,
    "metric": {"name": "accuracy"},
}  # fmt: skip
CLOSE = {"plan": {"bits.a": 8}, "loss": 0.001, "drop": 0.1, "latency": 0.5, "size": 0.3}
"""A compression that loses next to nothing."""


def asked(limits: str = "train<=5min", limit_s: float = 600.0, **more: Any) -> Asked:
    given = {
        "sizes": Sizes(CNN, available), "limits": parse_budget(limits, axes=SCALE_AXES), "limit_s": limit_s, "seed": 0,
        "recipe": replace(SMALL, batch=50), "finds": True, "shape": True, "compress": True, "positions": 1, "unique": 1e9,
        "price_per_hour": None, "about": ABOUT,
    }  # fmt: skip
    return Asked(**{**given, **more})


@dataclass
class Formula:
    """Answers each job from the planted law; its seconds are what it says they are.

    Attributes:
        kernel: The best one; another costs loss, and a resolution other than the data's does too.
        pace: Times what was foretold that a run takes.
        points: What the compressor makes of the largest run.
    """

    record: Memory
    road: Advisor
    law: Law = LAW
    kernel: float = 3.0
    pace: float = 1.0
    points: tuple[dict[str, Any], ...] = (CLOSE,)
    done: list[Job] = field(default_factory=list)

    @cached_property
    def advice(self) -> Advice:
        said = ("asked", "0", json.dumps({"advice": self.road.answer}))
        return advice.read(Memory([*self.record.rows, said]))  # type: ignore[arg-type]

    @property
    def direct(self) -> list[Option]:
        """The options that are trained as they are."""
        return [o for o in self.advice.decision.options if not o.candidate.label]

    def loss(self, size: Available, samples: float, unique: float | None = None) -> float:
        shape = 0.15 * math.log(size.scale["kernel"] / self.kernel) ** 2 + 0.1 * math.log(size.scale["resolution"]) ** 2
        distinct = min(unique or self.road.asked.unique, samples)
        return float(self.law.loss(size.params, samples, distinct)) * math.exp(shape)

    def truth(self, option: Option) -> float:
        return self.loss(option.candidate.available, option.candidate.samples)

    def answer(self, job: Job) -> dict[str, Any]:
        self.done.append(job)
        json.dumps(job.args)  # a job is plain data
        found: dict[str, Any] = getattr(self, f"_{job.kind}")(job)
        return {"seconds": 0.0, **found}

    def _precision(self, _: Job) -> dict[str, Any]:
        return {"fp32": 2e-5, "bf16": 1e-5, "seconds": 2.0}

    def _rate(self, job: Job) -> dict[str, Any]:
        return {"sample_s": sample_s(available(job.args["scale"])), "seconds": 0.5}

    def _learning(self, job: Job) -> dict[str, Any]:
        run = planned_from(job.args["run"])
        off = 0.1 * math.log(job.args["recipe"]["lr"] / BEST_RATE) ** 2
        return {"loss": self.loss(run.available, run.samples) * math.exp(off), "seconds": self.pace * job.expected_s}

    def _plan(self, job: Job) -> dict[str, Any]:
        return dict(job.args)

    def _run(self, job: Job) -> dict[str, Any]:
        planned = planned_from(job.args["run"])
        size, seen, distinct = planned.available, planned.samples, planned.unique or self.road.asked.unique
        run = Run(
            params=size.params, samples=seen, flops_per_sample=size.flops_per_sample, scale=size.scale,
            loss=self.loss(size, seen, planned.unique), unique=distinct if distinct < seen else None,
        )  # fmt: skip
        seconds = self.pace * planned.flops / FLOPS_PER_S
        return {"run": as_data(run), "curve": [], "weights": job.key, "label": job.args["label"], "seconds": seconds}

    def _shapes(self, _: Job) -> dict[str, Any]:
        return {**self.road.proposal(), "seconds": 0.2}

    def _compressed(self, job: Job) -> dict[str, Any]:
        reason = "" if self.points else "it could not be exported"
        return {"reason": reason, "scale": job.args["scale"], "points": list(self.points), "seconds": job.args["seconds"]}

    def _costs(self, job: Job) -> dict[str, Any]:
        return {"rows": [{**cost_of(Available(**row["available"])), **row} for row in job.args["rows"]], "seconds": 10.0}

    def _advice(self, job: Job) -> dict[str, Any]:
        return {**job.args, "header": {**job.args["header"], "machine": {"cpu": "planted"}}}


def sample_s(size: Available) -> float:
    return BACKWARD * size.flops_per_sample / FLOPS_PER_S


def cost_of(size: Available) -> dict[str, Any]:
    latency = measured(size.flops_per_sample / SERVED_PER_S, "s")
    memory = estimated(12 * size.params, "B", note="planted")
    cost = ScaleCost(
        size.scale, int(size.params) + EMBEDDED, int(size.flops_per_sample / 2), measured(4 * size.params, "B"), latency,
        measured(sample_s(size), "s"), memory,
    )  # fmt: skip
    data: dict[str, Any] = as_data(cost)
    return data


def walked(what: Asked, record: Memory | None = None, said: list[Event] | None = None, **planted: Any) -> Formula:
    """Walk to the end of the road."""
    record = Memory() if record is None else record
    road = Advisor(what, [].append if said is None else said.append)
    formula = Formula(record, road, **planted)
    while jobs := road.next(record):
        for job in jobs:
            record.put(job, formula.answer(job))
    return formula


@pytest.fixture(scope="module", autouse=True)
def fitted_once() -> Iterator[None]:
    """The same runs are fitted once: the fit depends on them and the seed alone, and is most of a replay's work."""
    known: dict[str, Fit] = {}
    own = decisions.fit

    def fit(runs: Sequence[Run], *, seed: int) -> Fit:
        key = f"{seed} {runs}"
        known[key] = known.get(key) or own(runs, seed=seed)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "fit", fit)
        patch.setattr(advice, "fit", fit)
        yield


@pytest.fixture(scope="module")
def said() -> list[Event]:
    """What the walk of `whole` told."""
    return []


@pytest.fixture(scope="module")
def whole(said: list[Event]) -> Formula:
    """A walk with every step, whose runs are quicker than foretold, so that each round of shapes is made."""
    return walked(asked(), said=said, kernel=5.0, pace=0.5)


# ---- the answer --------------------------------------------------------------------------------------------------------------


def test_the_whole_road_ends_with_a_shape_that_the_planted_truth_likes_better(whole: Formula) -> None:
    kinds = list(dict.fromkeys(job.kind for job in whole.done))
    assert kinds == ["precision", "rate", "learning", "plan", "run", "shapes", "compressed", "costs", "advice"]
    assert whole.record.spent_s <= 600
    found = whole.advice
    chosen = found.decision.recommended
    assert chosen is not None, found.decision.reason
    assert found.recommended is not None
    assert found.recommended["kernel"] >= 5
    assert whole.truth(chosen) < 0.95 * min(whole.truth(o) for o in whole.direct if o.candidate.available.scale["kernel"] == 3)
    assert whole.truth(chosen) <= (1 + 2 * SLACK) * min(map(whole.truth, whole.direct))
    assert chosen.loss.low <= whole.truth(chosen) <= chosen.loss.high
    assert found.sentence().startswith("Train ")
    assert "kernel 7" in found.sentence()


def test_precision_and_learning_rate_are_those_that_the_jobs_told(whole: Formula) -> None:
    recipe = whole.advice.header["recipe"]
    assert (recipe["precision"], recipe["lr"]) == ("bf16", BEST_RATE)
    assert all(job.args["recipe"] == recipe for job in whole.done if job.kind in ("run", "costs"))
    given = walked(asked(finds=False, shape=False, compress=False))
    assert not {"precision", "learning"} & {job.kind for job in given.done}
    assert given.advice.header["recipe"] == as_data(replace(SMALL, batch=50))


@pytest.mark.parametrize(
    ("law", "limits", "unique"),
    [
        (LAW, "train<=5min", 1e9),
        (LAW, "train<=2min", 1e9),
        (HUNGRY, "train<=90s", 1e9),
        (replace(LAW, repetition=EPOCHS), "train<=5min", 2e5),
    ],
)
def test_the_size_is_the_one_that_the_planted_law_and_the_rules_give(law: Law, limits: str, unique: float) -> None:
    formula = walked(asked(limits, shape=False, compress=False, unique=unique), law=law)
    found = formula.advice
    for name in ("E", "A", "B", "a", "b"):
        assert getattr(found.fit.law, name) == pytest.approx(getattr(law, name), rel=0.02)
    if unique < 1e9:
        assert found.fit.law.repetition == pytest.approx(EPOCHS, rel=0.1)
    assert all(o.loss.value == pytest.approx(formula.truth(o), rel=2e-3) for o in formula.direct)
    within = [o for o in formula.direct if formula.truth(o) <= (1 + SLACK) * min(map(formula.truth, formula.direct))]
    assert len(within) < len(formula.direct)
    cheapest = min(within, key=lambda o: o.candidate.available.flops_per_sample)
    assert found.recommended == dict(cheapest.candidate.available.scale)
    seconds = duration(limits.partition("<=")[2])
    assert cheapest.candidate.samples == pytest.approx(seconds / sample_s(cheapest.candidate.available))
    if unique == 1e9:
        best = law.optimum(seconds * FLOPS_PER_S, BACKWARD * 128)  # a sample takes 128 FLOPs for each param
        assert 0.5 < cheapest.candidate.available.params / float(best.size) < 1.1


def test_a_bound_on_params_counts_embeddings_too() -> None:
    formula = walked(asked(shape=False, compress=False))
    free = formula.advice.recommended
    assert free is not None
    limits = f"train<=5min, params<={available(free).params + EMBEDDED - 1:.0f}"
    small = walked(asked(limits, shape=False, compress=False), formula.record)
    assert small.advice.recommended is not None
    assert small.advice.recommended["width"] < free["width"]


def test_a_price_is_a_limit_on_the_seconds_that_it_pays_for() -> None:
    plain = asked(shape=False, compress=False)
    paid = replace(plain, limits=parse_budget("cost<=0.05$", axes=SCALE_AXES), price_per_hour=0.6)
    one, other = walked(plain).advice, walked(paid).advice
    assert one.header["compute"] == other.header["compute"] == {"seconds": 300.0, "flops": pytest.approx(3e14)}
    assert one.recommended == other.recommended


def test_without_a_limit_each_size_is_trained_for_four_times_the_largest_run() -> None:
    found = walked(asked("", shape=False, compress=False)).advice
    assert found.header["compute"] == {"seconds": None, "flops": pytest.approx(4 * max(run.flops for run in found.fit.runs))}


def test_limits_of_serving_bind_and_out_of_reach_are_refused_from_the_same_runs() -> None:
    formula = walked(asked(shape=False, compress=False))
    free = formula.advice.recommended
    assert free is not None
    most = 4 * available(free).params - 1
    small = walked(asked(f"train<=5min, size<={most}B", shape=False, compress=False), formula.record)
    assert {job.kind for job in small.done} == {"advice"}  # nothing is trained or measured twice
    assert small.advice.recommended is not None
    assert small.advice.recommended["width"] < free["width"]
    none = walked(asked("train<=5min, size<=100B", shape=False, compress=False), formula.record)
    answer = none.advice.summary()["answer"]
    assert (answer["status"], answer["binding"], answer["recommended"]) == ("refused", "size_bytes", None)
    smallest = min(formula.direct, key=lambda o: o.candidate.available.params).candidate.available
    assert answer["nearest"]["scale"] == dict(smallest.scale)
    assert walked(asked(shape=False, compress=False), formula.record).advice.recommended == free  # and the first once more


@pytest.mark.parametrize(
    ("points", "label"), [((CLOSE,), "compressed"), (({**CLOSE, "loss": 0.2},), ""), (({**CLOSE, "loss": -1.0},), ""), ((), "")]
)
def test_a_compressed_size_is_recommended_where_it_is_cheaper_at_no_loss(points: tuple[Any, ...], label: str) -> None:
    formula = walked(asked(shape=False), points=points)
    (job,) = (job for job in formula.done if job.kind == "compressed")
    largest = max(formula.advice.fit.runs, key=lambda run: (run.params, run.samples))
    assert job.args["scale"] == dict(largest.scale)
    trained = formula.record.get("run", job.args["weights"])["run"]  # type: ignore[index]
    assert (trained["params"], job.args["loss"]) == (largest.params, largest.loss)
    chosen = formula.advice.decision.recommended
    assert chosen is not None
    assert chosen.candidate.label == label
    direct = cost_of(chosen.candidate.available)["latency_s"]["value"]
    assert chosen.candidate.costs["latency_s"] == pytest.approx(direct * (0.5 if label else 1))
    told = any("could not be exported" in note for note in formula.advice.summary()["notes"])
    assert told == (not points)


# ---- shapes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3.0, 5.0])
@pytest.mark.parametrize("pace", [0.5, 1.0, 1.2, 1.6])
def test_a_shape_is_never_promised_more_than_it_gives(kernel: float, pace: float) -> None:
    """However far the runs on shape came: of what no run tried nothing is known, and nothing is recommended."""
    formula = walked(asked(), kernel=kernel, pace=pace)
    chosen = formula.advice.decision.recommended
    assert chosen is not None
    for option in formula.direct:
        assert option.loss.value >= 0.99 * formula.truth(option)
    usual = [o for o in formula.direct if not o.candidate.penalty]
    assert formula.truth(chosen) <= (1 + SLACK) * min(map(formula.truth, usual))
    tried = [row["run"]["scale"] for row in formula.record.all("run")]
    for name, value in chosen.candidate.available.scale.items():
        if name not in CNN.growth:
            assert min(s[name] for s in tried) <= value <= max(s[name] for s in tried)


def test_when_time_runs_out_before_the_shapes_the_usual_one_is_recommended() -> None:
    said = list[Event]()
    formula = walked(asked(), said=said, kernel=5.0, pace=1.6)
    assert not {"shapes", "compressed"} & {job.kind for job in formula.done}
    assert not any(event.stage == "shape" for event in said)
    assert not any(row["label"] for row in formula.record.all("run"))
    assert "no time was left for it" in formula.advice.branch["reason"]
    chosen = formula.advice.decision.recommended
    assert chosen is not None
    assert chosen.candidate.available.scale["kernel"] == 3
    assert chosen.candidate.available == available(CNN.scale(width=chosen.candidate.available.scale["width"]))


def test_when_time_runs_out_amid_the_shapes_no_more_are_searched() -> None:
    formula = walked(asked(), kernel=5.0)
    assert [job.key for job in formula.done if job.kind == "shapes"] == ["0"]
    star = formula.record.all("shapes")[0]["scales"]
    assert 0 < sum(row["label"] == "shape" for row in formula.record.all("run")) < len(star)


def test_a_run_that_the_plan_and_the_shapes_share_is_made_and_counted_once(whole: Formula, said: list[Event]) -> None:
    begun = [event.text.partition(": ")[2] for event in said if event.stage == "train"]
    rows = whole.record.all("run")
    twice = {text for text in begun if begun.count(text) > 1}
    assert twice
    assert len(begun) - len(twice) == len(rows) == len(whole.road.made)
    assert whole.road.spent_s == pytest.approx(whole.record.spent_s)
    assert len(whole.advice.fit.runs) == len(whole.record.all("plan")[0]["runs"]) == 12  # it stays one of those that are fitted
    assert len({json.dumps(row["run"], sort_keys=True) for row in rows}) == len(rows)


# ---- time --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "finds"), [(0.1, True), (8.0, True), (2.0, False)])
def test_too_little_time_is_refused_with_a_time_that_is_enough(limit: float, finds: bool) -> None:
    record, plain = Memory(), {"shape": False, "compress": False, "finds": finds}
    with pytest.raises(InputError, match="time must be at least") as caught:
        walked(asked(limit_s=limit, **plain), record)
    assert not record.all("run")
    told = re.search(r"at least ([\d.]+ (?:s|min))", str(caught.value))
    assert told is not None
    enough = duration(told[1])
    assert limit < enough < 60
    for before in (record, Memory()):  # by what the refusal left, and from the start
        assert len(walked(asked(limit_s=enough, **plain), before).record.all("plan")[0]["runs"]) >= 12
    with pytest.raises(InputError, match="time must be at least"):  # nor is much more asked for than is needed
        walked(asked(limit_s=enough / 1.5, **plain))


# ---- a record is all that decisions depend on --------------------------------------------------------------------------------


def test_from_every_prefix_of_a_record_the_very_next_job_is_asked_for(whole: Formula) -> None:
    rows = whole.record.rows
    assert len(rows) > 30
    for end in range(len(rows)):
        part, again = Memory(rows[:end]), Advisor(asked(), [].append)
        assert again.next(part) == [whole.done[end]]
        assert again.next(part) == [whole.done[end]]  # asking twice touches nothing
        assert part.rows == rows[:end]
    done = Advisor(asked(), [].append)
    assert done.next(whole.record) == []
    assert done.answer == whole.road.answer


def test_a_walk_that_goes_on_from_any_step_comes_to_the_same_end(whole: Formula) -> None:
    rows = whole.record.rows
    kinds = [kind for kind, _, _ in rows]
    for end in (1, kinds.index("plan"), kinds.index("shapes") - 3, kinds.index("shapes") + 4, kinds.index("compressed")):
        again = walked(asked(), Memory(rows[:end]), kernel=5.0, pace=0.5)
        assert again.record.rows == rows
        assert again.done == whole.done[end:]


def test_a_search_is_told_before_it_is_asked_for_and_not_from_inside(whole: Formula) -> None:
    searches = [end for end, (kind, key, _) in enumerate(whole.record.rows) if kind == "shapes" and key != "0"]
    assert len(searches) == 2
    for end in searches:
        said = list[Event]()
        again = Advisor(asked(), said.append)
        (job,) = again.next(Memory(whole.record.rows[:end]))
        assert said[-1].text == f"round {job.key}: search the shapes"
        before = len(said)
        assert again.proposal()["scales"] == json.loads(whole.record.rows[end][2])["scales"]
        assert len(said) == before


def test_every_job_says_what_it_does_and_what_is_timed_is_done_where_times_are_compared(whole: Formula) -> None:
    assert all(job.says for job in whole.done if job.expected_s and job.kind != "learning")
    assert {job.kind for job in whole.done if job.where == "measuring host"} == {"precision", "rate", "compressed", "costs"}


# ---- the store ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "told"), [(HEADER_SCHEMA - 1, "an earlier .*name another --store"), (HEADER_SCHEMA + 1, "a newer .*upgrade")]
)
def test_advice_of_another_version_is_refused_in_one_sentence_before_anything_is_done(
    whole: Formula, tmp_path: Path, schema: int, told: str
) -> None:
    assert whole.advice.header["schema"] == HEADER_SCHEMA
    with Store.open(tmp_path / "study") as store:
        for kind, key, text in whole.record.rows:
            row = json.loads(text)
            if kind == "advice":
                row["header"]["schema"] = schema
            store.put(kind, key, row, seconds=0.0)
        store.put("asked", "0", {"advice": whole.road.answer}, seconds=0.0)
        before = len(store.all("run"))
    match = rf"^\S+ holds advice of {told}[^.]*\.$"
    with pytest.raises(StoreError, match=match):
        Advice.load(tmp_path / "study")
    with pytest.raises(StoreError, match=match):
        scale("mlp", "digits", store=tmp_path / "study")
    with Store.open(tmp_path / "study", create=False, readonly=True) as store:
        assert len(store.all("run")) == before
        assert store.get("identity", "study") is None


def test_a_store_keeps_to_the_recipe_that_its_runs_were_made_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.sizing.walk.drive", lambda *_, **__: None)

    def begin(recipe: Recipe | None, name: str) -> None:
        with pytest.raises(StoreError, match="no answer yet"):  # it got as far as the walk
            scale("mlp", "digits", store=tmp_path / name, recipe=recipe)

    for begun, other in ((None, SMALL), (SMALL, None), (SMALL, replace(SMALL, lr=0.1))):
        name = f"{begun is None}{other is None}"
        begin(begun, name)
        begin(begun, name)
        with pytest.raises(InputError, match=r"recipe: .*Use another --store"):
            scale("mlp", "digits", store=tmp_path / name, recipe=other)
