"""The road walked in this process on a small net: what is asked last counts, time is kept, and nothing that fails ends it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise.errors import EquipoiseError, InputError
from equipoise.events import Event
from equipoise.measure import energy
from equipoise.records import Evaluation, as_data
from equipoise.road import decisions, here, probing, proposals, walk
from equipoise.road.answers import Died
from equipoise.road.bench import Workbench
from equipoise.road.prober import Prober
from equipoise.road.walk import optimize
from equipoise.runtimes import get
from equipoise.schemes import menu
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.study.summary import summarize
from equipoise.workloads import Workload

pytestmark = pytest.mark.slow  # walks whole roads on real programs; the decisions alone are in test_decisions.py

AMPLE_S = 200.0
"""Enough for a search of a small net on the busiest machine; hardly any of it is used, since the search converges at once."""


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Let a round try one or two plans and time them for a moment, without a last race: a search converges in seconds."""

    def race(_store: Store, baseline: Evaluation, _rivals: object, **_: object) -> dict[str, object]:
        return {"ratios": {}, "reference": as_data(baseline.axis("latency_s"))}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "FIRST", 2)
        patch.setattr(proposals, "ROUND", 1)
        patch.setattr(here, "race_stored", race)
        patch.setattr(decisions.Road, "_latency_s", lambda *_: 0.2)
        patch.setattr(probing, "layer_times", lambda *_, **__: ({}, {}))  # predicted from MACs, as where no time is left
        yield


def make(metric="accuracy", **changes) -> Workload:
    """A net of three layers that was trained for a moment on a problem that it can learn."""
    torch.manual_seed(0)
    x = torch.randn(600, 12)
    y = (x[:, :3].sum(1) > 0).long() + (x[:, 3] > 0.5).long()
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[:400]), y[:400]).backward()
        adam.step()
    given = {"train": (x[:300], y[:300]), "validation": (x[300:400], y[300:400]), "test": (x[400:], y[400:]), **changes}
    return Workload(model=net, metric=metric, name="small", **given)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """A study that was asked for one budget, then for another, then for the first again, in no time."""
    store = tmp_path_factory.mktemp("asked") / "study"
    for budget in ("drop<=50", "size<=1KB", "drop<=50"):
        optimize(make(), budget=budget, time=0, store=store)
    return store


def test_what_was_asked_last_is_answered(asked) -> None:
    assert Study.load(asked).budget.text == "drop<=50"
    with Store.open(asked, create=False, readonly=True) as store:
        assert [store.get("study", row["header"])["header"]["budget"] for row in store.all("asking")] == [
            "drop<=50",
            "size<=1KB",
            "drop<=50",
        ]


def test_asking_the_same_again_measures_nothing(asked) -> None:
    with Store.open(asked, create=False, readonly=True) as store:
        before, asks = store.spent(), len(store.all("asking"))
    first = Study.load(asked)
    again = optimize(make(), budget="drop<=50", time=0, store=asked)
    with Store.open(asked, create=False, readonly=True) as store:
        assert (store.spent(), len(store.all("asking"))) == (before, asks)
    assert (again.best.key, again.verdict()) == (first.best.key, first.verdict())


def test_more_time_goes_on_and_every_training_is_an_evaluation_of_its_own(tmp_path) -> None:
    store, seen = tmp_path / "study", []
    for seconds in (0, 15, 25):
        study = optimize(make(), budget="drop<=1", time=seconds, store=store)
        seen.append({e.key for e in study.evaluations})
        assert len(seen[-1]) == len(study.evaluations)
        assert study.header.time_s == seconds
    assert seen[0] < seen[2]
    assert seen[1] <= seen[2]
    assert all((e.leg > 0) == (e.fidelity == "recovered") for e in study.evaluations)


def test_the_time_is_kept_and_all_of_it_is_counted(tmp_path) -> None:
    limit = 20.0
    began = time.perf_counter()
    study = optimize(make(), budget="drop<=1", time=limit, store=tmp_path / "study")
    took = time.perf_counter() - began
    with Store.open(tmp_path / "study", create=False, readonly=True) as store:
        kinds = ("prepare", "evaluation", "study", "table", "guess", "lut", "proposal", "final")
        counted = sum(row["seconds"] for kind in kinds for row in store.all(kind))
    assert took <= 1.3 * max(limit, study.extent["before_s"])  # what was begun is ended, and the machine may be busy
    assert counted == pytest.approx(took, abs=0.15 * took)


