"""The road: baseline, space, tables, predicted front, evaluations, genetic search, recovery, final measurement.

Every costly step goes through the store, and each decision depends only on what is recorded, so walking the road again after a
crash replays it: nothing is lost and nothing is counted twice.
"""

from __future__ import annotations

import statistics
import time as clock
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from equipoise import runtimes
from equipoise.batch import mapped, stored
from equipoise.budget import MEASURED, Budget, parse_budget
from equipoise.errors import EquipoiseError, InputError, MissingExtraError, StoreError, must_be
from equipoise.events import Event, Listener
from equipoise.measure import machine
from equipoise.progress import of_events
from equipoise.records import Evaluation, Fidelity, Plan, as_data, digest, evaluation_from
from equipoise.road import prediction
from equipoise.road.bench import Workbench, failed
from equipoise.road.racing import race_stored
from equipoise.road.recovery import HOPE, recover
from equipoise.road.tables import Tables, tables
from equipoise.road.watchdog import watched
from equipoise.runtimes import Target, parse_targets
from equipoise.search import Genomes
from equipoise.search.front import predicted_front
from equipoise.search.propose import Evaluated, converged, first_points, front_volume, halving, propose
from equipoise.search.surrogate import fit_loss
from equipoise.study.record import SCHEMA, Study
from equipoise.study.store import Store
from equipoise.units import check_seed, parse, show
from equipoise.workloads import Workload, advice, as_workload, check
from equipoise.workloads.spec import located
from equipoise.workloads.weights import packed

SEARCH_SHARE = 0.5
"""Share of the time by which the one-shot search ends when recovery follows."""
SEARCH_LEAST = 0.4
"""Share of what the tables left that the search may take in any case."""
FINAL_SHARE, FINAL_LEAST_S, FINAL_MOST_SHARE = 0.06, 10.0, 0.2
"""Time kept for the last race, in fresh processes: a share of it all, but some seconds where that is not too much."""
WORTH_TABLES = 3
"""Trials that must still fit after the baseline for tables, which alone show nothing, to be worth their time."""
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
HEADROOM = 1.25
"""Times the time that a first search is thought to need, where more is advised."""
SHORTLIST = 6
PROBE = 32
"""Validation inputs whose answers an artifact carries."""
TRAINED_ON_LOADING = ("digits",)
"""Workloads whose weights are made when they are loaded; the study keeps them, so that every later load finds the same."""


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
    began: float | None = None,
) -> Study:
    """Search widths, depth, precision and runtime of a trained model together, on measured cost; return the whole study.

    Args:
        work: The model, its data and its metric, or its name as on the command line; never changed.
        target: Where it must run; several, separated by commas, make the runtime a knob. The first is the reference.
        budget: Bounds in the user's units, ``"latency<=1ms, size<=300KB, drop<=1"``; None asks for the knee.
        time: Wall time for the whole run (a quantity such as ``"20min"``, or seconds), everything counted. Nothing is begun
            that would not end in it, but the model is prepared and the untouched model measured in any case. What earlier,
            killed runs recorded counts; 0 reads the study as it stands.
        store: Folder of the study. The same call again goes on where the last one stopped.
        seed: Of every random choice; recorded.
        recovery: Whether survivors are distilled from the untouched model (their training time counts).
        spec: How the command line names the workload, recorded so that `verify` can load it again.
        listen: Told about every step; None shows a line of progress in a notebook or an interactive session.
        began: ``time.perf_counter()`` when the run began, where loading the workload is to count as well; None for now.
    Raises:
        InputError: Anything that cannot be used, before any work starts.
        StoreError: The store cannot be written, or belongs to another workload.
    """
    started = clock.perf_counter() if began is None else began
    bounds = parse_budget(budget, axes=MEASURED)
    targets = parse_targets(target)
    limit = parse(time, "s", name="time") if isinstance(time, str) else float(time)
    if not 0 <= limit < float("inf"):
        raise must_be("time", "zero or more, and finite", time, "Write for example 20min.")
    check_seed(seed)
    if not isinstance(store, str | Path):
        raise must_be("store", "the path of a folder", store, 'Write for example "runs/a".')
    for wanted in targets:
        if reason := runtimes.get(wanted.runtime).unavailable():
            raise MissingExtraError(f"target must be a runtime that can be used here; got {str(wanted)!r}. {reason}")
    spec = spec or (work if isinstance(work, str) else "")
    with staying("checking the workload"):
        work = as_workload(work)
        check(work)
    with Store.open(store) as opened:
        about = {"workload": work.fingerprint, "parts": work.identity, "targets": [str(t) for t in targets], "seed": seed}
        opened.identity(about)
        told = listen or of_events()
        road = Road(opened, work, targets, bounds, limit, seed, recovery, located(spec), told, started)
        return road.walk()


