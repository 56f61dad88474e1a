"""What a road knew when it chose, read off its record alone: facts, tables, and what they say of one plan against another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from equipoise.errors import StoreError
from equipoise.records import Choice, Evaluation, Plan, Reading, estimated, measured, unavailable
from equipoise.road import entries, prediction
from equipoise.road.facts import TARGET, Facts, facts_from
from equipoise.road.features import Features, completed
from equipoise.road.jobs import Record
from equipoise.schemes import SCHEMES
from equipoise.search import LossTable, Space
from equipoise.search.costs import Floats
from equipoise.stats import median
from equipoise.study.record import Study

REPEATS = 0.02
"""Share of its time by which an operator timed alone differs from one timing to the next."""
TELLING_LOSS = 0.02
"""Summed loss from which a drop tells what a loss comes to in points."""
UNITS = {"latency_s": "s", "size_bytes": "B", "macs": "1", "params": "1"}
"""Axis -> unit of what the tables say of a change."""
NO_TIMES = "no operator was timed in this record: the run had no time for its tables"


class Readable(Record, Protocol):
    """A record that also says where it lies."""

    @property
    def path(self) -> Any:
        """Its folder."""
        ...


@dataclass(frozen=True)
class Recorded:
    """The tables of a study, and the costs that are predicted from them.

    Attributes:
        times: Target -> seconds of operators by `features.entry`, as far as they were timed.
        read: Losses that were read: mean, standard error, samples.
        guessed: Losses that were estimated to second order, on the scale of those that were read.
        failed: Choices that could not be probed -> why.
        scores: What roundings are believed to lose where those of single numbers are independent, see `entries.leant`.
    """

    study: Study
    facts: Facts
    times: Mapping[str, Mapping[str, float]]
    read: Mapping[entries.Key, entries.Loss]
    guessed: Mapping[entries.Key, entries.Loss]
    failed: Mapping[entries.Key, str]
    scores: Mapping[entries.Key, entries.Loss]

    @cached_property
    def space(self) -> Space:
        """The plans that the tables tell of: no new models."""
        return self.facts.searched

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """What ended well and is of the space."""
        menus = {knob.name: knob.menu for knob in self.space.knobs}
        return [
            e
            for e in self.study.evaluations
            if e.ok and e.plan.choices.keys() == menus.keys() and all(c in menus[k] for k, c in e.plan.choices.items())
        ]

    @cached_property
    def timed(self) -> bool:
        """Whether operators were timed, on every target."""
        return all(self.times.get(target) for target in self.study.header.target.split(","))

    @cached_property
    def features(self) -> dict[str, Features]:
        """Target -> what costs are counted by there."""
        out = {}
        for target in self.study.header.target.split(","):
            times = self.times.get(target, {})
            timed = {key.partition(":")[0] for key in times}
            asked = {choice for knob in self.space.knobs if knob.kind == "bits" for choice in knob.menu}
            precisions = tuple(way for way in SCHEMES if way == 32 or way in asked or str(way) in timed)
            whole = completed(times, self.facts.layers, precisions) if times else {}
            out[target] = Features(self.space, self.facts.layers, whole, precisions)
        return out

    def cost(self, axis: str) -> prediction.Cost:
        """Return the predicted cost of an axis, fitted on all that was measured."""
        return prediction.fit(axis, self.space, self.features, self.evaluations)

    @cached_property
    def costs(self) -> dict[str, prediction.Cost]:
        """Axis -> its predicted cost, of those that can be predicted from this record."""
        return {axis: self.cost(axis) for axis in UNITS if axis != "latency_s" or self.timed}

    @cached_property
    def typical_error(self) -> float | None:
        """Median relative error of predicted latencies, each whole model left out in turn; None where too few were measured."""
        if not self.timed:
            return None
        errors = [fit.median_error for fit in self.costs["latency_s"].fits.values() if fit.median_error is not None]
        return max(errors) if errors else None

    @cached_property
    def spread(self) -> float | None:
        """Relative standard deviation of one layer's predicted time, were the whole error of the sums that of their terms.

        A sum of n independent terms is off by a share that is the root of n smaller than theirs, n being the number of equal
        terms that would vary as much; what all terms have in common the fit takes up, so one of the n does not show. What else
        makes the latency of a whole model differ is counted as well.
        """
        if self.typical_error is None:
            return None
        rows = [self.costs["latency_s"].by_layer(self.space.encode(e.plan)) for e in self.evaluations]
        terms = [float(row.sum() ** 2 / (row**2).sum()) for row in rows if row.any()]
        if not terms:
            return None
        n = max(1.5, median(terms))
        return 1.4826 * self.typical_error * n / math.sqrt(n - 1)

    def gained(self, axis: str, before: Plan, after: Plan) -> Reading:
        """Return how much less `after` is predicted to cost than `before`."""
        if axis not in self.costs:
            return unavailable(UNITS[axis], NO_TIMES)
        cost, pair = self.costs[axis], self.space.encode_all([before, after])
        old, new = cost.many(pair)
        gain, note = float(old - new), "from the tables, fitted on the whole models that were measured"
        if axis != "latency_s" or self.spread is None:
            return estimated(gain, UNITS[axis], note=note)
        was, now = (cost.by_layer(row) for row in pair)
        half = 1.96 * float(np.sqrt(self._variances(was, now).sum()))
        return estimated(gain, "s", low=gain - half, high=gain + half, note=note)

    def _variances(self, was: Floats, now: Floats) -> Floats:
        """Variance of what each layer gains, ``(layers,)``: its share of the sum, two timings where its operator changes."""
        moved = ~np.isclose(was, now, rtol=1e-9, atol=0)
        assert self.spread is not None, "asked only where it is known"
        return np.asarray((self.spread * (was - now)) ** 2 + moved * (REPEATS**2) * (was**2 + now**2))

    def layer_seconds(self, plan: Plan) -> dict[str, float]:
        """Return the predicted seconds of each layer of a plan; empty where no operator was timed."""
        if "latency_s" not in self.costs:
            return {}
        found = self.costs["latency_s"].by_layer(self.space.encode(plan))
        return {layer.name: float(s) for layer, s in zip(self.facts.layers, found, strict=True)}

    # ---- quality -------------------------------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> LossTable:
        """What each choice alone adds to the loss, as the search saw it."""
        losses = {**self.guessed, **entries.leant(self.read, self.scores)}
        known = {key: loss.mean for key, loss in losses.items() if key not in self.failed}
        space, known = entries.offered(self.space, known, self.failed)
        return entries.table_of(space, known, self.read)

    def loss(self, knob: str, choice: Choice) -> Reading:
        """Return what a choice alone loses to the untouched model: read, estimated, or between what was read of its menu."""
        unit, key = self.study.header.damage_unit, (knob, choice)
        if knob == TARGET or choice == self.space.knob(knob).menu[0]:
            return measured(0.0, unit, note="the model is the same")
        if key in self.failed:
            return unavailable(unit, f"its probe failed: {self.failed[key]}")
        if key in self.read:
            mean, error, samples, _ = self.read[key]
            half = 1.96 * error if math.isfinite(error) else None
            ends = {} if half is None else {"low": mean - half, "high": mean + half}
            return measured(mean, unit, n=samples, note="this change alone, repaired and not trained", **ends)
        table = self.table
        if knob not in table.space.positions or choice not in table.space.knob(knob).menu:
            return unavailable(unit, "its loss was not read, nor that of its kind")
        at = table.space.positions[knob]
        value = float(table.columns[at][table.space.knob(knob).menu.index(choice)])
        note = "to second order" if key in self.guessed else "from other choices that were read"
        return estimated(value, unit, note=note)

    def summed(self, plan: Plan) -> float:
        """Return the sum of the known losses of a plan's choices."""
        found = (self.loss(knob, choice) for knob, choice in self.canonical(plan).choices.items())
        return sum(max(0.0, reading.value) for reading in found if reading.value is not None)

    def canonical(self, plan: Plan) -> Plan:
        """Return a plan with the knobs that do nothing in it untouched."""
        return self.space.decode(self.space.encode(plan))

    def points_per_loss(self, pick: Evaluation) -> Reading:
        """Return how many points of drop a unit of summed loss came to.

        By the pick's own drop where that is shown to be above zero, else by the median of the others taken as far as it (of an
        untouched pick, of those that were not trained).
        """
        summed = self.summed(pick.plan)
        if pick.drop.low is not None and pick.drop.low > 0 and summed > 0:
            return estimated(
                pick.drop.get() / summed, "points", note="its measured drop, shared out by the losses of the tables"
            )
        as_far = "one-shot" if pick.fidelity == "untouched" else pick.fidelity
        rows = [(e.drop.get(), self.summed(e.plan)) for e in self.evaluations if e.fidelity == as_far and e.drop.known]
        rates = [drop / loss for drop, loss in rows if loss > TELLING_LOSS and drop > 0]
        if not rates:
            return unavailable("points", "no evaluation has a drop by which losses could be told in points")
        note = f"by the drop of {len(rates)} evaluations, as this one's cannot be told from zero"
        return estimated(median(rates), "points", low=min(rates), high=max(rates), n=len(rates), note=note)


