"""The executor of this process: does the jobs of a road, one after the other, on the machine whose times are compared."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import safetensors.torch

from equipoise.errors import EquipoiseError, InputError, StoreError
from equipoise.measure import machine
from equipoise.records import Evaluation, Plan, Training, as_data, evaluation_from
from equipoise.road import probing
from equipoise.road.bench import Workbench, failed
from equipoise.road.facts import facts_from
from equipoise.road.jobs import Job
from equipoise.road.racing import race_stored
from equipoise.road.training import train
from equipoise.runtimes import Target
from equipoise.study.store import Store
from equipoise.workloads import advice
from equipoise.workloads.weights import packed

PROBE = 32
"""Validation inputs whose answers an artifact carries."""
TRAINED_ON_LOADING = ("digits",)
"""Workloads whose weights are made when they are loaded; the study keeps them, so that every later load finds the same."""


class Here:
    """Does jobs in this process; the bench is made when the first of them needs it.

    Args:
        store: The study.
        prepare: Makes the bench.
        propose: Works out the proposal that the road is waiting for.
        spec: How the command line names the workload.
        seed: Of the trainings.
        tell: Told about progress inside a job: stage, text, seconds.
    """

    def __init__(
        self,
        store: Store,
        prepare: Callable[[], Workbench],
        propose: Callable[[], Mapping[str, Any]],
        *,
        spec: str = "",
        seed: int = 0,
        tell: Callable[[str, str, float], None] = lambda *_: None,
    ) -> None:
        self.store, self.seed, self.spec, self.tell = store, seed, spec, tell
        self._prepare, self._propose = prepare, propose
        self._does: dict[str, Callable[[Job], Mapping[str, Any]]] = {
            "prepare": self._facts,
            "notes": lambda _: {"notes": list(advice(self.bench.work))},
            "study": self._header,
            "evaluation": self.evaluation,
            "pace": lambda _: {"sample_s": probing.pace(self.bench)},
            "table": self.entry,
            "lut": self._times,
            "proposal": lambda _: self._propose(),
            "leg": self._leg,
            "extent": lambda job: job.args,
            "final": self._race,
        }

    @cached_property
    def bench(self) -> Workbench:
        """The workbench, held to the space that the study was begun in."""
        bench = self._prepare()
        menus = {row.knob.name: ", ".join(map(str, row.knob.menu)) for row in bench.facts.offered}
        self.store.identity({"space": menus}, part="space")
        return bench

    def run(self, job: Job) -> Mapping[str, Any]:
        """Do one job; what goes wrong in a trial or a probe is its result."""
        return self._does[job.kind](job)

    def evaluation(self, job: Job) -> Mapping[str, Any]:
        """Make, score and time a plan: the trial boundary, where what goes wrong is recorded and the search goes on.

        Only the untouched model must not fail: nothing of it is recorded then, so that the same command tries again.
        """
        args = job.args
        plan, fidelity, leg = Plan(args["plan"]), args["fidelity"], int(args["leg"])
        _ = self.bench.reference  # made once a process: no trial is to seem slow for it
        try:
            found = self.timed(self.scored(job), job)
        except (KeyboardInterrupt, StoreError):
            raise
        except BaseException as error:  # the one place: a failed trial, whatever the user's code raised
            if fidelity == "untouched":
                raise self._unmeasured(error) from error
            found = failed(plan, fidelity, traceback.format_exc(limit=-6), leg=leg)
        return {"evaluation": as_data(found)}

    def scored(self, job: Job) -> Evaluation:
        """Make a plan's model, train it where the job says so, and score it."""
        args, bench = job.args, self.bench
        plan, fidelity, leg = Plan(args["plan"]), args["fidelity"], int(args["leg"])
        training = None
        if fidelity == "recovered":
            draft = bench.restore(plan, self.store.read_blob(args["weights"]))
            done = train(
                bench, plan, draft.model, seconds=args["training_s"], checkpoint=self._checkpoint(plan, leg), leg=leg,
                seed=self.seed,
                on_step=lambda p: self.tell("recover", f"rung {args['rung']}, step {p.step}, loss {p.loss:.3g}", p.seconds),
            )  # fmt: skip
            for note in done.notes:
                self.tell("recover", note, 0.0)
            draft = replace(draft, model=done.model)
            training = Training(args["rung"], done.seconds, done.steps, tuple(done.notes))
        else:
            draft = bench.build(plan)
        found = bench.score(plan, draft, fidelity=fidelity, predicted=args["predicted"])
        return replace(found, leg=leg, training=training)

    def timed(self, scored: Evaluation, job: Job) -> Evaluation:
        """Time what was scored; its checkpoint is then of no more use."""
        found = self.bench.time(
            scored, self.store.read_blob, reference_s=job.args["reference_s"], seconds=job.args["latency_s"]
        )
        if scored.leg:
            self._checkpoint(scored.plan, scored.leg).unlink(missing_ok=True)
        return found

    def entry(self, job: Job) -> Mapping[str, Any]:
        """Read one entry of the loss table; what goes wrong in it is its result."""
        knob, choice, samples = job.args["knob"], job.args["choice"], int(job.args["samples"])
        found: dict[str, Any] = {"knob": knob, "choice": choice, "samples": samples, "loss": None}
        try:
            loss = probing.loss_of(self.bench, knob, choice, samples=samples)
        except (KeyboardInterrupt, StoreError):
            raise
        except BaseException as error:  # noqa: BLE001 - a probe runs the user's model: what fails is told, and left as it is
            return {**found, "error": probing.one_line(error)}
        return {**found, "loss": loss} if math.isfinite(loss) else {**found, "error": f"its loss is {loss}"}

    def _facts(self, _: Job) -> Mapping[str, Any]:
        return {"facts": as_data(self.bench.facts)}

    def _header(self, job: Job) -> Mapping[str, Any]:
        """The header with what `verify` needs: real inputs to try files with, and weights that loading would train."""
        probe = safetensors.torch.save({"inputs": self.bench.validation[0][:PROBE].contiguous()})
        kept = {"probe": self.store.blob(probe), "machine": machine.describe()}
        if self.spec in TRAINED_ON_LOADING:
            kept["source_state"] = self.store.blob(packed(self.bench.work.model))
        return {"header": {**job.args["header"], **kept}}

    def _times(self, job: Job) -> Mapping[str, Any]:
        target, knobs = Target.parse(job.args["target"]), frozenset(job.args["knobs"])
        times, untimed = probing.layer_times(target, self._layers, knobs, seconds=job.args["seconds"])
        return {"times": times, "failed": untimed}

    @property
    def _layers(self) -> Any:
        prepared = self.store.get("prepare", "0")
        return facts_from(prepared["facts"]).layers if prepared else self.bench.facts.layers

    def _leg(self, job: Job) -> Mapping[str, Any]:
        """Which training of its plan this is, from 1: the same start and time find their number again."""
        legs = [row["leg"] for row in self.store.all("leg") if row["plan"] == job.args["plan"]]
        return {"plan": job.args["plan"], "leg": 1 + max(legs, default=0)}

    def _race(self, job: Job) -> Mapping[str, Any]:
        every = {e.key: e for e in (evaluation_from(row["evaluation"]) for row in self.store.all("evaluation"))}
        rivals = [every[key] for key in job.args["keys"]]
        return race_stored(
            self.store, every[job.args["baseline"]], rivals, seconds=job.args["seconds"], seed=int(job.args["seed"])
        )

    def _checkpoint(self, plan: Plan, leg: int) -> Any:
        return self.store.scratch(f"{plan.digest}-{leg}")

    def _unmeasured(self, error: BaseException) -> EquipoiseError:
        """What the user is told when even the untouched model cannot be evaluated."""
        reason = " ".join(str(error).split()) or "no message"
        said = reason if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {reason}"
        kind = InputError if isinstance(error, InputError) else EquipoiseError
        return kind(f"the untouched model could not be measured on {self.bench.targets[0]}: {said}")
