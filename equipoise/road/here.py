"""The executor of this process: does the jobs of a road, one after the other, on the machine whose times are compared."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import safetensors.torch
import torch

from equipoise.batch import mapped, stored
from equipoise.built_in import trained_on_loading
from equipoise.errors import EquipoiseError, InputError, StoreError
from equipoise.measure import machine
from equipoise.records import Evaluation, Plan, as_data, evaluation_from
from equipoise.road import probing
from equipoise.road.answers import Died
from equipoise.road.bench import Workbench, failed
from equipoise.road.facts import Facts
from equipoise.road.jobs import Job
from equipoise.road.racing import race_stored
from equipoise.runtimes import Target
from equipoise.study.store import Store
from equipoise.workloads import cautions
from equipoise.workloads.beside import shipped
from equipoise.workloads.weights import packed

PROBE = 32
"""Validation inputs whose answers an artifact carries."""


class Maker(Protocol):
    """What a trial may be left to."""

    def facts(self) -> Facts:
        """Return what can be changed in the model."""
        ...

    def begin(self, jobs: Sequence[Job]) -> None:
        """Hear which jobs will be asked for next: what can be done at once may be begun."""
        ...

    def scored(self, job: Job) -> Evaluation:
        """Return a plan made, trained and scored; what fails is raised."""
        ...

    def entry(self, job: Job) -> Mapping[str, Any]:
        """Return an entry of the loss table, or why it could not be read."""
        ...

    def estimates(self, job: Job) -> Mapping[str, Any]:
        """Return estimates of entries of the loss table, those that could be made."""
        ...


class Here:
    """Does jobs; what may be done anywhere is left to a maker, which may be this process or one of its own.

    Args:
        store: The study.
        bench: The workbench of this process.
        maker: Makes and scores plans.
        propose: Works out the proposal that the road is waiting for.
        spec: How the command line names the workload.
    """

    def __init__(
        self, store: Store, bench: Workbench, maker: Maker, propose: Callable[[], Mapping[str, Any]], *, spec: str = ""
    ) -> None:
        self.store, self.bench, self.spec = store, bench, spec
        self._maker, self._propose = maker, propose
        self._does: dict[str, Callable[[Job], Mapping[str, Any]]] = {
            "prepare": lambda _: {"facts": as_data(self.maker.facts())},
            "notes": lambda _: {"notes": list(cautions(self.bench.work))},
            "study": self._header,
            "meter": self._meter,
            "evaluation": self._evaluation,
            "new": self._evaluation,
            "table": lambda job: self.maker.entry(job),
            "guess": lambda job: self.maker.estimates(job),
            "lut": self._times,
            "proposal": lambda _: self._propose(),
            "leg": self._leg,
            "extent": lambda job: job.args,
            "untrained": lambda job: job.args,
            "final": self._race,
        }

    @cached_property
    def maker(self) -> Maker:
        """What makes plans, held to the space that the study was begun in."""
        menus = {row.knob.name: ", ".join(map(str, row.knob.menu)) for row in self._maker.facts().offered}
        self.store.identity({"space": menus}, part="space")
        return self._maker

    def begin(self, jobs: Sequence[Job]) -> None:
        """Let the maker begin jobs that are done together."""
        if len(jobs) > 1:
            self.maker.begin(jobs)

    def run(self, job: Job) -> Mapping[str, Any]:
        """Do one job; what goes wrong in a trial or a probe is its result."""
        return self._does[job.kind](job)

    def _evaluation(self, job: Job) -> Mapping[str, Any]:
        """Make, score and time a plan: the trial boundary, where what goes wrong is recorded and the search goes on.

        Only the untouched model must not fail: nothing of it is recorded then, so that the same command tries again.
        """
        args = job.args
        plan, fidelity, leg = Plan(args["plan"]), args["fidelity"], int(args["leg"])
        try:
            _ = self.bench.reference  # made once a process: no trial is to seem slow for it
            scored = self.maker.scored(job)
            read, seconds = self.store.read_blob, args["latency_s"]
            found = self.bench.time(scored, read, reference_s=args["reference_s"], seconds=seconds)
        except (KeyboardInterrupt, StoreError):
            raise
        except BaseException as error:  # the one place: a failed trial, whatever the user's code raised
            if fidelity == "untouched":
                raise self._unmeasured(error) from error
            found = failed(plan, fidelity, _told(error), leg=leg, predicted=args["predicted"])
        return {"evaluation": as_data(found)}

    def _header(self, job: Job) -> Mapping[str, Any]:
        """The header with what is kept: real inputs to try files with, weights that loading would train, files that ship."""
        probe = safetensors.torch.save(
            stored(mapped(self.bench.work.validation.take(PROBE).tensors()[0], torch.Tensor.contiguous))
        )
        work = self.bench.work
        files = {name: self.store.blob(content) for name, content in shipped(work.files, work.labels).items()}
        kept = {"probe": self.store.blob(probe), "files": files, "machine": machine.describe()}
        if trained_on_loading(self.spec):
            kept["source_state"] = self.store.blob(packed(work.model))
        return {"header": {**job.args["header"], **kept}}

    def _meter(self, job: Job) -> Mapping[str, Any]:
        """One more axis of what was evaluated for another budget."""
        row = self.store.get("evaluation", job.args["evaluation"])
        assert row is not None, "the road asks it of what is recorded"
        found = self.bench.metered(job.args["word"], evaluation_from(row["evaluation"]), self.store.read_blob)
        return {**job.args, "reading": as_data(found)}

    def _times(self, job: Job) -> Mapping[str, Any]:
        target, knobs = Target.parse(job.args["target"]), frozenset(job.args["knobs"])
        times, untimed = probing.layer_times(target, self.maker.facts().layers, knobs, seconds=job.args["seconds"])
        return {"times": times, "failed": untimed}

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

    def _unmeasured(self, error: BaseException) -> EquipoiseError:
        """What the user is told when even the untouched model cannot be evaluated."""
        reason = " ".join(str(error).split()) or "no message"
        said = reason if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {reason}"
        kind = InputError if isinstance(error, InputError) else EquipoiseError
        return kind(f"the untouched model could not be measured on {self.bench.targets[0]}: {said}")


def _told(error: BaseException) -> str:
    """What is recorded of a failed trial: its traceback, but of a dead child how it ended, as nothing of ours was wrong."""
    return str(error) if isinstance(error, Died) else traceback.format_exc(limit=-6)
