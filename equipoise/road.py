"""The road: baseline, space, tables, predicted front, evaluations, genetic search, recovery, final measurement.

Every costly step goes through the store, and each decision depends only on what is recorded, so walking the road again after a
crash replays it: nothing is lost and nothing is counted twice.
"""

from __future__ import annotations

import statistics
import time as clock
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.torch
from torch import nn

from equipoise import runtimes, sensitivity, steering
from equipoise.budget import Budget, parse_budget
from equipoise.errors import EquipoiseError, must_be
from equipoise.measure import latency, machine
from equipoise.progress import of_events
from equipoise.records import Evaluation, Fidelity, Plan, as_data, digest, evaluation_from
from equipoise.recovery import HOPE, recover
from equipoise.runtimes import Program, Target, parse_targets
from equipoise.search import LossTable, loss_table
from equipoise.search.front import predicted_front
from equipoise.search.propose import Evaluated, converged, first_points, front_volume, propose
from equipoise.search.surrogate import fit_loss
from equipoise.store import Store
from equipoise.study import Study
from equipoise.units import parse, show
from equipoise.workbench import Workbench, failed
from equipoise.workloads import Workload, as_workload, check
from equipoise.workloads.weights import packed

SEARCH_SHARE = 0.5
"""Share of the time by which the one-shot search ends when recovery follows."""
FINAL_SHARE = 0.03
"""Share of the time kept for the last, interleaved measurement."""
ROUNDS = 4
"""Rounds of the search before recovery: what training brings then tells more than further one-shot trials."""
ROUND = 8
"""Plans proposed together in a round of the genetic search."""
FIRST = 12
"""Plans of the predicted front that are evaluated before the search begins."""
WORST_LOSS = 1.0
"""Nats beyond which a plan is of no interest, recovered or not; a bound on the drop lowers it once drops are known."""
LEAST_WORST = 0.05
TELLING = 0.02
"""Nats from which a drop is more than chance."""
SHORTLIST = 6
PROBE = 32
"""Validation inputs whose answers an artifact carries."""
TRAINED_ON_LOADING = ("digits",)
"""Workloads whose weights are made when they are loaded; the study keeps them, so that every later load finds the same."""


@dataclass(frozen=True)
class Event:
    """What a run says of itself while it goes on: the stage, how far, and an evaluation when one has just been recorded."""

    stage: str
    text: str
    spent_s: float
    limit_s: float
    evaluation: Evaluation | None = None


Listener = Callable[[Event], None]


def optimize(
    work: Workload | str,
    *,
    target: str | Sequence[Target] = "onnxruntime:cpu",
    budget: str | None = None,
    time: str | float = "10min",
    store: str | Path,
    seed: int = 0,
    recovery: bool = True,
    spec: str = "",
    listen: Listener | None = None,
) -> Study:
    """Search widths, depth, precision and runtime of a trained model together, on measured cost; return the whole study.

    Args:
        work: The model, its data and its metric, or its name as on the command line; never changed.
        target: Where it must run; several, separated by commas, make the runtime a knob. The first is the reference.
        budget: Bounds in the user's units, ``"latency<=1ms, size<=300KB, drop<=1"``; None asks for the knee.
        time: Wall time for the whole run (a quantity such as ``"20min"``, or seconds). What earlier, killed runs recorded
            counts; 0 reads the study as it stands.
        store: Folder of the study. The same call again goes on where the last one stopped.
        seed: Of every random choice; recorded.
        recovery: Whether survivors are distilled from the untouched model (their training time counts).
        spec: How the command line names the workload, recorded so that `verify` can load it again.
        listen: Told about every step; None shows a line of progress in a notebook or an interactive session.
    Raises:
        InputError: Anything that cannot be used, before any work starts.
        StoreError: The store cannot be written, or belongs to another workload.
    """
    bounds = parse_budget(budget)
    targets = parse_targets(target) if isinstance(target, str) else tuple(target)
    limit = parse(time, "s", name="time") if isinstance(time, str) else float(time)
    if not limit >= 0:
        raise must_be("time", "zero or more", time, "Write for example 20min.")
    for wanted in targets:
        if reason := runtimes.get(wanted.runtime).unavailable():
            raise must_be("target", "a runtime that can be used here", str(wanted), reason)
    spec = spec or (work if isinstance(work, str) else "")
    work = as_workload(work)
    check(work)
    with Store.open(store) as opened:
        opened.identity({"workload": work.fingerprint, "targets": [str(t) for t in targets], "seed": seed})
        road = Road(opened, work, targets, bounds, limit, seed, recovery, spec, listen or of_events())
        return road.walk()


