"""From a few measurements to what each technique would bring: predicted gains with their range, losses where they were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from equipoise.compress.technique import Offer
from equipoise.records import Choice, Evaluation, Knob, Plan, Reading, estimated, measured, unavailable
from equipoise.road import prediction
from equipoise.road.facts import Facts
from equipoise.road.features import Features, entry
from equipoise.search import LossModel, Space
from equipoise.search.front import predicted_front
from equipoise.search.tables import EPSILON
from equipoise.techniques import TECHNIQUES
from equipoise.units import counted
from equipoise.verbs.prospect import Level, Part, Prospects

FEWEST = 16
"""Inputs below which an example tells no loss."""
SAVED, LOOSELY = (0.7, 1.3), (0.6, 3.0)
"""Times the predicted saving that the measured one is, where int8 was measured as a whole and where not (docs/explain.md)."""
QUICKEST = 0.7
"""Share of its predicted latency that a plan takes at least."""
TELLING = (0.02, 0.2)
"""Losses at which all techniques together are told: about where a drop begins to show, and what training has to win back."""
RUINED = 1.0
"""Loss beyond which a plan is of no interest, trained or not."""
NO_INPUTS = f"{FEWEST} real inputs or more are needed to tell a loss"


def uniform(space: Space, kind: str, *, at: int = -1, choice: Choice | None = None) -> Plan:
    """Return the plan with every knob of a kind at a place of its menu, or at a choice where it has that."""
    knobs = [knob for knob in space.knobs if knob.kind == kind and len(knob.menu) > 1]
    changed = {k.name: k.menu[at] if choice is None else choice for k in knobs if choice is None or choice in k.menu}
    return space.decode(space.encode(space.untouched.but(changed)))


def within(space: Space, plan: Plan) -> bool:
    """Whether every choice of a plan is on the menus of a space."""
    return all(choice in space.knob(knob).menu for knob, choice in plan.choices.items())


def whole_loss(found: Evaluation, inputs: int) -> Reading:
    """Return how far a whole model that was measured is from the untouched one."""
    if found.damage is None or not inputs:
        return unavailable("1", NO_INPUTS)
    return measured(found.damage, "1", n=inputs, note="of the whole model, not trained")


@dataclass(frozen=True)
class Telling:
    """What follows from what was measured.

    Attributes:
        space: All plans.
        inputs: How many real inputs there were; 0 where losses would tell nothing.
        tried: Whole models that were measured, the untouched one first.
        offers: What may be chosen where, and what may not and why.
        features: What costs are counted by; None where no operator could be timed.
        model: Predicts losses; None where none was read.
    """

    space: Space
    target: str
    inputs: int
    tried: Mapping[Plan, Evaluation]
    offers: Mapping[str, Offer]
    features: Features | None
    model: LossModel | None

    def technique(self, kind: str) -> Prospects:
        """Tell what one technique brings: at its best place alone, at all of them mildly, at all of them strongly."""
        knobs = [knob for knob in self.space.knobs if knob.kind == kind and len(knob.menu) > 1]
        offers = [offer for name, offer in self.offers.items() if offer.refused and name.partition(".")[0] == kind]
        refused = {offer.place or "the model": offer.refused for offer in offers}
        levels = []
        if len(knobs) > 1:
            alone = [self.level(f"{knob.place} alone", self._one(knob.name, knob.menu[1])) for knob in knobs]
            levels.append(max(alone, key=_worth))
        many = f"all {len(knobs)}" if len(knobs) > 1 else knobs[0].place or "the whole model"
        levels += [self.level(what, plan) for what, plan in self._everywhere(kind, knobs, many).items()]
        return Prospects(TECHNIQUES[kind].noun, len(knobs), refused, tuple(levels), _verdict(levels))

    def _everywhere(self, kind: str, knobs: Sequence[Knob], many: str) -> dict[str, Plan]:
        """Return the ways to use a technique at all its places, `many` in words: mildly and strongly, or by each choice."""
        if all(knob.nested for knob in knobs) and any(len(knob.menu) > 2 for knob in knobs):
            return {f"{many}, {how}": uniform(self.space, kind, at=at) for how, at in (("mildly", 1), ("strongly", -1))}
        choices = dict.fromkeys(choice for knob in knobs for choice in knob.menu[1:])
        plans = {choice: uniform(self.space, kind, choice=choice) for choice in choices}
        if len(plans) == 1:
            return {many: next(iter(plans.values()))}
        at = {choice: sum(choice in knob.menu for knob in knobs) for choice in choices}
        why = TECHNIQUES[kind].why
        return {f"{why(knobs[0].menu[0], c)} at {counted(at[c], 'place')}": plan for c, plan in plans.items()}

    def _one(self, name: str, choice: Choice) -> Plan:
        return self.space.decode(self.space.encode(self.space.untouched.but({name: choice})))

    def level(self, what: str, plan: Plan) -> Level:
        """Tell what a plan gains and loses: as measured where it was, else as predicted."""
        tried, base = self.tried.get(plan), self.tried[self.space.untouched]
        if tried is not None and tried.speed_up is not None:
            size, macs = (measured(base.axis(a).get() / tried.axis(a).get(), "1") for a in ("size_bytes", "macs"))
            loss = self._loss(plan) if tried.damage is None else whole_loss(tried, self.inputs)
            return Level(what, tried.speed_up, size, macs, loss)
        faster, size, macs = (self._predicted(axis, plan) for axis in ("latency_s", "size_bytes", "macs"))
        return Level(what, faster, size, macs, self._loss(plan))

    def _predicted(self, axis: str, plan: Plan) -> Reading:
        """Return how many times less a plan is predicted to take."""
        if self.features is None:
            return unavailable("1", "no operator could be timed")
        where = self.target
        cost = prediction.fit(axis, self.space, {where: self.features}, list(self.tried.values()))
        base, value = cost.many(self.space.encode_all([self.space.untouched, plan]))
        ratio = float(base / value)
        if axis != "latency_s":
            return estimated(ratio, "1", note="counted from shapes")
        note = f"from the operators alone and {counted(len(self.tried), 'whole model')}"
        saved, shares = 1 - 1 / ratio, SAVED if len(self.tried) > 1 else LOOSELY
        ends = sorted(1 / max(1 - saved * share, QUICKEST / ratio) for share in shares)
        return estimated(ratio, "1", low=ends[0], high=ends[1], note=note)

    def _loss(self, plan: Plan) -> Reading:
        if not self.inputs:
            return unavailable("1", NO_INPUTS)
        if self.model is None:
            return unavailable("1", "no loss could be read in the time")
        space = self.model.table.space
        if not within(space, plan):
            return unavailable("1", "no loss of its kind was read")
        genome = space.encode(plan)[None]
        (log,), (sd,) = self.model.log(genome)
        low, loss, high = (max(0.0, float(np.exp(log + off * sd)) - EPSILON) for off in (-1.96, 0.0, 1.96))
        return estimated(loss, "1", low=low, high=high, note="from one-knob losses")

    def together(self) -> Iterator[Level]:
        """Tell what all techniques may reach together at some losses, not trained."""
        if self.model is None or self.features is None:
            return
        space = self.model.table.space
        features = {self.target: replace(self.features, space=space)}
        inside = [e for e in self.tried.values() if within(space, e.plan)]
        costs = tuple(prediction.fit(axis, space, features, inside) for axis in prediction.TRADED)
        front = predicted_front(space, self.model.table, costs)
        losses, latencies = self.model.losses(front), costs[0].many(front)
        told = set()
        for most in TELLING:
            rows = np.flatnonzero(losses <= most)
            best = int(rows[np.argmin(latencies[rows])]) if len(rows) else -1
            if best >= 0 and best not in told:
                told.add(best)
                yield self.level(f"all together, losing at most {most:g}", space.decode(front[best]))


def _worth(level: Level) -> float:
    """How much a level gains for what it loses."""
    gain = (level.times_faster.value or 1.0) - 1
    return gain / (1e-3 + (level.loss.value or 0.0)) if gain > 0 else gain


def _most(level: Level) -> float:
    return level.times_faster.value or 0.0


def _verdict(levels: list[Level]) -> str:
    """Say whether a technique is worth trying here."""
    known = [level for level in levels if level.times_faster.value is not None]
    if not known:
        return "unknown: nothing was timed"
    if all(level.loss.value is not None and level.loss.value >= RUINED for level in known):
        return "does not pay: even the mildest use ruins the answers"
    alive = [level for level in known if level.loss.value is None or level.loss.value < RUINED]
    best = max(alive, key=_most)
    if best.times_faster.low is not None and best.times_faster.low > 1:
        return "worth trying"
    if best.times_faster.high is not None and best.times_faster.high <= 1:
        smaller = (best.times_smaller.value or 0) > 1.02
        return "slower here" + (": for its size alone" if smaller else "")
    if (best.times_faster.value or 0) <= 1:
        return "gains no time here" + (": for its size alone" if (best.times_smaller.value or 0) > 1.02 else "")
    return "may pay: cannot tell from none"


def parts(first: Evaluation, facts: Facts, times: dict[str, float]) -> list[Part]:
    """The layers, those that take longest first."""
    alone = {layer.name: times.get(entry(layer.op, 32)) for layer in facts.layers}
    total = sum(seconds for seconds in alone.values() if seconds)
    rows = []
    for row in first.layers:
        seconds = alone.get(row.name)
        read = unavailable("s", "not timed alone") if seconds is None else measured(seconds, "s", note="timed alone, in floats")
        rows.append(Part(row.name, row.kind, row.params, row.macs, read, seconds / total if seconds else None))
    return sorted((row for row in rows if row.params or row.macs), key=lambda row: (-(row.seconds.value or 0.0), -row.macs))
