"""The executor of the advisor in this process: times steps, trains small runs, compresses one, measures what sizes cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from equipoise.errors import EquipoiseError
from equipoise.measure import machine
from equipoise.records import as_data
from equipoise.road.jobs import Job
from equipoise.road.trials import Tell
from equipoise.road.walk import optimize
from equipoise.runtimes import Target
from equipoise.sizing.costs import costs, sample_time
from equipoise.sizing.small_runs import SmallRuns, planned_from, step_seconds
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.training import Recipe
from equipoise.workloads import Task
from equipoise.workloads.families import Family


class Here:
    """Does jobs, one after the other.

    Args:
        store: Where weights and checkpoints lie, and the compressor's own study.
        target: Where it will be served.
        seed: Of every random choice.
        propose: Works out the shapes that the road is waiting for.
        tell: Told about progress inside a job.
    """

    def __init__(
        self,
        store: Store,
        family: Family,
        task: Task,
        *,
        target: Target,
        seed: int,
        propose: Callable[[], Mapping[str, Any]],
        tell: Tell,
    ) -> None:
        self.store, self.family, self.task, self.target, self.seed, self.tell = store, family, task, target, seed, tell
        self._does: dict[str, Callable[[Job], Mapping[str, Any]]] = {
            "precision": lambda job: step_seconds(Recipe(**job.args["recipe"]), family, task),
            "rate": self._rate,
            "learning": lambda job: self._small_runs(job).short(planned_from(job.args["run"])),
            "plan": lambda job: job.args,
            "run": self._run,
            "shapes": lambda _: propose(),
            "compressed": self._compressed,
            "costs": self._costs,
            "advice": lambda job: {**job.args, "header": {**job.args["header"], "machine": machine.describe()}},
        }

    def begin(self, jobs: Sequence[Job]) -> None:
        """One job at a time is done here."""

    def run(self, job: Job) -> Mapping[str, Any]:
        """Do one job."""
        return self._does[job.kind](job)

    def _small_runs(self, job: Job) -> SmallRuns:
        return SmallRuns(self.family, self.task, Recipe(**job.args["recipe"]), self.seed, self.store, job.args.get("tuned_at"))

    def _rate(self, job: Job) -> Mapping[str, Any]:
        made = self._small_runs(job)
        return {"sample_s": sample_time(made.model(job.args["scale"]), self.task, made.recipe).get()}

    def _run(self, job: Job) -> Mapping[str, Any]:
        planned, before = planned_from(job.args["run"]), [planned_from(row) for row in job.args["before"]]
        made = self._small_runs(job).run(planned, before, on_step=lambda p: self.tell("train", f"{job.name}, {p}", p.seconds))
        return {**made, "label": job.args["label"]}

    def _compressed(self, job: Job) -> Mapping[str, Any]:
        """Points of the compressor's own front, as ratios to the model that it began with; or the ``reason`` for none."""
        scale, runs = job.args["scale"], SmallRuns(self.family, self.task, Recipe(), self.seed, self.store)
        try:
            study = optimize(
                self.task.workload(runs.trained(scale, job.args["weights"])),
                target=str(self.target),
                time=job.args["seconds"],
                store=self.store.path / "compressed",
                seed=self.seed,
                recovery=False,
                listen=lambda event: None,
            )
        except EquipoiseError as error:
            return {"reason": str(error).splitlines()[0]}
        return {"reason": "", "scale": scale, "points": _points(study, job.args["loss"])}

    def _costs(self, job: Job) -> Mapping[str, Any]:
        rows = job.args["rows"]
        found = costs(
            self.family,
            self.task,
            [row["available"]["scale"] for row in rows],
            target=self.target,
            recipe=Recipe(**job.args["recipe"]),
            seconds=job.args["seconds"],
            seed=self.seed,
            on_step=lambda text: self.tell("costs", text, 0.0),
        )
        return {"rows": [{**as_data(cost), **row} for cost, row in zip(found, rows, strict=True)]}


def _points(study: Study, loss: float) -> list[dict[str, Any]]:
    """The front of a study, beside the model that it began with and the `loss` that this had, in nats."""
    base = study.baseline

    def ratio(e: Any, axis: str) -> float:
        return float(e.axis(axis).get() / base.axis(axis).get())

    return [
        {
            "plan": dict(e.plan.choices), "loss": e.damage / loss, "drop": e.drop.get(),
            "latency": ratio(e, "latency_s"), "size": ratio(e, "size_bytes"),
        }
        for e in study.front
        if e.fidelity != "untouched" and e.damage is not None
    ]  # fmt: skip
