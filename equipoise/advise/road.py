"""The same road before training: cost, plan, small runs, law, shape, answer.

Every costly step goes through the store, as on the other road, so a killed run goes on where it stood. What it gives is a range
of sizes with next to no regret and the cheapest of them to serve, or a refusal that says which runs would lift it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from equipoise import runtimes
from equipoise.advise import costs
from equipoise.advise.advice import Advice, read
from equipoise.advise.shapes import Shapes
from equipoise.advise.small_runs import FEWEST_STEPS, SmallRuns, in_quick_precision, recipe_for, tune
from equipoise.axes import SCALE_AXES
from equipoise.budget import Budget, parse_budget
from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.events import Event, Listener
from equipoise.measure import machine
from equipoise.progress import of_events
from equipoise.records import as_data, digest
from equipoise.road.walk import optimize
from equipoise.runtimes import Target
from equipoise.runtimes.base import check_threads
from equipoise.scaling import Available, Fit, PlannedRun, Run, fit, plan
from equipoise.scaling.decide import REACH
from equipoise.scaling.design import TooLittleTimeError
from equipoise.scaling.runs import BACKWARD
from equipoise.study.store import Store
from equipoise.training import Recipe
from equipoise.units import check_seed, duration, show
from equipoise.workloads import Task, Workload, as_family, as_task
from equipoise.workloads.families import Family, Scale

RUNS_SHARE, SHAPE_SHARE, COMPRESS_SHARE = 0.65, 0.8, 0.92
"""Shares of the time by which the runs of the plan, those on shape, and the compressor's branch end; costs take the rest."""
LADDER = 0.5
"""Doublings from one size of the family's own rule to the next."""
ROUND = 2
"""Runs on shape in a round, after the first, which moves each dimension alone."""
ROUNDS = 3
COSTED = 10
"""Candidates whose latency, memory and training time are measured."""


def scale(
    family: Family | str,
    task: Task | str,
    *,
    limits: str | None = None,
    time: str | float = "30min",
    target: str = "onnxruntime:cpu",
    requests: float | None = None,
    price_per_hour: float | None = None,
    store: str | Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    shape: bool = True,
    compress: bool = True,
    spec: str = "",
    listen: Listener | None = None,
) -> Advice:
    """Say how large a model of `family` the data and the limits deserve, by a dozen small runs and a law fitted to them.

    Args:
        family: Builds a model of every scale; or its name, as on the command line.
        task: What must be learned, or its name; its test split is never read.
        limits: ``"train<=2h, latency<=5ms, cost<=50$, size<=5MB"``. `train` (or `cost`, with a price) is what each size is
            trained for; without it, 4 times the compute of the largest runs.
        time: Wall time for all small runs and measurements (a quantity, or seconds).
        target: Where it will be served.
        requests: Expected over the life of the model: then training and serving together decide within the range.
        price_per_hour: Dollars for an hour of this machine.
        store: Folder of the record. The same call again goes on where the last one stopped.
        seed: Of every random choice; recorded.
        recipe: A ``wsd`` recipe; None takes one for the kind of inputs, in the precision in which a step is quicker here, and
            finds its learning rate on the quickest run.
        shape: Whether the genetic search looks for better shapes than the family's own rule of growth.
        compress: Whether "train larger, then compress down" competes, by the compressor's own measured front.
        spec: How the command line names family and task; recorded.
        listen: Told about every step; None shows a line of progress in a notebook or an interactive session.
    Raises:
        InputError: Anything that cannot be used, before any run.
        StoreError: The store cannot be written, or belongs to another family, task or seed.
    """
    bounds = parse_budget(limits, axes=SCALE_AXES)
    seconds = duration(time)
    check_seed(seed)
    for name, value in (("requests", requests), ("price_per_hour", price_per_hour)):
        if value is not None and not 0 < value < math.inf:
            raise must_be(name, "a finite number above 0", value, "Leave it out where it is not known.")
    if price_per_hour is None and (bounds.bound("cost") is not None or bounds.bound("price") is not None):
        raise must_be("price_per_hour", "given with a limit on cost or price", None, "Pass the price of this machine.")
    where = Target.parse(target)
    if reason := runtimes.get(where.runtime).unavailable():
        raise must_be("target", "a runtime that can be used here", target, reason)
    check_threads(where)
    kind, learned = as_family(family), as_task(task)
    spec = spec or " ".join(given for given in (family, task) if isinstance(given, str))
    chosen = recipe or recipe_for(learned)
    if chosen.schedule != "wsd":
        raise must_be("recipe.schedule", "wsd, whose runs can share a trunk", chosen.schedule, 'Use schedule="wsd".')
    with Store.open(store) as opened:
        opened.identity({"family": kind.name, "task": learned.fingerprint, "target": str(where), "seed": seed})
        advisor = Advisor(
            opened,
            kind,
            learned,
            bounds,
            seconds,
            where,
            requests,
            price_per_hour,
            seed,
            chosen,
            recipe is None,
            shape,
            compress,
            spec,
            listen or of_events(),
        )
        return advisor.walk()


