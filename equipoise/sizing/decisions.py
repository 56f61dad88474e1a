"""The road before training: rate, plan, small runs, law, shapes, the compressor's branch, costs, answer; it only decides.

Every job is named here and done elsewhere. Each decision depends on what was asked and what is recorded alone, so a killed run
goes on where it stood, and a test walks it all with an executor that answers from a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from equipoise.budget import Budget
from equipoise.errors import InputError, must_be
from equipoise.events import Listener
from equipoise.records import as_data, digest
from equipoise.road.jobs import Job, Record, Steps, Walk
from equipoise.scaling import Available, Fit, PlannedRun, Run, fit, plan
from equipoise.scaling.design import TooLittleTimeError
from equipoise.scaling.runs import BACKWARD
from equipoise.sizing.advice import HEADER_SCHEMA
from equipoise.sizing.costs import named
from equipoise.sizing.shapes import Shapes
from equipoise.sizing.sizes import Rates, Sizes
from equipoise.sizing.small_runs import FEWEST_STEPS, in_quick_precision, planned_from, quickest, rates_to_try
from equipoise.training import Recipe
from equipoise.units import duration, show
from equipoise.workloads.families import Scale

RUNS_SHARE, SHAPE_SHARE, COMPRESS_SHARE = 0.65, 0.8, 0.92
"""Shares of the time by which the runs of the plan, those on shape, and the compressor's branch end; costs take the rest."""
TIMED = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""Sizes, in times of the usual, whose training steps are timed before anything is planned."""
ROUND = 2
"""Runs on shape in a round, after the first, which moves each dimension alone."""
ROUNDS = 3
COSTED = 10
"""Candidates whose latency, memory and training time are measured."""


@dataclass(frozen=True)
class Asked:
    """What the user asked of which family and task, as far as decisions depend on it.

    Attributes:
        sizes: Of the family, counted for the task.
        limits: What training and serving may cost.
        recipe: A ``wsd`` recipe.
        finds: Whether the recipe's precision and learning rate are found first.
        shape, compress: Whether shapes are searched, and "train larger, then compress down" competes.
        positions: Answers in a sample; samples are counted in these.
        unique: Distinct samples there are.
        about: Fields of the answer's header that only tell: ``family``, ``task``, ``spec``, ``target``, ``requests``,
            ``metric``.
    """

    sizes: Sizes
    limits: Budget
    limit_s: float
    seed: int
    recipe: Recipe
    finds: bool
    shape: bool
    compress: bool
    positions: int
    unique: float
    price_per_hour: float | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Short:
    """Why no runs could be laid out in a time.

    Attributes:
        least_s: The time to try next.
        few: What is wrong with the sizes, where they are too few.
    """

    least_s: float
    few: InputError | None = None


class Advisor(Walk):
    """The decisions of one walk; `next` gives the jobs."""

    def __init__(self, asked: Asked, listen: Listener) -> None:
        super().__init__(asked.limit_s, listen)
        self.asked, self.sizes = asked, asked.sizes
        self.recipe = asked.recipe
        self.tuned_at: Scale | None = None
        self.made: dict[str, dict[str, Any]] = {}
        self.answer = ""
        self._propose: Callable[[], list[Scale]] | None = None

    def walk(self, record: Record) -> Steps[None]:
        """Yield the jobs of the road in their order."""
        asked = self.asked
        self.tell("prepare", "count the family's sizes")
        if asked.finds:
            job = Job(
                "precision", "precision", {"recipe": as_data(self.recipe)}, "measuring host", says="timing two precisions"
            )
            self.recipe = in_quick_precision(self.recipe, (yield from self.step(job)))
        self.rates = yield from self._timed(self.limit_s)
        planned = yield from self._planned()
        for number, run in enumerate(sorted(planned, key=lambda r: r.flops), start=1):  # small ones first
            same = [r for r in planned if r.available == run.available and r.unique is None and r.samples < run.samples]
            yield from self._run(run, f"{number}/{len(planned)}", before=same)
        fitted = fit([Run(**row["run"]) for row in self.made.values()], seed=asked.seed)
        compute = self._compute(planned)
        shapes = (yield from self._shapes(fitted, planned, compute["flops"])) if asked.shape else None
        branch = (yield from self._branch(planned)) if asked.compress else {"reason": "it was not asked for"}
        costed = yield from self._costs(fitted, shapes, compute["flops"])
        header = {
            **asked.about, "schema": HEADER_SCHEMA, "limits": asked.limits.text, "seed": asked.seed, "time_s": self.limit_s,
            "price_per_hour": asked.price_per_hour, "unique": asked.unique, "compute": compute, "recipe": as_data(self.recipe),
            "tuned_at": self.tuned_at,
        }  # fmt: skip
        self.answer = digest(header)
        yield from self.step(Job("advice", self.answer, {"header": header, "costs": costed, "branch": branch}))

    def proposal(self) -> dict[str, Any]:
        """Return the shapes that the road is waiting for; the one job that is worked out from what the road itself knows."""
        assert self._propose is not None, "no proposal is waited for"
        return {"scales": [dict(scale) for scale in self._propose()]}

    # ---- the plan ------------------------------------------------------------------------------------------------------------

    def _timed(self, limit_s: float) -> Steps[Rates]:
        """Have training steps timed at sizes from a 64th of the usual up, as long as a step is quick.

        What is quick is a matter of the time that there is, or would be (`limit_s`).
        """
        work: list[float] = []
        seconds: list[float] = []
        for size in filter(None, map(self.sizes.grown, TIMED)):
            if work and size.flops_per_sample <= 1.2 * work[-1]:
                continue
            name = named(size.scale)
            args = {"scale": dict(size.scale), "recipe": as_data(self.recipe)}
            job = Job("rate", name, args, "measuring host", says=f"timing training steps at {name}")
            if not self.walked(job):
                self.tell("prepare", f"time training steps at {name}")
            work.append(size.flops_per_sample)
            seconds.append((yield from self.step(job))["sample_s"])
            if seconds[-1] * self._fewest > limit_s / 20:
                break
        if not work:
            name = self.sizes.family.name
            raise must_be("family", "able to grow from its defaults", name, "Give it a dimension named width.")
        return Rates(tuple(work), tuple(seconds))

    @property
    def _fewest(self) -> int:
        """Samples in the steps below which a run says little."""
        return FEWEST_STEPS * self.recipe.batch * self.asked.positions

    def _planned(self) -> Steps[tuple[PlannedRun, ...]]:
        """Have the learning rate found and lay out the runs within their share of the time."""
        first = self._laid_out(self.rates, self.limit_s, share=0.9 if self.asked.finds else 1.0)
        if isinstance(first, Short):
            raise (yield from self._too_little(first))
        runs = first
        if self.asked.finds:
            yield from self._tune(first)
            # the search may have taken longer than a tenth of the share: what was found to fit is then kept
            again = self._laid_out(self.rates, self.limit_s)
            runs = first if isinstance(again, Short) else again
        row = yield from self.step(Job("plan", "0", {"runs": [as_data(run) for run in runs]}))
        return tuple(map(planned_from, row["runs"]))

    def _tune(self, planned: Sequence[PlannedRun]) -> Steps[None]:
        """Have the learning rate found on the quickest run."""
        self.tell("tune", "find the learning rate on the quickest run")
        run = quickest(planned, self.rates.flops_per_s)
        losses: dict[float, float] = {}
        while (found := rates_to_try(self.asked.recipe.lr, losses))[1]:
            for lr in found[1]:
                args = {"run": as_data(run), "recipe": as_data(replace(self.recipe, lr=lr))}
                expected = self.rates.seconds(run.available, run.samples)
                losses[lr] = (yield from self.step(Job("learning", f"lr={lr:.3g}", args, expected_s=expected)))["loss"]
        self.recipe, self.tuned_at = replace(self.recipe, lr=found[0]), dict(run.available.scale)

    def _laid_out(self, rates: Rates, limit_s: float, *, share: float = 1.0) -> tuple[PlannedRun, ...] | Short:
        """Lay out the runs in what is left of their share of `limit_s`, or in a `share` of that."""
        menu = self.sizes.trainable(rates, self._fewest, limit_s * RUNS_SHARE / 6)
        if len(menu) < 3:
            return Short(2 * limit_s)
        try:
            return plan(
                menu,
                seconds=max((limit_s * RUNS_SHARE - self.spent_s) * share, 1e-9),
                flops_per_s=[rates.flops_per_s(size) for size in menu],
                unique=self.asked.unique,
                cooldown=self.recipe.decay_share,
                fewest_samples=float(self._fewest),
            ).runs
        except TooLittleTimeError as error:
            return Short(1.1 * (error.least_s / share + self.spent_s) / RUNS_SHARE)
        except InputError as error:  # too few sizes: those that take longer are missing, or the family has no more
            return Short(2 * limit_s, error)

    def _too_little(self, short: Short) -> Steps[InputError]:
        """Return the error that names a time which is enough: tried on all that would be measured in it, so that it holds."""
        for _ in range(8):
            enough = duration(show(max(short.least_s, 1.05 * self.limit_s), "s"))
            found = self._laid_out((yield from self._timed(enough)), enough, share=0.9 if self.asked.finds else 1.0)
            if not isinstance(found, Short):
                what = f"{RUNS_SHARE:.0%} of it is for a dozen runs of {FEWEST_STEPS} steps or more"
                wanted = f"at least {show(enough, 's')}: {what}"
                break
            short = found
        else:
            if short.few is not None:  # nor are there more sizes in 256 times the time
                return short.few
            wanted = f"long enough for {FEWEST_STEPS} steps of three sizes"
        return must_be("time", wanted, show(self.limit_s, "s"), "Give more, or a family with more and smaller sizes.")

    # ---- the runs ------------------------------------------------------------------------------------------------------------

    def _run(
        self, run: PlannedRun, number: str, *, before: Sequence[PlannedRun] = (), label: str = ""
    ) -> Steps[dict[str, Any]]:
        """Have a run made; its row is kept.

        Args:
            before: Runs of the same size that its trunk passes on its way.
        """
        told = f"run {number}: {named(run.available.scale)}, {run.samples:.3g} samples"
        self.tell("train", told)
        args = {
            "run": as_data(run), "before": [as_data(r) for r in before], "recipe": as_data(self.recipe),
            "tuned_at": self.tuned_at, "label": label,
        }  # fmt: skip
        expected = self.rates.seconds(run.available, run.samples)
        self.made[_key(run)] = yield from self.step(Job("run", _key(run), args, expected_s=expected, says=told))
        return self.made[_key(run)]

    def _compute(self, planned: Sequence[PlannedRun]) -> dict[str, Any]:
        """Return what each size will be trained for: ``seconds`` of this machine, or ``flops`` where no limit says."""
        seconds, cost = self.asked.limits.bound("train"), self.asked.limits.bound("cost")
        if cost is not None and self.asked.price_per_hour:
            paid = 3600.0 * cost / self.asked.price_per_hour
            seconds = paid if seconds is None else min(seconds, paid)
        flops = 4.0 * max(BACKWARD * r.available.flops_per_sample * r.samples for r in planned)
        middle = planned[len(planned) // 2].available
        return {"seconds": seconds, "flops": flops if seconds is None else seconds * self.rates.flops_per_s(middle)}

    def _shapes(self, fitted: Fit, planned: Sequence[PlannedRun], compute: float) -> Steps[Shapes]:
        """Have each dimension moved alone, then the runs that the genetic search proposes, round by round."""
        known = Shapes(self.sizes.family, self.sizes.available, self._reachable(fitted), fitted, unique=self.asked.unique)
        levels = sorted({r.level for r in planned if r.level >= 0})
        middle = [r for r in planned if r.level == levels[len(levels) // 2]]
        base = min(middle, key=lambda r: float(self.made[_key(r)]["run"]["loss"]))
        flops = BACKWARD * base.available.flops_per_sample * base.samples
        tried: list[Run] = []
        for number in range(ROUNDS):
            if self.left(SHAPE_SHARE) <= 0:
                break
            if number:
                self.tell("shape", f"round {number}: search the shapes")
            self._propose = partial(self._proposed, known, flops, number) if number else partial(known.star, base.available)
            rows = (yield from self.step(Job("shapes", str(number), says="searching the shapes")))["scales"]
            for i, values in enumerate(rows, start=1):
                size = self.sizes.available(self.sizes.family.scale(**values))
                samples = flops / (BACKWARD * size.flops_per_sample)
                if self.left(SHAPE_SHARE) <= 0 or samples < self._fewest:
                    continue
                run = PlannedRun(size, samples, samples * (1 - self.recipe.decay_share), flops, -2)
                row = yield from self._run(run, f"shape {number}.{i}", label="shape")
                tried.append(Run(**row["run"]))
            known = known.taught(tried)
        return known

    def _proposed(self, known: Shapes, flops: float, number: int) -> list[Scale]:
        """The most hopeful shapes that no run was made of."""
        rng = np.random.default_rng(np.random.SeedSequence(self.asked.seed, spawn_key=(number,)))
        seen = [row["run"]["scale"] for row in self.made.values()]
        front = known.search(flops, rng=rng, hopeful=True)
        return [size.scale for size, _ in front if dict(size.scale) not in seen][:ROUND]

    # ---- the answer ----------------------------------------------------------------------------------------------------------

    def _branch(self, planned: Sequence[PlannedRun]) -> Steps[Mapping[str, Any]]:
        """Have the largest trained run compressed: what its size can be brought down to, by a study of its own."""
        largest = max((r for r in planned if r.level >= 0), key=lambda r: (r.available.flops_per_sample, r.samples))
        scale, seconds = dict(largest.available.scale), self.left(COMPRESS_SHARE)
        if seconds <= 0:
            return {"reason": "no time was left for it"}
        self.tell("compress", f"compress the run of {named(scale)}")
        made = self.made[_key(largest)]
        args = {"scale": scale, "weights": made["weights"], "loss": made["run"]["loss"], "seconds": seconds}
        return (yield from self.step(Job("compressed", "0", args, "measuring host", seconds, "compressing the largest run")))

    def _costs(self, fitted: Fit, shapes: Shapes | None, compute: float) -> Steps[list[dict[str, Any]]]:
        """Have it measured what the sizes around the best, and the best shapes, cost to train and to serve."""
        menu = self._reachable(fitted)

        def loss(size: Available) -> float:
            samples = compute / (BACKWARD * size.flops_per_sample)
            return float(fitted.law.loss(size.size(fitted.law.size), samples, min(samples, self.asked.unique)))

        ray = sorted(menu, key=loss)[: COSTED - 2]
        rng = np.random.default_rng(np.random.SeedSequence(self.asked.seed, spawn_key=(99,)))
        best = [] if shapes is None else [a for a, _ in shapes.search(compute, rng=rng, hopeful=False)]
        near = [a for a in best if a not in menu and a.flops_per_sample <= menu[-1].flops_per_sample][:2]
        chosen = [*sorted(ray, key=lambda a: a.flops_per_sample), *near]
        shifts = (np.zeros(len(chosen)), np.zeros(len(chosen))) if shapes is None else shapes.shift(chosen)
        rows = [
            {"available": as_data(a), "shift": float(m), "shift_sd": float(s)} for a, m, s in zip(chosen, *shifts, strict=True)
        ]
        args = {"rows": rows, "recipe": as_data(self.recipe), "seconds": max(3.0, self.limit_s / 60)}
        key = digest([dict(a.scale) for a in chosen])
        job = Job("costs", key, args, "measuring host", self.limit_s / 10, "measuring what the sizes cost")
        found: list[dict[str, Any]] = (yield from self.step(job))["rows"]
        return found

    def _reachable(self, fitted: Fit) -> tuple[Available, ...]:
        return self.sizes.reachable([run.flops_per_sample for run in fitted.runs])


def _key(run: PlannedRun) -> str:
    """The name of a run in the record."""
    return digest({"scale": dict(run.available.scale), "samples": run.samples, "unique": run.unique})
