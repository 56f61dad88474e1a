"""What of a road can be done anywhere: a plan made, trained and scored, and an entry of the loss table read."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from equipoise.errors import StoreError
from equipoise.records import Choice, Evaluation, Plan, Training
from equipoise.road import probing
from equipoise.road.bench import Workbench
from equipoise.road.facts import Facts
from equipoise.road.jobs import Job
from equipoise.road.prober import Change, Prober
from equipoise.road.training import train
from equipoise.study.files import Files

Tell = Callable[[str, str, float], None]
"""Told about progress inside a job: stage, text, seconds since it began."""


@dataclass(frozen=True)
class Trials:
    """Makes and scores plans.

    Attributes:
        files: Where weights are read from and checkpoints lie.
        seed: Of the trainings.
    """

    bench: Workbench
    files: Files
    seed: int
    tell: Tell
    _changes: dict[tuple[str, Choice], Change] = field(default_factory=dict, repr=False)

    def facts(self) -> Facts:
        """Return what can be changed in the model."""
        return self.bench.facts

    def begin(self, jobs: Sequence[Job]) -> None:
        """One job at a time is done here."""

    def scored(self, job: Job) -> Evaluation:
        """Make a plan's model, train it where the job says so, and score it; what fails is raised."""
        args, bench, began = job.args, self.bench, time.perf_counter()
        plan, fidelity, leg = Plan(args["plan"]), args["fidelity"], int(args["leg"])
        training = None
        if fidelity == "untouched":
            draft = bench.untouched
        elif fidelity == "recovered":
            draft = bench.restore(plan, self.files.read_blob(args["weights"]))
            done = train(
                bench,
                plan,
                draft,
                seconds=args["training_s"],
                lost=args["lost"],
                checkpoint=self.files.scratch(f"{plan.digest}-{leg}"),
                leg=leg,
                seed=self.seed,
                hold="zeros" if draft.hold else None,
                on_step=lambda p: self.tell("recover", f"rung {args['rung']}, step {p.step}, loss {p.loss:.3g}", p.seconds),
            )
            for note in done.notes:
                self.tell("recover", note, 0.0)
            draft = replace(draft, model=done.model)
            training = Training(args["rung"], done.seconds, done.steps, tuple(done.notes))
        else:
            draft = bench.build(plan)
        found = bench.score(plan, draft, fidelity=fidelity, predicted=args["predicted"])
        return replace(found, leg=leg, training=training, seconds=time.perf_counter() - began)

    def entry(self, job: Job) -> Mapping[str, Any]:
        """Read one entry of the loss table; what goes wrong in it is its result."""
        knob, choice, samples = job.args["knob"], job.args["choice"], int(job.args["samples"])
        found: dict[str, Any] = {"knob": knob, "choice": choice, "samples": samples, "loss": None}
        try:
            loss = self._prober.loss(self._change(knob, choice), samples)
        except (KeyboardInterrupt, StoreError):
            raise
        except BaseException as error:  # noqa: BLE001 - a probe runs the user's model: what fails is told, and left as it is
            return {**found, "error": probing.one_line(error)}
        if not math.isfinite(loss.mean):
            return {**found, "error": f"its loss is {loss.mean}"}
        return {**found, "loss": loss.mean, "se": loss.error, "samples": loss.samples, "toward": loss.toward}

    def estimates(self, job: Job) -> Mapping[str, Any]:
        """Estimate entries to second order; none where the model cannot be estimated."""
        changes, apart = {}, bool(job.args.get("apart"))
        for knob, choice in job.args["entries"]:
            with contextlib.suppress(Exception):  # what cannot be made is no candidate: read, it would have failed
                changes[knob, choice] = self._change(knob, choice)
        try:
            found = self._prober.estimate(changes, apart=apart)
        except Exception as error:  # noqa: BLE001 - a backward pass through the user's model: without it they are predicted
            return {"estimated": [], "apart": apart, "error": probing.one_line(error)}
        rows = [[*key, loss.mean, loss.error] for key, loss in found.items() if math.isfinite(loss.mean)]
        return {"estimated": rows, "apart": apart}

    @cached_property
    def _prober(self) -> Prober:
        return probing.prober(self.bench)

    def _change(self, knob: str, choice: Choice) -> Change:
        key = (knob, choice)
        if key not in self._changes:
            self._changes[key] = probing.change_of(self.bench.builder, self._prober, knob, choice)
        return self._changes[key]
