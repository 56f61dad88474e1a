"""The road: baseline, space, tables, predicted front, search, recovery, last measurement; it only decides.

Every job is named here and done elsewhere. Each decision depends on what is recorded alone, so walking the road again after a
crash, or on another machine, decides the same: nothing is lost and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from equipoise.axes import AXES
from equipoise.budget import Budget
from equipoise.errors import EquipoiseError
from equipoise.events import Listener
from equipoise.meters import Meters
from equipoise.records import Choice, Evaluation, Fidelity, Plan, as_data, digest
from equipoise.road import entries, forecast, rungs
from equipoise.road.facts import TARGET, facts_from
from equipoise.road.features import Features, completed
from equipoise.road.jobs import TOGETHER, Job, Record, Steps, Walk
from equipoise.road.proposals import UNTRAINED, Known, uniform_plans, worst_loss
from equipoise.road.table_reading import TableReading
from equipoise.search import converged, front_volume
from equipoise.search.propose import halving
from equipoise.stats import median
from equipoise.study.header import Header
from equipoise.study.record import TOLD, Study, evaluated, following
from equipoise.units import counted

SEARCH_SHARE = 0.5
"""Share of the time by which the one-shot search ends when recovery follows."""
SEARCH_LEAST = 0.4
"""Share of what the tables left that the search may take in any case."""
TABLE_SHARE, TABLE_LEAST = 0.3, 0.08
"""Shares of the time left after the baseline that the loss table may take at most, and in any case."""
TABLE_FEWEST = 4
"""One-shot evaluations' worth of table that a short run reads before it ends them early: without any nothing is offered."""
FIRST_BY = 0.12
"""Share of all the time by which the tables end, so that the first searched candidate is measured within 15 %."""
TIMES_SHARE = 0.1
"""Share of the time left after the baseline for the layer times, of all targets together."""
FINAL_SHARE, FINAL_LEAST_S, FINAL_MOST_SHARE = 0.06, 10.0, 0.2
"""Time kept for the last race, in fresh processes: a share of it all, but some seconds where that is not too much."""
WORTH_TABLES = 3
"""Trials that must still fit after the baseline for tables, which alone show nothing, to be worth their time."""
NEW_SHARE = 0.15
"""Share of the time left for recovery that measuring the costs of new models may take."""
ROUNDS = 4
"""Rounds of the search before recovery: what training brings then tells more than further one-shot trials."""
FAILING, FEWEST_TRIALS = 0.9, 12
"""Share of the trials, of so many at least, whose failing ends the search: more of them tell nothing."""
HEADROOM = 1.25
"""Times the time that a search is thought to need to begin, where more is advised."""


@dataclass(frozen=True)
class Asked:
    """What the user asked of which workload, as far as decisions depend on it.

    Attributes:
        targets: Target -> schemes that it computes in; the first is the reference.
        samples: Validation samples there are.
        about: Fields of the header that only tell: ``workload``, ``name``, ``metric``, ``damage_unit``.
        only: The techniques to search; none for all.
        sampler: See `Known`.
        forked: Choices of plans that another study found, tried first.
    """

    targets: Mapping[str, tuple[Choice, ...]]
    budget: Budget
    limit_s: float
    seed: int
    recovery: bool
    samples: int
    about: Mapping[str, Any]
    meters: Meters = field(default_factory=Meters)
    only: tuple[str, ...] = ()
    sampler: str = ""
    forked: tuple[Mapping[str, Choice], ...] = ()