def recorded(store: Readable, study: Study) -> Recorded:
    """Read the tables out of an open store.

    Raises:
        StoreError: It does not say what could be changed in the model.
    """
    prepared = store.get("prepare", "0")
    if prepared is None:
        raise StoreError(
            f"the record at {store.path} must say what the model offers to change. Run `equipoise optimize` on it."
        )
    facts = facts_from(prepared["facts"])
    read: dict[entries.Key, entries.Loss] = {}
    failed: dict[entries.Key, str] = {}
    for row in store.all("table"):  # one that is read on more samples comes later
        key = (row["knob"], row["choice"])
        if row.get("error"):
            failed[key] = row["error"]
        else:
            read[key] = entries.loss_from(row)
    kinds = {(row.knob.name, c): row.knob.kind for row in facts.offered for c in row.knob.menu[1:]}
    rough, scores = dict[entries.Key, entries.Loss](), dict[entries.Key, entries.Loss]()
    for row in store.all("guess"):
        (scores if row.get("apart") else rough).update({k: e for k, e in entries.guessed(row).items() if k in kinds})
    timed = {target: store.get("lut", target) for target in study.header.target.split(",")}
    times = {target: row["times"] for target, row in timed.items() if row}
    return Recorded(study, facts, times, read, entries.calibrated(rough, read, kinds), failed, scores)