@contextmanager
def staying(doing: str) -> Iterator[None]:
    """Turn an exit of the user's own code into an error that says so."""
    try:
        yield
    except SystemExit as error:
        raise InputError(
            f"the workload must not end the program; its own code raised SystemExit({error.code!r}) while {doing}. "
            "Raise an ordinary error there."
        ) from error


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
    mark: float = field(default_factory=clock.perf_counter)
    spent_s: float = 0.0
    worst_loss: float = WORST_LOSS
    evaluations: list[Evaluation] = field(default_factory=list)
    volumes: list[float] = field(default_factory=list)
    recovered: bool = False
    proposing_s: float = 0.0
    walked: set[tuple[str, str]] = field(default_factory=set)

    def walk(self) -> Study:
        """Walk it all and return the study."""
        self.tell("prepare", "fold the model, trace its groups, collect statistics", extra_s=clock.perf_counter() - self.mark)
        with self.watch("preparing the model"), staying("preparing the model"):
            self.bench = Workbench.prepare(self.work, self.targets, self.store.blob)
            self.space = self.bench.space
        self.step("prepare", "0", dict)
        self.baseline()
        if self.left() - self.reserve < WORTH_TABLES * self.expected("one-shot"):
            self.extent(entries=sum(len(k.menu) - 1 for k in self.space.knobs), read=0, seconds=0.0)
        else:
            self.tables: Tables = tables(self)
            self.space = self.tables.space
            self.search(self.search_s() if self.recovery else self.left() - self.reserve)
            if self.recovery:
                recover(self, reserve=self.reserve)
                self.recovered = True
                self.search(self.left() - self.reserve)  # the time that recovery had no use for
        self.final()
        return Study.read(self.store)

    def tell(self, stage: str, text: str, evaluation: Evaluation | None = None, *, extra_s: float = 0.0) -> None:
        """Report progress; `extra_s` is the time of a step that is still going on."""
        self.listen(Event(stage, text, self.spent_s + extra_s, self.limit_s, evaluation))

    def watch(self, what: str, expected_s: float = 0.0) -> AbstractContextManager[None]:
        """Return a context that tells of a step which takes far longer than it should."""
        return watched(what, lambda text: self.tell("stuck", text), expected_s=expected_s)

    def step(
        self, kind: str, key: str, compute: Callable[[], Mapping[str, Any]], *, expected_s: float = 0.0, what: str = ""
    ) -> dict[str, Any]:
        """Take one step through the store and count its recorded time: all that passed since the step before it ended."""

        def timed() -> Mapping[str, Any]:
            with self.watch(what or f"{kind} {key}", expected_s):
                data = compute()
            return {**data, "seconds": clock.perf_counter() - self.mark}

        data = self.store.once(kind, key, timed)
        self.mark = clock.perf_counter()
        if (kind, key) not in self.walked:  # a step that the walk comes by again has cost its time once
            self.walked.add((kind, key))
            self.spent_s += data["seconds"]
        return data

    def left(self) -> float:
        """Seconds of the time that are left; from recorded times only, so that a replay decides the same."""
        return self.limit_s - self.spent_s

    @property
    def reserve(self) -> float:
        """Seconds kept for the last measurement."""
        return min(max(FINAL_LEAST_S, FINAL_SHARE * self.limit_s), FINAL_MOST_SHARE * self.limit_s)

    def search_s(self) -> float:
        """Seconds that the search may take before recovery: the first half of the time, or a fair part of what is left."""
        return max(SEARCH_SHARE * self.limit_s - self.spent_s, SEARCH_LEAST * (self.left() - self.reserve))

    def expected(self, fidelity: Fidelity) -> float:
        """Seconds that the next evaluation will take, its training left out, as those before it tell."""
        seen = [e.seconds - float(e.details.get("trained_s", 0.0)) for e in self.evaluations if e.ok and e.fidelity == fidelity]
        if seen:
            return statistics.median(seen[-9:])
        return max((e.seconds for e in self.evaluations if e.ok), default=0.0)

    def evaluate(
        self,
        plan: Plan,
        fidelity: Fidelity,
        make: Callable[[], nn.Module],
        *,
        leg: int = 0,
        predicted: Mapping[str, float] | None = None,
        details: Mapping[str, Any] = MappingProxyType({}),
        training_s: float = 0.0,
    ) -> Evaluation:
        """Evaluate a plan once and for all: the trial boundary, where what goes wrong is recorded and the search goes on.

        Only the untouched model must not fail: nothing of it is recorded then, so that the same command tries again.
        `details` is read after `make` has run, which may fill it.
        """

        def compute() -> Mapping[str, Any]:
            began = clock.perf_counter()
            try:
                _ = self.bench.reference  # made once a process: no trial is to seem slow for it
                began = clock.perf_counter()
                found = self.bench.evaluate(
                    plan, make(), fidelity=fidelity, predicted=predicted, reference_s=self.reference_s,
                    seconds=self.latency_seconds,
                )  # fmt: skip
                found = replace(found, details={**found.details, **details}, leg=leg)
            except (KeyboardInterrupt, StoreError):
                raise
            except BaseException as error:  # the one place: a failed trial, whatever the user's code raised
                if fidelity == "untouched":
                    raise self._unmeasured(error) from error
                found = failed(plan, fidelity, traceback.format_exc(limit=-6), leg=leg)
            return {"evaluation": as_data(replace(found, seconds=clock.perf_counter() - began))}

        key = f"{plan.digest}:{fidelity}" + (f":{leg}" if leg else "")
        if ("evaluation", key) in self.walked:
            return next(e for e in self.evaluations if e.key == key)
        data = self.step(
            "evaluation", key, compute, expected_s=self.expected(fidelity) + training_s,
            what=f"the {fidelity} evaluation of plan {plan.digest}",
        )  # fmt: skip
        found = evaluation_from(data["evaluation"])
        self.evaluations.append(found)
        self.tell("evaluate", fidelity, found)
        return found

    def _unmeasured(self, error: BaseException) -> EquipoiseError:
        """What the user is told when even the untouched model cannot be evaluated."""
        reason = " ".join(str(error).split()) or "no message"
        said = reason if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {reason}"
        kind = InputError if isinstance(error, InputError) else EquipoiseError
        return kind(f"the untouched model could not be measured on {self.targets[0]}: {said}")

    @property
    def latency_seconds(self) -> float:
        """Wall time for one latency comparison inside the search: a hundredth of the run, between 0.3 and 1.5 s."""
        return min(1.5, max(0.3, self.limit_s / 100))

    def baseline(self) -> None:
        """Measure the untouched model, on every target, and write the study's header."""
        notes = self.step("notes", "workload", lambda: {"notes": list(advice(self.work))})["notes"]
        for note in notes:
            self.tell("notes", f"WARNING: {note}")
        self.tell("baseline", f"the untouched model; {self.work.metric.point}")
        self.reference_s: float | None = None
        first = self.evaluate(self.space.untouched, "untouched", lambda: self.bench.teacher)
        if not first.ok:  # recorded by an earlier version
            raise EquipoiseError(f"the untouched model could not be measured on {self.targets[0]}: {first.reason}")
        self.reference_s, self.fixed_s = first.axis("latency_s").get(), self.spent_s
        header = {
            "schema": SCHEMA,
            "workload": self.spec or self.work.name,
            "name": self.work.name,
            "target": ",".join(str(t) for t in self.targets),
            "budget": self.budget.text,
            "time_s": self.limit_s,
            "seed": self.seed,
            "baseline": first.key,
            "metric": self.work.metric.about(),
            "space": {"knobs": len(self.space.knobs), "plans": f"{self.space.size:.3g}"},
            "notes": notes,
            "left_whole": {g.name: g.reason for g in self.bench.pruner.groups if not g.prunable} | dict(self.bench.pruner.left),
        }
        self.asked = digest(header)
        self.step("study", self.asked, lambda: {"header": {**header, **self._kept(), "machine": machine.describe()}})
        said = self.store.all("asking")
        if not said or said[-1]["header"] != self.asked:  # what was asked last counts, also where it was asked before
            self.store.put("asking", str(len(said)), {"header": self.asked}, seconds=0.0)
        for runtime in [t.runtime for t in self.targets]:
            for bits in runtimes.get(runtime).precisions:
                if self.left() - self.reserve > self.expected("one-shot"):
                    self.one_shot(self.uniform(runtime, bits))

    def extent(self, *, entries: int, read: int, seconds: float) -> None:
        """Record how far the tables reached under this asking, and the seconds that would be enough for all and a first search.

        Args:
            entries: Entries of the loss table, all together.
            read: How many were read.
            seconds: What reading all would take; 0 where none was read.
        """
        trial = self.expected("one-shot")
        before = self.spent_s
        probes = min(seconds or entries * trial / 2, 2 * FIRST * trial)  # beyond that they are predicted from one another
        enough = HEADROOM * (self.fixed_s + probes + 2 * FIRST * trial)
        self.store.once(
            "extent", self.asked, lambda: {"entries": entries, "read": read, "before_s": before, "enough_s": enough}
        )

    def _kept(self) -> dict[str, str]:
        """Blobs that `verify` needs: real inputs to probe the file with, and the weights of a model that loading trains."""
        probe = safetensors.torch.save(stored(mapped(self.work.validation.take(PROBE).tensors()[0], torch.Tensor.contiguous)))
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

    def search(self, seconds: float) -> None:
        """Evaluate the predicted front, then let the genetic search propose rounds until it converges or `seconds` are over.

        Before recovery it stops after a few rounds too; called again, it goes on.
        """
        until = self.spent_s + seconds
        while self._worth_another_round(until):
            tried = self.inside()
            costs = [prediction.fit(axis, self.space, self.tables.features, tried) for axis in ("latency_s", "size_bytes")]
            known = self.known()
            model = fit_loss(self.tables.losses, known.genomes, known.losses)
            number = len(self.volumes)
            self.tell("search", f"round {number}: " + ("propose plans" if number else "solve the predicted front"))
            propose_ = self._next if number else self._first
            found = self.step("proposal", self._turn(number), partial(propose_, costs, model, known, number))
            self.proposing_s = found["seconds"]
            if not number:
                self._tell_reach(found.get("reach") or {})
            if not found["plans"] and number:
                return
            for row in found["plans"]:
                if self.spent_s + self.expected("one-shot") > until:
                    return
                plan = Plan(row)
                genome = self.space.encode(plan)[None]
                predicted = {c.axis: float(c.many(genome)[0]) for c in costs} | {"loss": float(model.losses(genome)[0])}
                self.one_shot(plan, predicted)
            if not number:
                self.worst_loss = self._worst_loss()
            self.volumes.append(front_volume(self.known(), worst_loss=self.worst_loss))

    def _worth_another_round(self, until: float) -> bool:
        """Whether there is a plan to try, time to try it, and hope that it tells something."""
        if self.space.size < 2 or converged(self.volumes):
            return False
        if self.spent_s + self.proposing_s + self.expected("one-shot") > until:
            return False
        return len(self.volumes) < ROUNDS or not self.recovery or self.recovered

    def _turn(self, number: int) -> str:
        """Name of a proposal: what it was made from, so that another budget is proposed for anew and a replay finds its own."""
        return digest([number, self.budget.text, self.recovery, [e.key for e in self.evaluations if e.fidelity != "recovered"]])

    def _worst_loss(self) -> float:
        """Nats beyond which, as the first plans tell, a plan drops more than the budget's bound and training could mend."""
        bound = self.budget.bound("drop")
        tried = [e for e in self.evaluations if e.ok and e.details["loss"] > TELLING and e.drop.get() > 0]
        if not bound or not tried:
            return WORST_LOSS
        points_per_nat = statistics.median(e.drop.get() / e.details["loss"] for e in tried)
        reach = (HOPE if self.recovery else 1.0) * bound
        return float(min(WORST_LOSS, max(LEAST_WORST, reach / points_per_nat)))

    def _reach(self, costs: Sequence[prediction.Cost], front: Genomes) -> dict[str, list[float]]:
        """Return the least, the median and the most that the space is predicted to reach on each cost."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1 << 20,)))
        genomes = np.concatenate([self.space.sample(rng, n=2000), front])
        return {cost.axis: [float(v) for v in np.quantile(cost.many(genomes), (0.0, 0.5, 1.0))] for cost in costs}

    def _tell_reach(self, reach: Mapping[str, Sequence[float]]) -> None:
        """Say what the space is predicted to reach, so that a budget out of reach is known before the search, not after it."""
        for axis, word, unit in (("latency_s", "latency", "s"), ("size_bytes", "size", "B")):
            if axis not in reach:
                continue
            low, middle, high = (show(v, unit) for v in reach[axis])
            self.tell("search", f"predicted {word} of the space: least {low}, median {middle}, most {high}")
            bound = self.budget.bound(word)
            if bound is not None and bound < reach[axis][0]:
                self.tell(
                    "search", f"WARNING: {word}<={show(bound, unit)} is below the least that this space is predicted to reach"
                )

    def inside(self) -> list[Evaluation]:
        """The evaluations whose plan is of the space, from which failed probes may have taken a choice."""
        menus = {k.name: k.menu for k in self.space.knobs}
        return [e for e in self.evaluations if all(c in menus[name] for name, c in e.plan.choices.items())]

    def known(self) -> Evaluated:
        """What the one-shot evaluations say: genomes, latency and size, loss to the untouched model."""
        rows = [e for e in self.inside() if e.ok and e.fidelity != "recovered"]
        costs = np.array([[e.axis("latency_s").get(), e.axis("size_bytes").get()] for e in rows])
        return Evaluated(self.space.encode_all([e.plan for e in rows]), costs, np.array([e.details["loss"] for e in rows]))

    def _first(self, costs: Any, model: Any, known: Evaluated, _number: int) -> dict[str, Any]:
        """The first plans, spread over the predicted front, and what the space is predicted to reach."""
        front = predicted_front(self.space, self.tables.losses, costs)
        reach = self._reach(costs, front)
        losses = model.losses(front)
        seen = {row.tobytes() for row in known.genomes}
        rows = zip(front, losses, strict=True)
        useful = np.array([loss <= self.worst_loss and row.tobytes() not in seen for row, loss in rows])
        if not useful.any():
            return {"plans": [], "reach": reach}
        front, losses = front[useful], losses[useful]
        focus = self.budget.bound("latency")
        plans = halving(first_points(self.space, front, costs[0].many(front), losses, n=FIRST, focus=focus))
        return {"plans": [as_data(plan) for plan in plans], "reach": reach}

    def _next(self, costs: Any, model: Any, known: Evaluated, number: int) -> dict[str, Any]:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        plans = propose(
            self.space, model, costs, known, rng=rng, q=ROUND, worst_loss=self.worst_loss,
            excess=prediction.excess(self.budget), focus=self.budget.bound("latency"),
        )  # fmt: skip
        return {"plans": [as_data(plan) for plan in plans]}

    def final(self) -> None:
        """Time the shortlist side by side with the untouched model, until the intervals are narrow or the time is up."""
        study = Study.read(self.store, raced=False)  # else the race's own result would change its field on a replay
        chosen = {e.key: e for e in (study.best, study.knee, *self._contenders(), *study.front) if e.fidelity != "untouched"}
        shortlist = dict(list(chosen.items())[:SHORTLIST])
        seconds = max(self.reserve, min(FINAL_LEAST_S, self.left()))
        if not shortlist or self.left() < seconds / 2:
            return
        self.tell("final", f"time the {len(shortlist)} best beside the untouched model")
        race = partial(race_stored, self.store, study.baseline, tuple(shortlist.values()), seconds=seconds, seed=self.seed)
        try:
            self.step("final", digest(sorted(shortlist)), race, expected_s=seconds)
        except StoreError:
            raise
        except EquipoiseError as error:  # nothing that was found is lost for it; `export` races again
            self.tell("final", f"WARNING: the last race failed, so latencies are those of the search: {error}")

    def _contenders(self) -> list[Evaluation]:
        """The best that hand use of one tool gives: the untouched model quantized by each runtime."""
        plans = {self.uniform(t.runtime, b) for t in self.targets for b in runtimes.get(t.runtime).precisions}
        return [e for e in self.evaluations if e.ok and e.fidelity == "one-shot" and e.plan in plans]