@dataclass
class Road:
    """One walk along the road; the fields below `listen` fill as it goes."""

    store: Store
    work: Workload
    targets: tuple[Target, ...]
    budget: Budget
    limit_s: float
    seed: int
    recovery: bool
    spec: str
    listen: Listener
    spent_s: float = 0.0
    worst_loss: float = WORST_LOSS
    evaluations: list[Evaluation] = field(default_factory=list)

    def walk(self) -> Study:
        """Walk it all and return the study."""
        self.tell("prepare", "fold the model, trace its groups, collect statistics")
        self.bench = Workbench.prepare(self.work, self.targets, self.store.blob)
        self.space = self.bench.space
        self.baseline()
        features = self.tables()
        self.search(features)
        if self.recovery:
            recover(self, reserve=self.limit_s * FINAL_SHARE)
        self.final()
        return Study.read(self.store)

    def tell(self, stage: str, text: str, evaluation: Evaluation | None = None, *, extra_s: float = 0.0) -> None:
        """Report progress; `extra_s` is the time of a step that is still going on."""
        self.listen(Event(stage, text, self.spent_s + extra_s, self.limit_s, evaluation))

    def step(self, kind: str, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Take one step through the store and count its recorded time."""
        data = self.store.timed(kind, key, compute)
        self.spent_s += data["seconds"]
        return data

    def left(self, share: float = 1.0) -> float:
        """Seconds until `share` of the time is spent; decided from recorded times only, so that a replay decides the same."""
        return self.limit_s * share - self.spent_s

    def evaluate(
        self,
        plan: Plan,
        fidelity: Fidelity,
        make: Callable[[], nn.Module],
        *,
        leg: int = 0,
        predicted: Mapping[str, float] | None = None,
        details: Mapping[str, Any] = MappingProxyType({}),
    ) -> Evaluation:
        """Evaluate a plan once and for all: the trial boundary, where what goes wrong is recorded and the search goes on.

        `details` is read after `make` has run, which may fill it.
        """

        def compute() -> Mapping[str, Any]:
            began = clock.perf_counter()
            try:
                found = self.bench.evaluate(
                    plan, make(), fidelity=fidelity, predicted=predicted, reference_s=self.reference_s,
                    seconds=self.latency_seconds,
                )  # fmt: skip
                found = replace(found, details={**found.details, **details, "leg": leg})
            except (KeyboardInterrupt, SystemExit):
                raise
            except Exception:  # noqa: BLE001 - the one place: a failed trial is a result, not the end of the search
                found = failed(plan, fidelity, traceback.format_exc(limit=6))
            return {"evaluation": as_data(replace(found, seconds=clock.perf_counter() - began))}

        key = f"{plan.digest}:{fidelity}" + (f":{leg}" if leg else "")
        found = evaluation_from(self.step("evaluation", key, compute)["evaluation"])
        self.evaluations.append(found)
        self.tell("evaluate", fidelity, found)
        return found

    @property
    def latency_seconds(self) -> float:
        """Wall time for one latency comparison inside the search: a hundredth of the run, between 0.3 and 1.5 s."""
        return min(1.5, max(0.3, self.limit_s / 100))

    def baseline(self) -> None:
        """Measure the untouched model, on every target, and write the study's header."""
        self.tell("baseline", "the untouched model")
        self.reference_s: float | None = None
        first = self.evaluate(self.space.untouched, "untouched", lambda: self.bench.teacher)
        if not first.ok:
            reason = first.error.strip().splitlines()[-1]
            raise EquipoiseError(f"the untouched model could not be measured on {self.targets[0]}: {reason}")
        self.reference_s = first.axis("latency_s").get()
        header = {
            "schema": 1,
            "workload": self.spec or self.work.name,
            "name": self.work.name,
            "target": ",".join(str(t) for t in self.targets),
            "budget": self.budget.text,
            "time_s": self.limit_s,
            "seed": self.seed,
            "baseline": first.key,
            "metric": {"name": self.work.metric.name, "maximize": self.work.metric.maximize, "unit": self.work.metric.unit},
            "space": {"knobs": len(self.space.knobs), "plans": f"{self.space.size:.3g}"},
            "left_whole": {g.name: g.reason for g in self.bench.pruner.groups if not g.prunable},
        }
        self.step("study", digest(header), lambda: {"header": {**header, **self._kept(), "machine": machine.describe()}})
        for runtime in [t.runtime for t in self.targets]:
            for bits in runtimes.get(runtime).precisions:
                self.one_shot(self.uniform(runtime, bits))

    def _kept(self) -> dict[str, str]:
        """Blobs that `verify` needs: real inputs to probe the file with, and the weights of a model that loading trains."""
        probe = safetensors.torch.save({"inputs": self.bench.validation[0][:PROBE].contiguous()})
        kept = {"probe": self.store.blob(probe)}
        if self.spec in TRAINED_ON_LOADING:
            kept["source_state"] = self.store.blob(packed(self.work.model))
        return kept

    def uniform(self, runtime: str, bits: int) -> Plan:
        """The untouched model on one runtime in one precision: the contender that hand use of one tool would give."""
        changes: dict[str, Any] = {k.name: bits for k in self.space.knobs if k.kind == "bits"}
        if "runtime" in self.space.positions:
            changes["runtime"] = runtime
        return self.space.untouched.but(changes)

    def one_shot(self, plan: Plan, predicted: Mapping[str, float] | None = None) -> Evaluation:
        """Evaluate a plan compressed and repaired, not trained (unless it is the untouched one, which is known)."""
        if plan == self.space.untouched:
            return self.evaluations[0]
        return self.evaluate(plan, "one-shot", lambda: self.bench.build(plan), predicted=predicted)

    def tables(self) -> dict[str, sensitivity.Features]:
        """Measure the one-knob loss table and each runtime's layer times."""
        todo = sensitivity.choices(self.bench)
        losses = {}
        for i, (knob, choice) in enumerate(todo):
            self.tell("tables", f"loss of {knob.name}={choice} ({i + 1}/{len(todo)})")
            row = self.step("table", f"{knob.name}={choice}", lambda k=knob, c=choice: {  # type: ignore[misc]
                "knob": k.name, "choice": c, "loss": sensitivity.loss_of(self.bench, k, c)
            })  # fmt: skip
            losses[knob.name, choice] = row["loss"]
        for knob in self.space.knobs:
            if knob.kind == "runtime":
                losses.update({(knob.name, c): 0.0 for c in knob.menu[1:]})
        self.table: LossTable = loss_table(self.space, losses, errors=1e-4)
        layers = tuple(sensitivity.layers(self.bench))
        out = {}
        for target in self.targets:
            self.tell("tables", f"layer times on {target.runtime}")
            seconds = max(2.0, min(20.0, self.limit_s / 60))
            times = self.step("lut", str(target), lambda t=target, s=seconds: {  # type: ignore[misc]
                "times": sensitivity.layer_times(self.bench, t, seconds=s)
            })["times"]  # fmt: skip
            out[target.runtime] = sensitivity.Features(layers, times, tuple(runtimes.get(target.runtime).precisions))
        return out

    def search(self, features: Mapping[str, sensitivity.Features]) -> None:
        """Evaluate the predicted front, then let the genetic search propose rounds until it converges or its time is up."""
        share = SEARCH_SHARE if self.recovery else 1 - FINAL_SHARE
        volumes: list[float] = []
        number = 0
        while self.left(share) > 0 and not converged(volumes) and (number < ROUNDS or not self.recovery):
            costs = [steering.fit(axis, self.space, features, self.evaluations) for axis in ("latency_s", "size_bytes")]
            known = self.known()
            model = fit_loss(self.table, known.genomes, known.losses)
            self.tell("search", f"round {number}: " + ("solve the predicted front" if not number else "propose plans"))
            if not number:
                self._tell_reach(costs)
            propose_ = self._first if not number else self._next
            rows = self.step("proposal", str(number), lambda p=propose_, c=costs, m=model, k=known, n=number: {  # type: ignore[misc]
                "plans": [as_data(plan) for plan in p(c, m, k, n)]
            })["plans"]  # fmt: skip
            if not rows:
                break
            for row in rows:
                if self.left(share) <= 0:
                    break
                plan = Plan(row)
                genome = self.space.encode(plan)[None]
                predicted = {c.axis: float(c.many(genome)[0]) for c in costs} | {"loss": float(model.losses(genome)[0])}
                self.one_shot(plan, predicted)
            if not number:
                self.worst_loss = self._worst_loss()
            volumes.append(front_volume(self.known(), worst_loss=self.worst_loss))
            number += 1

    def _worst_loss(self) -> float:
        """Nats beyond which, as the first plans tell, a plan drops more than the budget's bound and training could mend."""
        bound = self.budget.bound("drop")
        tried = [e for e in self.evaluations if e.ok and e.details["loss"] > TELLING and e.drop.get() > 0]
        if not bound or not tried:
            return WORST_LOSS
        points_per_nat = statistics.median(e.drop.get() / e.details["loss"] for e in tried)
        reach = (HOPE if self.recovery else 1.0) * bound
        return float(min(WORST_LOSS, max(LEAST_WORST, reach / points_per_nat)))

    def _tell_reach(self, costs: Sequence[steering.Cost]) -> None:
        """Say what the space is predicted to reach, so that a budget out of reach is known before the search, not after it."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1 << 20,)))
        genomes = np.concatenate([self.space.sample(rng, n=2000), predicted_front(self.space, self.table, costs)])
        for cost, word, unit in zip(costs, ("latency", "size"), ("s", "B"), strict=True):
            low, middle, high = (show(float(v), unit) for v in np.quantile(cost.many(genomes), (0.0, 0.5, 1.0)))
            self.tell("search", f"predicted {word} of the space: least {low}, median {middle}, most {high}")
            bound = self.budget.bound(word)
            if bound is not None and bound < float(cost.many(genomes).min()):
                self.tell(
                    "search", f"WARNING: {word}<={show(bound, unit)} is below the least that this space is predicted to reach"
                )

    def known(self) -> Evaluated:
        """What the one-shot evaluations say: genomes, latency and size, loss to the untouched model."""
        rows = [e for e in self.evaluations if e.ok and e.fidelity != "recovered"]
        costs = np.array([[e.axis("latency_s").get(), e.axis("size_bytes").get()] for e in rows])
        return Evaluated(self.space.encode_all([e.plan for e in rows]), costs, np.array([e.details["loss"] for e in rows]))

    def _first(self, costs: Any, model: Any, known: Evaluated, _number: int) -> list[Plan]:
        front = predicted_front(self.space, self.table, costs)
        losses = model.losses(front)
        seen = {row.tobytes() for row in known.genomes}
        rows = zip(front, losses, strict=True)
        useful = np.array([loss <= self.worst_loss and row.tobytes() not in seen for row, loss in rows])
        if not useful.any():
            return []
        front, losses = front[useful], losses[useful]
        focus = self.budget.bound("latency")
        return first_points(self.space, front, costs[0].many(front), losses, n=FIRST, focus=focus)

    def _next(self, costs: Any, model: Any, known: Evaluated, number: int) -> list[Plan]:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        return propose(
            self.space, model, costs, known, rng=rng, q=ROUND, worst_loss=self.worst_loss,
            excess=steering.excess(self.budget), focus=self.budget.bound("latency"),
        )  # fmt: skip

    def final(self) -> None:
        """Time the shortlist side by side with the untouched model, until the intervals are narrow or the time is up."""
        study = Study.read(self.store, raced=False)  # else the race's own result would change its field on a replay
        chosen = {e.key: e for e in (study.best, study.knee, *self._contenders(), *study.front) if e.fidelity != "untouched"}
        shortlist = dict(list(chosen.items())[:SHORTLIST])
        if not shortlist or self.limit_s == 0:
            return
        self.tell("final", f"time the {len(shortlist)} best beside the untouched model")
        seconds = max(3.0, self.limit_s * FINAL_SHARE)
        self.step("final", digest(sorted(shortlist)), lambda: {"ratios": self._race(shortlist, seconds)})

    def _contenders(self) -> list[Evaluation]:
        """The best that hand use of one tool gives: the untouched model quantized by each runtime."""
        plans = {self.uniform(t.runtime, b) for t in self.targets for b in runtimes.get(t.runtime).precisions}
        return [e for e in self.evaluations if e.ok and e.fidelity == "one-shot" and e.plan in plans]

    def _race(self, shortlist: Mapping[str, Evaluation], seconds: float) -> dict[str, Any]:
        calls: dict[str, Callable[[], object]] = {"reference": self.bench.reference_call()}
        for key, evaluation in shortlist.items():
            program = Program.stored(evaluation, self.store.read_blob)
            calls[key] = self.bench.caller(program, self.bench.target_of(evaluation.plan))
        timed = latency.compare(calls, rounds=60, seconds=seconds, precision=0.01)
        found = {key: timed.speedup("reference", key) for key in shortlist}
        return {key: as_data(ratio) for key, ratio in found.items() if ratio.bounded}