def test_too_little_time_ends_at_once_and_tells_how_much_is_enough(tmp_path) -> None:
    study = optimize(make(), budget="drop<=1", time=0.5, store=tmp_path / "study")
    assert not study.searched
    assert "nothing was searched" in study.verdict()
    assert "give --time " in study.verdict()
    if study.best.key == study.baseline.key:
        assert not study.answered
        assert "budget met" not in study.verdict()
    with Store.open(tmp_path / "study", create=False, readonly=True) as store:
        assert not store.all("table")
        assert any("nothing was searched" in note for note in summarize(store)["notes"])


def test_a_probe_that_fails_drops_its_choice_and_is_told(tmp_path, monkeypatch) -> None:
    probe = Prober.loss

    def fragile(self, change, samples):
        if change.layers == {"2"} and not change.mended:  # bits.2
            raise AttributeError("'FakeQuantized' object has no attribute 'weight'")
        if change.layers == {"0"} and not change.mended:
            raise SystemExit(3)
        return probe(self, change, samples)

    monkeypatch.setattr(Prober, "loss", fragile)
    study = optimize(make(), budget="drop<=50", time=AMPLE_S, store=tmp_path / "study", recovery=False)
    ways = [way for way in menu("linear")[1:] if way in get("onnxruntime").precisions]
    assert set(study.unread) == {f"bits.{layer}={way}" for layer in (0, 2) for way in ways}
    assert "no attribute 'weight'" in study.unread["bits.2=8"]
    assert "8 choices could not be probed" in study.failed()
    tried = [e for e in study.evaluations if e.predicted]
    assert tried  # the search went on with what is left
    assert all(e.plan["bits.2"] == 32 and e.plan["bits.0"] == 32 for e in tried)
    with Store.open(tmp_path / "study", create=False, readonly=True) as store:
        assert any(note.startswith("bits.2=8 was left out") for note in summarize(store)["notes"])


def test_when_every_probe_fails_there_is_one_plan_and_a_sentence(tmp_path, monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("no probe works")

    monkeypatch.setattr(Prober, "loss", broken)
    study = optimize(make(), budget="drop<=50", time=AMPLE_S, store=tmp_path / "study", recovery=False)
    assert not study.searched
    assert "no probe works" in study.failed()


@pytest.mark.parametrize("raised", [SystemExit(2), ValueError("mine"), MemoryError()])
def test_whatever_the_users_code_raises_is_a_failed_trial(tmp_path, monkeypatch, raised) -> None:
    score = Workbench.score

    def fails(self, plan, draft, **rest):
        if rest["fidelity"] != "untouched":
            raise raised
        return score(self, plan, draft, **rest)

    monkeypatch.setattr(Workbench, "score", fails)
    study = optimize(make(), budget="drop<=50", time=AMPLE_S, store=tmp_path / "study", recovery=False)
    assert study.failures
    assert study.best.key == study.baseline.key
    assert study.failed().startswith(f"all {len(study.failures)} trials failed: {type(raised).__name__}")


def test_a_trial_whose_process_died_tells_its_plan_and_no_class(tmp_path, monkeypatch) -> None:
    score = Workbench.score

    def dies(self, plan, draft, **rest):
        if rest["fidelity"] != "untouched":
            raise Died("its process was killed by SIGKILL")
        return score(self, plan, draft, **rest)

    monkeypatch.setattr(Workbench, "score", dies)
    study = optimize(make(), budget="drop<=50", time=AMPLE_S, store=tmp_path / "study", recovery=False)
    plan = study.failures[0].plan.digest
    assert study.failed() == f"all {len(study.failures)} trials failed: its process was killed by SIGKILL (plan {plan})"
    assert study.verdict() == f"nothing was searched: {study.failed()}"


def test_an_interrupt_is_no_failed_trial(tmp_path, monkeypatch) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Workbench, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        optimize(make(), time=AMPLE_S, store=tmp_path / "study")


def test_a_baseline_that_fails_is_one_sentence_and_is_tried_again(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "score", lambda *_, **__: 1 / 0)
        with pytest.raises(EquipoiseError, match=r"untouched model could not be measured.*ZeroDivisionError"):
            optimize(make(), time=1, store=tmp_path / "study")
    assert optimize(make(), time=1, store=tmp_path / "study").baseline.ok


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ("energy<=1mJ", "no counter here"),
        ("carbon<=1g, drop<=1", "no counter here"),
        ("price<=1$", "--price-per-hour"),
        ("quality<=90%, drop<=1", "Turn the relation round"),
    ],
)
def test_a_bound_on_what_cannot_be_measured_here_is_refused_before_any_work(tmp_path, monkeypatch, budget, why) -> None:
    monkeypatch.setattr(energy, "rapl", lambda: energy.Access(None, "no counter here"))
    with pytest.raises(InputError, match=why):
        optimize(make(), budget=budget, time=1, store=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_what_a_budget_names_is_measured_and_what_follows_follows(tmp_path) -> None:
    budget = "memory<=1GB, throughput>=1/s, price<=1000$"
    study = optimize(make(), budget=budget, time=0, store=tmp_path / "study", price_per_hour=3.6)
    cost = study.baseline.cost
    assert 0 < cost["peak_memory_bytes"].get() < 1e9
    assert cost["throughput_per_s"].get() == pytest.approx(1 / cost["latency_s"].get())
    assert cost["price_per_million"].get() == pytest.approx(1000 * cost["latency_s"].get())
    assert study.met
    assert (study.header.price_per_hour, study.header.grid) == (3.6, None)
    assert "energy_j" not in cost


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"time": math.inf}, "time must be finite and zero or more, in seconds or as text with its unit (s, min, h); got inf"),
        ({"time": math.nan}, "time must be finite and zero or more"),
        ({"time": "-5s"}, "time must be finite and zero or more"),
        ({"time": None}, "time must be finite and zero or more"),
        ({"seed": 10**30}, "seed must be a whole number of at least 0 and at most 9223372036854775807; got 1"),
        ({"seed": "a"}, "seed must be a whole number of at least 0; got 'a'"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0; got 1.5"),
        ({"target": []}, "targets must be one or more different targets"),
    ],
)
def test_what_python_passes_is_read_as_strictly_as_the_command_line(tmp_path, asked, said) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        optimize(make(), **{"time": 1, "store": tmp_path / "study", **asked})
    assert not (tmp_path / "study").exists()


