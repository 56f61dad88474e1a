"""Which plans to try next, from what is known: numbers only, and the costliest thing that a road works out itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from equipoise.axes import AXES
from equipoise.budget import Budget
from equipoise.meters import Meters
from equipoise.records import Choice, Evaluation, Plan, as_data
from equipoise.road import prediction
from equipoise.road.facts import TARGET
from equipoise.road.features import Features
from equipoise.road.rungs import lost
from equipoise.schemes import scheme
from equipoise.search import Evaluated, Genomes, LossModel, LossTable, Space, fit_loss
from equipoise.search.front import predicted_front
from equipoise.search.propose import first_points, halving, propose
from equipoise.search.samplers import sampled
from equipoise.stats import median
from equipoise.units import show

ROUND = 8
"""Plans proposed together in a round of the genetic search."""
FIRST = 12
"""Plans of the predicted front that are evaluated before the search begins."""
WORST_LOSS = 1.0
"""Loss beyond which a plan is of no interest, recovered or not; a bound on the drop lowers it once drops are known."""
UNTRAINED = (1.0, 0.05)
"""Times the allowed drop, and the loss, up to which a plan is of interest that is not trained."""
TELLING_LOSS = 0.02
"""Loss from which a drop is more than chance."""


def worst_loss(evaluations: Sequence[Evaluation], budget: Budget, *, mendable: tuple[float, float]) -> float:
    """Return the loss beyond which, as these plans tell, a plan drops more than the bound and training could mend.

    Args:
        mendable: Times the bound that training may mend, and the loss that it may in any case.
    """
    bound = budget.bound("drop")
    tried = [e for e in evaluations if e.ok and lost(e) > TELLING_LOSS and e.drop.get() > 0]
    if not bound or not tried:
        return WORST_LOSS
    points_per_loss = median([e.drop.get() / lost(e) for e in tried])
    times, least = mendable
    return float(max(least, min(WORST_LOSS, times * bound / points_per_loss)))


@dataclass(frozen=True)
class Known:
    """What a round is proposed from; costs and loss are fitted when they are first asked for.

    Attributes:
        features: Target -> features of its look-up table.
        evaluations: All that are of the space.
        number: Of the round, from 0.
        sampler: One of Optuna's that proposes in place of the guided search; empty for none.
        elsewhere: Plans of the space that were tried elsewhere, or are being tried -> the loss that was told of them, or None.
            They are not proposed again, and cost what they are predicted to: other machines' seconds are not this one's.
    """

    space: Space
    table: LossTable
    features: Mapping[str, Features]
    evaluations: Sequence[Evaluation]
    budget: Budget
    meters: Meters
    worst_loss: float
    seed: int
    number: int
    sampler: str = ""
    elsewhere: Mapping[Plan, float | None] = field(default_factory=dict)

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Key of an axis -> the most allowed."""
        return prediction.bounds(self.budget, self.meters)

    @cached_property
    def measured(self) -> Evaluated:
        """What the one-shot evaluations say."""
        return self.evaluated(self.space, self.evaluations)

    @cached_property
    def tried(self) -> Evaluated:
        """What the one-shot evaluations say, and what is known or predicted of plans that are tried elsewhere."""
        if not self.elsewhere:
            return self.measured
        genomes = self.space.encode_all(list(self.elsewhere))
        costs = np.stack([cost.many(genomes) for cost in self._traded], axis=1)
        predicted = self.model.losses(genomes)
        losses = [guess if told is None else told for guess, told in zip(predicted, self.elsewhere.values(), strict=True)]
        rows = (self.measured, Evaluated(genomes, costs, np.array(losses)))
        return Evaluated(*(np.concatenate([getattr(row, name) for row in rows]) for name in ("genomes", "costs", "losses")))

    @cached_property
    def costs(self) -> tuple[prediction.Cost, ...]:
        """Predicted costs: those that are traded off, then those that only have a bound."""
        axes = dict.fromkeys((*prediction.TRADED, *self.bounds))
        return tuple(prediction.fit(axis, self.space, self.features, self.evaluations) for axis in axes)

    @cached_property
    def model(self) -> LossModel:
        """Predicts the loss."""
        told = {plan: loss for plan, loss in self.elsewhere.items() if loss is not None}
        genomes = np.concatenate([self.measured.genomes, self.space.encode_all(list(told))])
        return fit_loss(self.table, genomes, np.append(self.measured.losses, list(told.values())))

    @staticmethod
    def evaluated(space: Space, evaluations: Sequence[Evaluation]) -> Evaluated:
        """Return genomes, traded costs and losses of the evaluations that were not trained."""
        rows = [e for e in evaluations if e.ok and e.fidelity != "recovered"]
        costs = np.array([[e.axis(axis).get() for axis in prediction.TRADED] for e in rows])
        return Evaluated(space.encode_all([e.plan for e in rows]), costs, np.array([lost(e) for e in rows]))

    def predicted(self, plan: Plan) -> dict[str, float]:
        """Return what the tables say of a plan: axis -> value, and ``damage``."""
        genome = self.space.encode(plan)[None]
        return {c.axis: float(c.many(genome)[0]) for c in self.costs} | {"damage": float(self.model.losses(genome)[0])}

    def proposal(self) -> dict[str, Any]:
        """Return the plans of this round, and with the first what the space is predicted to reach."""
        if self.sampler:
            return self._sampled()
        return self._first() if self.number == 0 else {"plans": [as_data(plan) for plan in self.next(ROUND)]}

    def _sampled(self) -> dict[str, Any]:
        """The plans of a sampler; it is asked for as many as the guided search proposes in this round."""
        count = ROUND if self.number else FIRST
        plans = sampled(self.space, self.tried, name=self.sampler, count=count, seed=self.seed, number=self.number)
        reach = {} if self.number else {"reach": self._reach(self.tried.genomes)}
        return {"plans": [as_data(plan) for plan in plans], **reach}

    @property
    def _traded(self) -> tuple[prediction.Cost, ...]:
        return self.costs[: len(prediction.TRADED)]

    @property
    def _bounded(self) -> prediction.Bounded:
        costs = [c for c in self.costs if c.axis in self.bounds]
        return prediction.Bounded(tuple(costs), tuple(self.bounds[c.axis] for c in costs))

    def _first(self) -> dict[str, Any]:
        """The first plans, spread over the predicted front, and what the space is predicted to reach."""
        front = predicted_front(self.space, self.model.table, self.costs)
        reach = self._reach(front)
        losses = self.model.losses(front)
        seen = {row.tobytes() for row in self.tried.genomes}
        rows = zip(front, losses, strict=True)
        useful = np.array([loss <= self.worst_loss and row.tobytes() not in seen for row, loss in rows])
        if not useful.any():
            return {"plans": [], "reach": reach}
        front, losses = front[useful], losses[useful]
        costs = self.costs[0].many(front)
        plans = halving(first_points(self.space, front, costs, losses, n=FIRST, focus=self.bounds.get("latency_s")))
        return {"plans": [as_data(plan) for plan in plans], "reach": reach}

    def _reach(self, front: Genomes) -> dict[str, list[float]]:
        """The least, the median and the most that the space is predicted to reach on each cost."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1 << 20,)))
        genomes = np.concatenate([self.space.sample(rng, n=2000), front])
        return {cost.axis: [float(v) for v in np.quantile(cost.many(genomes), (0.0, 0.5, 1.0))] for cost in self.costs}

    def reached(self, reach: Mapping[str, Sequence[float]]) -> Iterator[str]:
        """Say what the space is predicted to reach, so that a budget out of reach is known before the search, not after it."""
        for word, unit, key in (("latency", "s", "latency_s"), ("size", "B", "size_bytes")):
            low, middle, high = (show(v, unit) for v in reach[key])
            yield f"predicted {word} of the space: least {low}, median {middle}, most {high}"
        for key, most in self.bounds.items():
            if key in reach and most < reach[key][0]:
                based = {c: self.meters.on_base(c.word, c.bound) for c in self.budget.constraints}
                constraint = next(c for c, (word, bound) in based.items() if (AXES[word].key, bound) == (key, most))
                yield f"WARNING: {constraint} is below the least that this space is predicted to reach"

    def next(self, count: int) -> list[Plan]:
        """Return up to so many plans that were not tried, the most promising first; fewer only where there are no more."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.number,)))
        return propose(
            self.space,
            self.model,
            self._traded,
            self.tried,
            rng=rng,
            q=count,
            worst_loss=self.worst_loss,
            excess=self._bounded.excess,
            focus=self.bounds.get("latency_s"),
        )


def uniform_plans(space: Space, targets: Mapping[str, Sequence[Choice]]) -> dict[Plan, None]:
    """Return the plans of the untouched model on one target in one scheme, in order: of those that every second layer offers.

    A layer that has no such form, an embedding, holds its weights in as many bits.
    """
    knobs = [knob for knob in space.knobs if knob.kind == "bits"]
    plans: dict[Plan, None] = {}
    for target, ways in targets.items():
        for way in ways:
            changes: dict[str, Choice] = {TARGET: target} if TARGET in space.positions else {}
            offering = [knob for knob in knobs if way in knob.menu]
            if way != 32 and 2 * len(offering) < len(knobs):
                continue
            for knob in knobs:
                alike = [
                    c for c in knob.menu if scheme(c).bits == scheme(way).bits and (c == way or scheme(c).inputs == "float")
                ]
                if alike:
                    changes[knob.name] = way if way in alike else alike[0]
            plans[space.untouched.but(changes)] = None
    return plans