class Road(Walk):
    """The decisions of one walk; `next` gives the jobs."""

    def __init__(self, asked: Asked, listen: Listener) -> None:
        super().__init__(asked.limit_s, listen)
        self.asked = asked
        self.budget = asked.budget
        self.header: Header | None = None
        self.evaluations: list[Evaluation] = []
        self.volumes: list[float] = []
        self.recovered = False
        self.proposing_s = 0.0
        self.known: Known | None = None
        self._shown: set[str] = set()

    # ---- the road ------------------------------------------------------------------------------------------------------------

    def walk(self, record: Record) -> Steps[None]:
        """Yield the jobs of the road in their order."""
        self.record = record
        self.tell("prepare", "fold the model, trace its groups, collect statistics")
        self.facts = facts_from((yield from self.step(Job("prepare", "0", says="preparing the model")))["facts"])
        self.space = self.facts.narrowed(self.asked.only)
        yield from self._baseline()
        if self.facts.layers and self.left() - self.reserve < WORTH_TABLES * self.expected("one-shot"):
            yield from self._extent(sum(len(k.menu) - 1 for k in self.space.knobs), read=0)
        elif self.facts.layers:  # else the baseline has measured all that there is: the targets
            yield from self._tables()
            yield from self._forked()
            yield from self._search(self.search_s() if self.asked.recovery else self.left() - self.reserve)
            if self.failing:
                self.tell("search", "WARNING: nearly all trials fail, so nothing more is tried; the verdict says why")
            elif self.asked.recovery:
                yield from self._recover()
                self.recovered = True
                yield from self._search(self.left() - self.reserve)  # the time that recovery had no use for
        yield from self._final()

    @property
    def reserve(self) -> float:
        """Seconds kept for the last measurement."""
        return min(max(FINAL_LEAST_S, FINAL_SHARE * self.limit_s), FINAL_MOST_SHARE * self.limit_s)

    @property
    def enough_s(self) -> float:
        """Seconds in all with which the search would begin: what is behind, the contenders left out and `WORTH_TABLES` trials.

        The reserve grows with the limit: this is the limit that leaves as much beside it, with headroom.
        """
        tried = {e.plan for e in self.evaluations}
        missing = len(self.uniforms.keys() - tried)
        need = self.spent_s + (missing + WORTH_TABLES) * self.expected("one-shot")
        return HEADROOM * min(need / (1 - FINAL_MOST_SHARE), max(need + FINAL_LEAST_S, need / (1 - FINAL_SHARE)))

    @property
    def failing(self) -> bool:
        """Whether nearly all trials failed, and more would tell nothing."""
        ends = [e.ok for e in self.evaluations if e.fidelity == "one-shot"]
        return len(ends) >= FEWEST_TRIALS and ends.count(False) >= FAILING * len(ends)

    def search_s(self) -> float:
        """Seconds that the search may take before recovery: the first half of the time, or a fair part of what is left."""
        return max(SEARCH_SHARE * self.limit_s - self.spent_s, SEARCH_LEAST * (self.left() - self.reserve))

    def expected(self, fidelity: Fidelity) -> float:
        """Seconds that the next evaluation will take, its training left out, as those before it tell."""
        seen = [e for e in self.evaluations if e.ok and e.fidelity == fidelity][-9:]
        if seen:
            return median([e.seconds - (e.training.seconds if e.training else 0.0) for e in seen])
        return max((e.seconds for e in self.evaluations if e.ok), default=0.0)

    def _evaluate(
        self,
        plan: Plan,
        fidelity: Fidelity,
        *,
        leg: int = 0,
        predicted: Callable[[], Mapping[str, float]] = dict,
        training_s: float = 0.0,
        **trained: Any,
    ) -> Steps[Evaluation]:
        """Have a plan evaluated, once and for all; what it was `predicted` is asked for only where it is not recorded."""
        axes = self.asked.meters.metered(self.budget) if fidelity == "untrained" else ()
        key = ":".join([plan.digest, fidelity, *([str(leg)] if leg else []), *axes])
        known = self.evaluations[0].axis("latency_s").get() if self.evaluations else None
        foretold = dict(predicted()) if self.record.get("evaluation", key) is None else {}
        args = {"plan": as_data(plan), "fidelity": fidelity, "leg": leg, "predicted": foretold, "reference_s": known}
        trained = {"training_s": training_s, **trained} if training_s else {}
        args |= {"latency_s": self._latency_s(training_s), **trained}
        says, expected_s = f"the {fidelity} evaluation of plan {plan.digest}", self.expected(fidelity) + training_s
        new = fidelity == "untrained"  # no evaluation of the study before it is trained
        job = Job("new" if new else "evaluation", key, args, "measuring host", expected_s, says)
        data = yield from self.step(job)
        if again := [e for e in self.evaluations if not new and e.key == key]:
            return again[0]
        (found,) = self._read([data])
        if not new:
            self.evaluations.append(found)
            self._show(found)
        return found

    def heard(self, job: Job, data: Mapping[str, Any]) -> None:
        """Show an evaluation as soon as it is recorded."""
        super().heard(job, data)
        if job.kind == "evaluation":
            self._show(*self._read([data]))

    def _show(self, found: Evaluation) -> None:
        if found.key not in self._shown:
            self._shown.add(found.key)
            self.tell("evaluate", found.fidelity, evaluation=found)

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
        """Return recorded evaluations with what was read of them later, and what of the budget follows from that."""
        return list(following(evaluated(rows, self.record.all("meter")), self.budget, self.asked.meters))

    def _latency_s(self, training_s: float) -> float:
        """Wall time for one latency comparison: a hundredth of the run, from 0.3 to 1.5 s; after a training up to 6 s."""
        return max(min(1.5, max(0.3, self.limit_s / 100)), min(6.0, training_s / 20))

    def proposal(self) -> dict[str, Any]:
        """Return the plans that the road is waiting for; the one job that is worked out from what the road itself knows."""
        assert self.known is not None, "no proposal is waited for"
        return self.known.proposal()

    # ---- the untouched model -------------------------------------------------------------------------------------------------

    def _baseline(self) -> Steps[None]:
        """Measure the untouched model, on every target and in every precision, and write the study's header."""
        asked = self.asked
        notes = list((yield from self.step(Job("notes", "workload")))["notes"])
        notes += [f"searched as asked: {', '.join(asked.only)} alone"] if asked.only else []
        for note in notes:
            self.tell("notes", f"WARNING: {note}")
        self.tell("baseline", f"the untouched model; {asked.about['metric']['point']}")
        first = yield from self._evaluate(self.space.untouched, "untouched")
        if not first.ok:
            raise EquipoiseError(f"the untouched model could not be measured on {next(iter(asked.targets))}: {first.reason}")
        self.header = Header(
            target=",".join(asked.targets),
            budget=asked.budget.text,
            time_s=asked.limit_s,
            seed=asked.seed,
            baseline=first.key,
            space=self.facts.offered,
            left_whole=self.facts.left_whole,
            notes=tuple(notes),
            batch=asked.meters.batch,
            price_per_hour=asked.meters.price_per_hour,
            grid=asked.meters.grid,
            **asked.about,
        )
        yield from self.step(Job("study", self.header.asked, {"header": as_data(self.header)}))
        yield from self._metered()
        yield from self._tried([partial(self._one_shot, plan) for plan in self.uniforms], self.limit_s - self.reserve)

    def _metered(self) -> Steps[None]:
        """Have what was evaluated for another budget read on the axes that this one names."""
        words = self.asked.meters.metered(self.budget)
        if not words:
            return
        for found in self._read(self.record.all("evaluation")):
            for word in words:
                key = f"{found.key}:{word}"
                lacks = AXES[word].key not in found.cost or self.record.get("meter", key) is not None
                if found.ok and lacks and self.left() > self.reserve:
                    args, says = {"evaluation": found.key, "word": word}, f"the {word} of plan {found.plan.digest}"
                    yield from self.step(Job("meter", key, args, "measuring host", says=says))
        self.evaluations = self._read(self.record.all("evaluation"))[:1]

    @property
    def uniforms(self) -> dict[Plan, None]:
        """The plans of one target and one scheme, in order: what hand use of one tool would give."""
        return uniform_plans(self.space, self.asked.targets)

    def _one_shot(self, plan: Plan, predicted: Callable[[], Mapping[str, float]] = dict) -> Steps[Evaluation]:
        """Have a plan evaluated compressed and repaired, not trained (unless it is the untouched one, which is known)."""
        if plan == self.space.untouched:
            return self.evaluations[0]
        return (yield from self._evaluate(plan, "one-shot", predicted=predicted))

    def _tried(self, trials: Sequence[Callable[[], Steps[Evaluation]]], until: float) -> Steps[list[Evaluation]]:
        """Have evaluations made, a few together, while there is time for one more; return those that were."""
        done: list[Evaluation] = []
        while len(done) < len(trials) and not self.failing:
            fits = (until - self.spent_s) / max(self.expected("one-shot"), 1e-9)
            count = 0 if fits < 1 else max(1, int(min(TOGETHER, fits / 2)))  # fewer and fewer, as times are guesses
            if not count:
                break
            done += yield from self.together([trial() for trial in trials[len(done) : len(done) + count]])
        return done

    # ---- the tables ----------------------------------------------------------------------------------------------------------

    def _tables(self) -> Steps[None]:
        """Have the tables measured within their share, leave out what cannot be tried, and record how far they reached."""
        room = self.left() - self.reserve
        macs = {row.name: float(row.macs) for row in self.evaluations[0].layers if row.macs}
        todo = entries.ordered(self.space, self.facts, macs)
        early = max(TABLE_LEAST * room, FIRST_BY * self.limit_s - self.spent_s, TABLE_FEWEST * self.expected("one-shot"))
        kinds = {(knob.name, choice): knob.kind for knob, choice in todo}
        reading = TableReading(self, kinds, self.asked.samples, self.expected("one-shot"))
        read, failed = (yield from reading.steps(self.spent_s + min(TABLE_SHARE * room, early))), reading.failed
        self.space, known = entries.offered(self.space, {key: loss.mean for key, loss in read.items()}, failed)
        self.features: dict[str, Features] = {}
        for target, precisions in self.asked.targets.items():
            self.tell("tables", f"layer times on {target.partition(':')[0]}")
            share = max(0.5, TIMES_SHARE * room / len(self.asked.targets))
            seconds = min(max(2.0, min(30.0, self.limit_s / 60)), share)
            args = {"target": target, "seconds": seconds, "knobs": [k.name for k in self.space.knobs if len(k.menu) > 1]}
            found = yield from self.step(Job("lut", target, args, "measuring host", 2 * seconds))
            times = completed(found["times"], self.facts.layers, precisions)
            self.features[target] = Features(self.space, self.facts.layers, times, precisions)
        yield from self._extent(len(todo), read=len(read) + len(failed))
        self.table = entries.table_of(self.space, known, read)

    def _extent(self, count: int, *, read: int) -> Steps[None]:
        """Record how many of the `count` entries of the loss table were `read`, of how many plans, and what time is enough."""
        assert self.header is not None, "the baseline comes first"
        args = {"entries": count, "read": read, "before_s": self.spent_s, "enough_s": self.enough_s, "plans": self.space.size}
        yield from self.step(Job("extent", self.header.asked, args))

    def _forked(self) -> Steps[None]:
        """Have what another study found tried, as near as this space has it."""
        if not self.asked.forked:
            return
        tried = {e.plan for e in self.evaluations}
        plans = [p for p in dict.fromkeys(self.space.nearest(choices) for choices in self.asked.forked) if p not in tried]
        self.tell("search", f"try {counted(len(plans), 'plan')} of the study that this one goes on from")
        yield from self._tried([partial(self._one_shot, plan) for plan in plans], self.spent_s + self.search_s())

    # ---- the search ----------------------------------------------------------------------------------------------------------

    def _search(self, seconds: float) -> Steps[None]:
        """Evaluate the predicted front, then let the genetic search propose rounds until it converges or `seconds` are over.

        Before recovery it stops after a few rounds too; called again, it goes on.
        """
        until = self.spent_s + seconds
        if not self.volumes:
            self.worst_loss = worst_loss(self.evaluations, self.budget, mendable=self._mendable)
        while self._worth_another_round(until):
            number = len(self.volumes)
            turn, told = self._heard_by(number)
            self.known = Known(
                space=self.space,
                table=self.table,
                features=self.features,
                evaluations=self._inside(),
                budget=self.budget,
                meters=self.asked.meters,
                worst_loss=self.worst_loss,
                seed=self.asked.seed,
                number=number,
                sampler=self.asked.sampler,
                elsewhere={e.plan: e.damage for e in told if self.space.holds(e.plan)},
            )
            self.tell("search", f"round {number}: " + ("propose plans" if number else "solve the predicted front"))
            found = yield from self.step(Job("proposal", turn, {"number": number}))
            self.proposing_s = found["seconds"]
            if not number:
                for text in self.known.reached(found["reach"]):
                    self.tell("search", text)
            if not found["plans"] and number:
                return
            plans = [Plan(choices) for choices in found["plans"]]
            trials = [partial(self._one_shot, plan, partial(self.known.predicted, plan)) for plan in plans]
            if len((yield from self._tried(trials, until))) < len(plans):
                return
            if not number:
                self.worst_loss = worst_loss(self.evaluations, self.budget, mendable=self._mendable)
            evaluated = Known.evaluated(self.space, self._inside())
            self.volumes.append(front_volume(evaluated, worst_loss=self.worst_loss))

    @property
    def _mendable(self) -> tuple[float, float]:
        """Times the allowed drop, and the loss, that a plan may have at first and still be of interest."""
        return (rungs.MENDABLE, rungs.mendable_loss(self.facts.classes)) if self.asked.recovery else UNTRAINED

    def _worth_another_round(self, until: float) -> bool:
        """Whether there is a plan to try, time to try it, and hope that it tells something."""
        if self.space.size < 2 or converged(self.volumes) or self.failing:
            return False
        if self.spent_s + self.proposing_s + self.expected("one-shot") > until:
            return False
        return len(self.volumes) < ROUNDS or not self.asked.recovery or self.recovered

    def _heard_by(self, number: int) -> tuple[str, list[Evaluation]]:
        """Return the name of a proposal and what had been told when it was made: of one that is to be made, all."""
        told = self._read(self.record.all(TOLD))
        turns = [self._turn(number, told[:n]) for n in range(len(told) + 1)]
        made = next((n for n, turn in enumerate(turns) if self.record.get("proposal", turn) is not None), len(told))
        return turns[made], told[:made]

    def _turn(self, number: int, told: Sequence[Evaluation]) -> str:
        """Name of a proposal: what it is made from, so that another budget is proposed for anew and a replay finds its own."""
        untrained = [e.key for e in self.evaluations if e.fidelity != "recovered"]
        how = [self.asked.sampler] if self.asked.sampler else []
        heard = [[e.key for e in told]] if told else []
        return digest([number, self.budget.text, self.asked.recovery, untrained, *self.asked.only, *how, *heard])

    def _inside(self) -> list[Evaluation]:
        """The evaluations whose plan is of the space, from which failed probes may have taken a choice."""
        return [e for e in self.evaluations if self.space.holds(e.plan)]

    # ---- recovery ------------------------------------------------------------------------------------------------------------

    def _recover(self) -> Steps[None]:
        """Have the candidates trained rung by rung until the reserve is left; each leg is one evaluation.

        A rung too short to be worth its overhead trains fewer candidates, or leaves its time to the next; so does one that
        ended early. Where one keeps the bounds early, a faster one gets the rest of the time, trained before or not.
        """
        cut, new = rungs.candidates(self.evaluations, self.budget, mendable=self._mendable[1]), (yield from self._new())
        alive = rungs.beside(cut, first := rungs.fresh(new, self.evaluations[0], self.budget))
        if self.facts.fresh and not first:
            why = "of those measured none is cheaper within the bounds" if new else "there was no time to measure their costs"
            self.tell("recover", f"WARNING: no new model is trained: {why}")
        if not alive:
            self.tell("recover", "nothing is trained: no plan within the other bounds has lost what training could win back")
            return
        trained: dict[str, list[forecast.Stand]] = {e.plan.digest: [] for e in alive}
        stood, carried = dict[str, Evaluation](), 0.0
        for rung, (most, share) in enumerate(rungs.RUNGS):
            if most == 1 and stood:
                alive = [*stood.values(), *rungs.reserves(self.evaluations, trained, self.budget, mendable=self._mendable[1])]
            if not alive:
                return
            carried += share
            room = self.left() - self.reserve
            overhead = max(self.expected("recovered"), self.expected("one-shot"))
            kinds = 1 if stood else len({e.fidelity for e in alive})
            count, time = rungs.trainees(rung, len(alive), room, overhead, carried, kinds=kinds)
            if count < 1:
                if rung == len(rungs.RUNGS) - 1 and not stood:
                    yield from self._untrained(room, rungs.LEAST_S + overhead)
                continue
            horizon = room if most == 1 else room / 2
            outlook = rungs.forecasts(self.evaluations, trained)
            alive = rungs.promote(alive, outlook, count, self.budget, horizon=horizon, tried=self.evaluations)
            if most == 1:
                time = rungs.alone(alive[0], outlook, self.budget, share_s=time, room_s=room, overhead_s=overhead)
            carried, seconds = 0.0, time / len(alive) - overhead
            self.tell("recover", f"rung {rung + 1}: distil {len(alive)} for {seconds:.0f} s each")
            done = yield from self.together([self._leg(start, rung + 1, seconds) for start in alive])
            for after in done:
                stood.pop(after.plan.digest, None)
                if after.ok:
                    stood[after.plan.digest], history = after, trained.setdefault(after.plan.digest, [])
                    history.append(forecast.stand(after, (history[-1].seconds if history else 0.0) + seconds))
            alive = [e for e in done if e.ok]

    def _new(self) -> Steps[list[Evaluation]]:
        """Have the costs of new models measured while there is time."""
        found: list[Evaluation] = []
        until = self.spent_s + NEW_SHARE * (self.left() - self.reserve)
        for target in self.asked.targets:
            where = {TARGET: target} if TARGET in self.space.positions else {}
            trials = [partial(self._evaluate, plan.but(where), "untrained") for plan in halving(self.facts.fresh)]
            found += yield from self._tried(trials, until)
        return found

    def _untrained(self, left_s: float, least_s: float) -> Steps[None]:
        """Record that there was something to train but no time for it."""
        assert self.header is not None, "the baseline comes first"
        yield from self.step(Job("untrained", self.header.asked, {"left_s": max(0.0, left_s), "least_s": least_s}))

    def _leg(self, start: Evaluation, rung: int, seconds: float) -> Steps[Evaluation]:
        """Have a plan trained on from where an evaluation of it stands."""
        job = Job("leg", digest([start.key, round(seconds, 6)]), {"plan": start.plan.digest})
        leg = int((yield from self.step(job))["leg"])
        predicted = {k: v for k, v in start.predicted.items() if k != "damage"}
        trained: dict[str, Any] = {"training_s": seconds, "weights": start.weights, "rung": rung, "lost": start.damage}
        return (yield from self._evaluate(start.plan, "recovered", leg=leg, predicted=lambda: predicted, **trained))

    # ---- the last measurement ------------------------------------------------------------------------------------------------

    def _final(self) -> Steps[None]:
        """Have the shortlist timed side by side with the untouched model, until the intervals are narrow or the time is up."""
        assert self.header is not None, "the baseline comes first"
        study = Study(Path(), self.header, tuple(self._read(self.record.all("evaluation"))), {})  # not raced, as on a replay
        shortlist = rungs.shortlist(study, self.uniforms)
        seconds = max(self.reserve, min(FINAL_LEAST_S, self.left()))
        if not shortlist or self.left() < seconds / 2:
            return
        self.tell("final", f"time the {len(shortlist)} best beside the untouched model")
        args = {"baseline": study.baseline.key, "keys": shortlist, "seconds": seconds, "seed": self.asked.seed}
        yield from self.step(Job("final", digest(sorted(shortlist)), args, "measuring host", seconds))