def test_a_stuck_step_is_named_while_it_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("equipoise.road.watchdog.PATIENCE_S", 0.2)
    said: list[Event] = []
    optimize(make(), time=0.1, store=tmp_path / "study", listen=said.append)
    stuck = [event.text for event in said if event.stage == "stuck"]
    assert any("untouched evaluation" in text and text.startswith("WARNING") for text in stuck)


def test_a_store_that_other_machines_may_share_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(walk, "caution", lambda folder: f"{folder.name} lies on nfs4")
    said: list[Event] = []
    optimize(make(), time=0, store=tmp_path / "study", listen=said.append)
    assert [event.text for event in said].count("WARNING: study lies on nfs4") == 1


def test_a_metric_that_ends_the_program_is_told(tmp_path) -> None:
    def leaves(*_: object) -> float:
        raise SystemExit(7)

    with pytest.raises(InputError, match="metric leaves must run; it raised SystemExit: 7"):
        optimize(make(metric=leaves), time=0, store=tmp_path / "study")


def test_a_last_race_that_fails_loses_nothing(tmp_path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise EquipoiseError("the race could not be run: a child died")

    monkeypatch.setattr(here, "race_stored", fails)
    said: list[Event] = []
    study = optimize(make(), budget="drop<=50", time=AMPLE_S, store=tmp_path / "study", recovery=False, listen=said.append)
    assert study.searched
    assert any(e.stage == "final" and "WARNING" in e.text and "a child died" in e.text for e in said)


class Scaled(nn.Module):
    """A model of one weight for each input: nothing of it can be cut or rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_model_with_nothing_to_change_is_one_sentence(tmp_path) -> None:
    x = torch.randn(80, 2)
    y = x.argmax(1)
    work = Workload(model=Scaled(), train=(x, y), validation=(x[:40], y[:40]), test=(x[40:], y[40:]), name="scaled")
    (tmp_path / "mine").mkdir()
    for store in (tmp_path / "study", tmp_path / "mine"):
        with pytest.raises(InputError, match="must offer something to change"):
            optimize(work, time=1, store=store)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # no folder is left of a run that was refused