@dataclass
class Advisor:
    """One walk; the fields below `listen` fill as it goes."""

    store: Store
    family: Family
    task: Task
    limits: Budget
    limit_s: float
    target: Target
    requests: float | None
    price_per_hour: float | None
    seed: int
    recipe: Recipe
    finds: bool
    shape: bool
    compress: bool
    spec: str
    listen: Listener
    spent_s: float = 0.0
    _least_s: float = 0.0
    _few: InputError | None = None
    _rated: dict[str, float] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)

    def walk(self) -> Advice:
        """Walk it all and return the answer."""
        self.tell("prepare", "count the family's sizes")
        if self.finds:
            self.recipe = in_quick_precision(self.recipe, self.family, self.task, partial(self.step, "precision"))
        self.small_runs = SmallRuns(self.family, self.task, self.recipe, self.seed, self.store)
        rates = self.rates()
        planned = self.planned(rates)
        self.runs(planned)
        fitted = fit([Run(**row["run"]) for row in self.found], seed=self.seed)
        compute = self.compute(rates, planned)
        shapes = self.shapes(fitted, planned, compute) if self.shape else None
        branch = self.branch(planned) if self.compress else {"reason": "it was not asked for"}
        costed = self.costs(fitted, shapes, compute)
        header = {
            "schema": 1,
            "family": self.family.name,
            "task": self.task.name,
            "spec": self.spec,
            "target": str(self.target),
            "limits": self.limits.text,
            "seed": self.seed,
            "time_s": self.limit_s,
            "requests": self.requests,
            "price_per_hour": self.price_per_hour,
            "unique": self.small_runs.unique,
            "compute": compute,
            "metric": self.task.metric.about(),
            "recipe": as_data(self.small_runs.recipe),
        }
        key, asked = digest(header), self.store.all("asked")

        def answer() -> dict[str, Any]:
            return {"header": {**header, "machine": machine.describe()}, "costs": costed, "branch": branch}

        self.step("advice", key, answer)
        if not asked or asked[-1]["advice"] != key:  # `read` gives the answer to what was asked last
            self.store.put("asked", str(len(asked)), {"advice": key}, seconds=0.0)
        return read(self.store)

    def tell(self, stage: str, text: str, *, extra_s: float = 0.0) -> None:
        """Report progress; `extra_s` is the time of a step that is still going on."""
        self.listen(Event(stage, text, self.spent_s + extra_s, self.limit_s))

    def step(self, kind: str, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Take one step through the store and count its recorded time."""
        data = self.store.timed(kind, key, compute)
        self.spent_s += data["seconds"]
        return data

    def left(self, share: float, limit_s: float | None = None) -> float:
        """Seconds until `share` of the time (or of another limit) is spent, by recorded times only."""
        return (self.limit_s if limit_s is None else limit_s) * share - self.spent_s

    def available(self, scale: Scale) -> Available:
        """Count a scale once."""
        key = tuple(scale.items())
        if key not in self._counted:
            self._counted[key] = self.small_runs.available(scale)
        return self._counted[key]

    @cached_property
    def _counted(self) -> dict[tuple[tuple[str, float], ...], Available]:
        return {}

    def rates(self, limit_s: float | None = None) -> dict[str, list[float]]:
        """Measure the training seconds of a sample at sizes from a 64th of the usual up, as long as a step is quick.

        What is quick is a matter of the time that there is, or would be (`limit_s`).
        """
        limit_s = self.limit_s if limit_s is None else limit_s
        out: dict[str, list[float]] = {"work": [], "sample_s": []}
        for factor in (1 / 64, 1 / 16, 1 / 4, 1.0):
            size = self._grown(factor)
            if size is None or (out["work"] and size.flops_per_sample <= 1.2 * out["work"][-1]):
                continue
            name = costs.named(size.scale)
            if name not in self._rated:
                self.tell("prepare", f"time training steps at {name}")
                row = self.step("rate", name, lambda s=size: {"sample_s": self._sample_s(s)})  # type: ignore[misc]
                self._rated[name] = row["sample_s"]
            out["work"].append(size.flops_per_sample)
            out["sample_s"].append(self._rated[name])
            if self._rated[name] * self._per_step * FEWEST_STEPS > limit_s / 20:
                break
        if not out["work"]:
            raise must_be("family", "able to grow from its defaults", self.family.name, "Give it a dimension named width.")
        return out

    def _sample_s(self, size: Available) -> float:
        return costs.sample_time(self.small_runs.model(size.scale), self.task, self.recipe).get()

    def _grown(self, factor: float) -> Available | None:
        try:
            return self.available(self.family.grow(factor))
        except InputError:
            return None  # the family does not reach that far

    def _rate(self, rates: Mapping[str, list[float]], size: Available) -> float:
        """Training FLOP/s at a size: a sample of a small one takes no less than that of the smallest measured."""
        work, seconds = rates["work"], rates["sample_s"]
        at = size.flops_per_sample
        each = np.interp(at, work, seconds) if at <= work[-1] else seconds[-1] * at / work[-1]
        return float(BACKWARD * at / each)

    def ladder(self, rates: Mapping[str, list[float]], most_s: float) -> tuple[Available, ...]:
        """Return the sizes of the family's own rule, ascending, up to where `FEWEST_STEPS` steps take `most_s` seconds."""

        def seconds(size: Available) -> float:
            return BACKWARD * size.flops_per_sample * self._per_step * FEWEST_STEPS / self._rate(rates, size)

        sizes = self._sizes(20, lambda size: seconds(size) > most_s)
        return tuple(size for size in sizes if size.flops_per_sample >= 0.99 * rates["work"][0])

    def reachable(self, fitted: Fit) -> tuple[Available, ...]:
        """Return the sizes of the family's own rule, ascending, up to twice beyond what may be recommended.

        The best of them may then lie out of reach, and be refused for it, instead of being cut off unseen.
        """
        most = 2 * REACH * max(run.flops_per_sample for run in fitted.runs)
        return self._sizes(30, lambda size: size.flops_per_sample > most)

    def _sizes(self, last: int, too_large: Callable[[Available], bool]) -> tuple[Available, ...]:
        """The sizes of the family's own rule, ascending, up to `last` rungs above the usual or the first that is too large."""
        sizes: dict[float, Available] = {}
        for number in range(-20, last + 1):
            size = self._grown(2.0 ** (LADDER * number))
            if size is None:
                continue
            if too_large(size):
                break
            sizes[size.flops_per_sample] = size
        return tuple(sizes[work] for work in sorted(sizes))

    @property
    def _per_step(self) -> int:
        return self.recipe.batch * self.small_runs.positions

    def planned(self, rates: Mapping[str, list[float]]) -> tuple[PlannedRun, ...]:
        """Find the learning rate and lay out the runs within their share of the time."""
        first = self._laid_out(rates, self.limit_s)
        if first is None:
            raise self._too_little()
        runs = first
        if self.finds:
            self.tell("tune", "find the learning rate on the quickest run")
            self.small_runs = tune(self.small_runs, first, partial(self._rate, rates), partial(self.step, "learning"))
            # the search may have taken longer than a tenth of the share: what was found to fit is then kept
            runs = self._laid_out(rates, self.limit_s, tuned=True) or first
        row = self.step("plan", "0", lambda: {"runs": [as_data(run) for run in runs]})
        return tuple(PlannedRun(**{**r, "available": Available(**r["available"])}) for r in row["runs"])

    def _laid_out(
        self, rates: Mapping[str, list[float]], limit_s: float, *, tuned: bool = False
    ) -> tuple[PlannedRun, ...] | None:
        """Lay out the runs in their share of the time, a tenth of it left for the search of the rate; None: too little time."""
        share = 0.9 if self.finds and not tuned else 1.0
        menu = self.ladder(rates, limit_s * RUNS_SHARE / 6)
        self._least_s, self._few = 2 * limit_s, None  # where not even three sizes fit
        if len(menu) < 3:
            return None
        options = {
            "flops_per_s": [self._rate(rates, size) for size in menu],
            "unique": self.small_runs.unique,
            "cooldown": self.recipe.decay_share,
            "fewest_samples": float(FEWEST_STEPS * self._per_step),
        }
        seconds = max(self.left(RUNS_SHARE, limit_s) * share, 1e-9)
        try:
            return plan(menu, seconds=seconds, **options).runs  # type: ignore[arg-type]
        except TooLittleTimeError as error:
            self._least_s = 1.1 * (error.least_s / share + self.spent_s) / RUNS_SHARE
        except InputError as error:  # too few sizes: those that take longer are missing, or the family has no more
            self._few = error
        return None

    def _too_little(self) -> InputError:
        """Return the error that names a time which is enough: tried on all that would be measured in it, so that it holds."""
        for _ in range(8):
            enough = duration(show(max(self._least_s, 1.05 * self.limit_s), "s"))
            if self._laid_out(self.rates(enough), enough):
                what = f"{RUNS_SHARE:.0%} of it is for a dozen runs of {FEWEST_STEPS} steps or more"
                wanted = f"at least {show(enough, 's')}: {what}"
                break
        else:
            if self._few is not None:  # nor are there more sizes in 256 times the time
                return self._few
            wanted = f"long enough for {FEWEST_STEPS} steps of three sizes"
        return must_be("time", wanted, show(self.limit_s, "s"), "Give more, or a family with more and smaller sizes.")

    def runs(self, planned: Sequence[PlannedRun]) -> None:
        """Make every run of the plan, small ones first."""
        for number, run in enumerate(sorted(planned, key=lambda r: r.flops), start=1):
            same = [r for r in planned if r.available == run.available and r.unique is None and r.samples < run.samples]
            self._run(run, same, f"{number}/{len(planned)}")

    def _run(self, run: PlannedRun, same: Sequence[PlannedRun], number: str, *, label: str = "") -> Run:
        told = f"run {number}: {costs.named(run.available.scale)}, {run.samples:.3g} samples"
        self.tell("train", told)

        def make() -> Mapping[str, Any]:
            return {
                **self.small_runs.run(run, same, on_step=lambda p: self.tell("train", f"{told}, {p}", extra_s=p.seconds)),
                "label": label,
            }

        row = self.step("run", _key(run), make)
        if not label:
            self.found.append(row)
        return Run(**row["run"])

    def compute(self, rates: Mapping[str, list[float]], planned: Sequence[PlannedRun]) -> dict[str, float | None]:
        """Return what each size will be trained for: ``seconds`` of this machine, or ``flops`` where no limit says."""
        seconds = self.limits.bound("train")
        cost = self.limits.bound("cost")
        if cost is not None and self.price_per_hour:
            paid = 3600.0 * cost / self.price_per_hour
            seconds = paid if seconds is None else min(seconds, paid)
        flops = 4.0 * max(BACKWARD * r.available.flops_per_sample * r.samples for r in planned)
        middle = planned[len(planned) // 2].available
        return {"seconds": seconds, "flops": flops if seconds is None else seconds * self._rate(rates, middle)}

    def shapes(self, fitted: Fit, planned: Sequence[PlannedRun], compute: Mapping[str, float | None]) -> Shapes:
        """Move each dimension alone, then let the genetic search propose runs, round by round."""
        known = Shapes(self.family, self.available, self.reachable(fitted), fitted)
        levels = sorted({r.level for r in planned if r.level >= 0})
        middle = [r for r in planned if r.level == levels[len(levels) // 2]]
        base = min(middle, key=lambda r: Run(**self._row(r)["run"]).loss)
        flops = BACKWARD * base.available.flops_per_sample * base.samples
        tried: list[Run] = []
        for number in range(ROUNDS):
            wanted = known.star(base.available) if not number else self._proposed(known, number, flops)
            rows = self.step("shapes", str(number), lambda w=wanted: {"scales": [dict(s) for s in w]})["scales"]  # type: ignore[misc]
            for i, values in enumerate(rows, start=1):
                size = self.available(self.family.scale(**values))
                samples = flops / (BACKWARD * size.flops_per_sample)
                if self.left(SHAPE_SHARE) <= 0 or samples < FEWEST_STEPS * self._per_step:
                    continue
                run = PlannedRun(size, samples, samples * (1 - self.recipe.decay_share), flops, -2)
                tried.append(self._run(run, (), f"shape {number}.{i}", label="shape"))
            known = known.taught(tried)
        return known

    def _row(self, run: PlannedRun) -> dict[str, Any]:
        found = self.store.get("run", _key(run))
        assert found is not None
        return found

    def _proposed(self, known: Shapes, number: int, flops: float) -> list[Scale]:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number,)))
        self.tell("shape", f"round {number}: search the shapes")
        seen = {digest(dict(row["run"]["scale"])) for row in self.store.all("run")}
        front = known.search(flops, rng=rng, hopeful=True)
        fresh = [a for a, _ in front if digest({k: float(v) for k, v in a.scale.items()}) not in seen]
        return [a.scale for a in fresh[:ROUND]]

    def branch(self, planned: Sequence[PlannedRun]) -> dict[str, Any]:
        """Compress the largest trained run: what its size can be brought down to, by a study of its own."""
        largest = max((r for r in planned if r.level >= 0), key=lambda r: (r.available.flops_per_sample, r.samples))
        seconds = self.left(COMPRESS_SHARE)
        self.tell("compress", f"compress the run of {costs.named(largest.available.scale)}")

        def make() -> dict[str, Any]:
            if seconds <= 0:
                return {"reason": "no time was left for it"}
            try:
                work = Workload(
                    model=self.small_runs.trained(self._row(largest)),
                    train=self.task.train,
                    validation=self.task.validation,
                    test=self.task.test,
                    metric=self.task.metric,
                    loss=self.task.loss,
                    name=self.task.name,
                )
                study = optimize(
                    work,
                    target=str(self.target),
                    time=seconds,
                    store=self.store.path / "compressed",
                    seed=self.seed,
                    recovery=False,
                    listen=lambda event: None,
                )
            except EquipoiseError as error:
                return {"reason": str(error).splitlines()[0]}
            base = study.baseline
            points = [
                {
                    "plan": dict(e.plan.choices),
                    "loss": e.damage,
                    "drop": e.drop.get(),
                    "latency": e.axis("latency_s").get() / base.axis("latency_s").get(),
                    "size": e.axis("size_bytes").get() / base.axis("size_bytes").get(),
                }
                for e in study.front
                if e.fidelity != "untouched"
            ]
            return {"reason": "", "scale": dict(largest.available.scale), "points": points}

        return self.step("compressed", "0", make)

    def costs(self, fitted: Fit, shapes: Shapes | None, compute: Mapping[str, float | None]) -> list[dict[str, Any]]:
        """Measure what the sizes around the best, and the best shapes, cost to train and to serve."""
        flops = compute["flops"]
        assert flops is not None
        menu = self.reachable(fitted)

        def loss(size: Available) -> float:
            samples = flops / (BACKWARD * size.flops_per_sample)
            return float(fitted.law.loss(size.size(fitted.law.size), samples, min(samples, self.small_runs.unique)))

        ray = sorted(menu, key=loss)[: COSTED - 2]
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(99,)))
        best = [] if shapes is None else [a for a, _ in shapes.search(flops, rng=rng, hopeful=False)]
        near = [a for a in best if a not in menu and a.flops_per_sample <= menu[-1].flops_per_sample][:2]
        chosen = [*sorted(ray, key=lambda a: a.flops_per_sample), *near]

        def make() -> dict[str, Any]:
            rows = costs.costs(
                self.family,
                self.task,
                [a.scale for a in chosen],
                target=self.target,
                recipe=self.recipe,
                seconds=max(3.0, self.limit_s / 60),
                seed=self.seed,
                on_step=lambda text: self.tell("costs", text),
            )
            shifts = (np.zeros(len(chosen)), np.zeros(len(chosen))) if shapes is None else shapes.shift(chosen)
            return {
                "rows": [
                    {**as_data(row), "available": as_data(a), "shift": float(m), "shift_sd": float(s)}
                    for row, a, m, s in zip(rows, chosen, *shifts, strict=True)
                ]
            }

        found: list[dict[str, Any]] = self.step("costs", digest([dict(a.scale) for a in chosen]), make)["rows"]
        return found


def _key(run: PlannedRun) -> str:
    """The name of a run in the store."""
    return digest({"scale": dict(run.available.scale), "samples": run.samples, "unique": run.unique})
