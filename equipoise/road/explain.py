"""``equipoise.explain``: why a point of a study is as it is, from the record alone.

What one change brings is told by undoing it alone, in the plan as it was picked; what was left, by making it alone there. So
the gains of several changes of one layer do not add up: int8 saves less of a layer where half of its channels are gone.
Needs no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from equipoise.errors import must_be, unknown
from equipoise.markup import table
from equipoise.records import Choice, Evaluation, Knob, Plan, Reading, estimated, measured, unavailable
from equipoise.road.facts import TARGET
from equipoise.road.recorded import UNITS, Recorded, recorded
from equipoise.stats import verdict
from equipoise.study.picks import NAMES
from equipoise.study.record import Study, describe
from equipoise.study.store import Store
from equipoise.techniques import TECHNIQUES
from equipoise.units import counted, show

SHOWN = 12
"""Changes in a notebook's table."""
IDENTITY = re.compile(r"[0-9a-f]{6,16}(:[a-z0-9:-]*)?")
"""How an evaluation is named by its key, or by the beginning of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One knob of a plan set otherwise than it was, all others as they are.

    Attributes:
        knob: Its name; of all changes of one technique together, the technique.
        where: The place that is changed, in words.
        layers: The layers that it acts on.
        what: What it does, in words.
        loss: What it loses alone; of several the sum.
        points: What that comes to in points of the metric.
        seconds, bytes, macs: What it gains on the target, in this plan; below zero where it costs.
        remark: Why it does not pay, where it does not.
        rate: Points that it costs for each percent of the pick's latency; None where either is not known.
    """

    knob: str
    where: str
    layers: tuple[str, ...]
    what: str
    loss: Reading
    points: Reading
    seconds: Reading
    bytes: Reading
    macs: Reading
    remark: str = ""
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Beaten:
    """A whole model that was measured and is smaller than the untouched one, but slower."""

    key: str
    what: str
    times_faster: Reading
    times_smaller: Reading


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one point of a study is as it is.

    Attributes:
        key, what, sentence: The pick: its key, how it differs from the untouched model, and what that gains and costs.
        target: Where it runs.
        latency, predicted: Its latency as measured, and as the tables and the fit have it.
        typical_error: Median relative error of such predictions, each whole model left out in turn; None where not known.
        unit: What losses are counted in.
        points_per_loss: By which losses are told in points.
        techniques: All changes of one technique together, the one that gains most first.
        changes: Each change, the one that gains most first.
        next: What would be changed next: unused choices that gain time, those that cost least quality for it first.
        rejected: Unused choices that make the model smaller but gain no time here, and why.
        beaten: Whole models that were measured to be smaller but slower than the untouched one.
        layer_seconds: Layer -> predicted seconds in the untouched model and in the pick; empty where none was timed.
        left_whole: What could not be changed at all -> why.
        failed: Choices whose probe failed -> why.
    """

    key: str
    what: str
    sentence: str
    target: str
    latency: Reading
    predicted: Reading
    typical_error: float | None
    unit: str
    points_per_loss: Reading
    techniques: tuple[Change, ...]
    changes: tuple[Change, ...]
    next: tuple[Change, ...]
    rejected: tuple[Change, ...]
    beaten: tuple[Beaten, ...]
    layer_seconds: Mapping[str, tuple[float, float]]
    left_whole: Mapping[str, str]
    failed: Mapping[str, str]

    def __repr__(self) -> str:
        named = f", most by {self.changes[0].knob}" if self.changes else ""
        return f"Explanation({self.key[:8]}: {self.sentence}; {counted(len(self.changes), 'change')}{named})"

    def _repr_html_(self) -> str:
        rows = [["where", "what", "time gained", "size gained", "loss alone"]]
        rows += [[c.where, c.what, str(c.seconds), str(c.bytes), str(c.loss)] for c in self.changes[:SHOWN]]
        return table(rows, caption=f"{self.what}: {self.sentence}")


def explain(study: Study | str | Path, pick: str = "best") -> Explanation:
    """Tell what each change of a pick brought and cost on its target, what was left and why, and what to change next.

    Args:
        study: A study, or its folder.
        pick: ``best``, ``knee``, ``fastest``, ``smallest``, a budget such as ``latency<=1ms``, or the key of an evaluation (six
            digits of it are enough).
    Raises:
        InputError: No study there, or no such pick.
        StoreError: One that does not say what could be changed.
    Example:
        >>> explain("runs/digits", "knee").changes[0].what  # doctest: +SKIP
        '48 of 64 channels cut: the least needed by the layers that read them'
    """
    path = getattr(study, "path", study)
    if not isinstance(path, str | Path):
        raise must_be("study", "a study or the path of its folder", study, 'Write for example "runs/a".')
    with Store.open(path, create=False, readonly=True) as store:
        found = Study.read(store)
        return of(recorded(store, found), chosen(found, pick))


def chosen(study: Study, pick: str) -> Evaluation:
    """Return the evaluation that `pick` names: as `Study.pick`, or by the beginning of its key.

    Raises:
        InputError: There is none, or several begin so.
    """
    if pick in NAMES or not IDENTITY.fullmatch(pick):
        return study.best if pick == "best" else study.pick(pick)
    found = [e for e in study.usable if e.key.startswith(pick)]
    if not found:
        raise unknown("pick", pick, [e.key for e in study.usable])
    if len(found) > 1:
        raise must_be("pick", "the key of one evaluation", pick, f"Several begin so: {', '.join(e.key for e in found)}.")
    return found[0]


def explained(store: Store, pick: str = "best", *, study: Study | None = None) -> Explanation | None:
    """Explain a pick of the study in an open store; None where the record does not say what could be changed.

    Args:
        study: What was read of the store already.
    """
    if store.get("prepare", "0") is None:
        return None
    found = study or Study.read(store)
    return of(recorded(store, found), chosen(found, pick))


def of(known: Recorded, pick: Evaluation) -> Explanation:
    """Explain one evaluation of a record."""
    if any(pick.plan.choices.get(name) == choice for name, choice in known.facts.untrained):
        return _of_new(known, pick)
    study, plan = known.study, known.canonical(pick.plan)
    rate = known.points_per_loss(pick)
    made = _made(known, plan, rate)
    left, rejected = _left(known, plan, rate, pick)
    before, after = known.layer_seconds(study.baseline.plan), known.layer_seconds(plan)
    return Explanation(
        key=pick.key,
        what=describe(pick, study.baseline),
        sentence=study.sentence(pick),
        target=pick.program.target if pick.program else study.header.target,
        latency=pick.axis("latency_s"),
        predicted=_predicted(known, plan),
        typical_error=known.typical_error,
        unit=study.header.damage_unit,
        points_per_loss=rate,
        techniques=_by_gain(_techniques(known, plan, rate)),
        changes=_by_gain(made),
        next=left,
        rejected=rejected,
        beaten=_beaten(study),
        layer_seconds={name: (before[name], after[name]) for name in before},
        left_whole=study.header.left_whole,
        failed=study.unread,
    )


def _of_new(known: Recorded, pick: Evaluation) -> Explanation:
    """Explain a new model: it is one change, of the whole model, and what it brings is what was measured."""
    study, base, why = known.study, known.study.baseline, "of a new model the tables tell nothing"
    gains = {}
    for axis, unit in UNITS.items():
        old, new = base.axis(axis).value, pick.axis(axis).value
        if old is None or new is None:
            gains[axis] = unavailable(unit, "it was not measured")
        else:
            gains[axis] = measured(old - new, unit, note="as measured")
    (name, choice), *_ = (one for one in known.facts.untrained if pick.plan.choices.get(one[0]) == one[1])
    layers, untouched = known.facts.acted_on(name), base.plan[name]
    loss = unavailable(study.header.damage_unit, "it keeps no weight of the model: its drop is what training left")
    change = Change(
        knob=name,
        where="the whole model",
        layers=layers,
        what=TECHNIQUES[name.partition(".")[0]].why(untouched, choice),
        loss=loss,
        points=pick.drop,
        seconds=gains["latency_s"],
        bytes=gains["size_bytes"],
        macs=gains["macs"],
    )
    return Explanation(
        key=pick.key,
        what=describe(pick, base),
        sentence=study.sentence(pick),
        target=pick.program.target if pick.program else study.header.target,
        latency=pick.axis("latency_s"),
        predicted=unavailable("s", why),
        typical_error=known.typical_error,
        unit=study.header.damage_unit,
        points_per_loss=unavailable("points", why),
        techniques=(change,),
        changes=(change,),
        next=(),
        rejected=(),
        beaten=_beaten(study),
        layer_seconds={},
        left_whole=study.header.left_whole,
        failed=study.unread,
    )


def _predicted(known: Recorded, plan: Plan) -> Reading:
    if "latency_s" not in known.costs:
        return unavailable("s", "no operator was timed in this record")
    value = float(known.costs["latency_s"].many(known.space.encode(plan)[None])[0])
    return estimated(value, "s", note="from the tables, fitted on the whole models that were measured")


def _made(known: Recorded, plan: Plan, rate: Reading) -> list[Change]:
    """What each change of a plan brings: it alone undone."""
    out = []
    for knob in known.space.knobs:
        if plan[knob.name] != knob.menu[0]:
            pair = plan.but({knob.name: knob.menu[0]}), plan
            loss = known.loss(knob.name, plan[knob.name])
            out.append(_change(known, knob, pair, loss, rate, what=_what(knob, knob.menu[0], plan[knob.name])))
    return out


def _techniques(known: Recorded, plan: Plan, rate: Reading) -> list[Change]:
    """What all changes of one technique bring together: all of them undone."""
    out = []
    for kind in dict.fromkeys(knob.kind for knob in known.space.knobs):
        knobs = [knob for knob in known.space.knobs if knob.kind == kind]
        changed = {knob.name: knob.menu[0] for knob in knobs if plan[knob.name] != knob.menu[0]}
        if not changed:
            continue
        losses = [known.loss(name, plan[name]) for name in changed]
        total = sum(max(0.0, loss.value) for loss in losses if loss.value is not None)
        note = f"the sum of {len(changed)}; one after the other they mend one another in part"
        every = [(knob.menu[0], plan[knob.name]) for knob in knobs]
        row = TECHNIQUES.get(kind)
        said = row.says([pair for pair in every if pair[0] != pair[1]], every) if row else ""
        what = said or f"changed at {counted(len(changed), 'place')}"
        joined = Knob(kind, (knobs[0].menu[0],))
        loss, pair = estimated(total, known.study.header.damage_unit, note=note), (plan.but(changed), plan)
        out.append(_change(known, joined, pair, loss, rate, what=what, knobs=tuple(changed)))
    return out


def _change(
    known: Recorded,
    knob: Knob,
    pair: tuple[Plan, Plan],
    loss: Reading,
    rate: Reading,
    *,
    what: str,
    knobs: tuple[str, ...] = (),
) -> Change:
    """What the second plan of a pair gains over the first."""
    gains = {axis: known.gained(axis, *pair) for axis in UNITS}
    if knob.name == TARGET:
        same = "the model is the same on every target"
        gains |= {axis: measured(0.0, UNITS[axis], note=same) for axis in ("macs", "params")}
    layers = dict.fromkeys(layer for name in knobs or (knob.name,) for layer in known.facts.acted_on(name))
    remark = _remark(known, gains, pair, place="" if knobs else knob.place)
    where = (TECHNIQUES[knob.kind].noun if knob.kind in TECHNIQUES else knob.kind) if knobs else knob.place or "the whole model"
    points = _points(loss, rate)
    seconds, size, macs = (gains[axis] for axis in ("latency_s", "size_bytes", "macs"))
    return Change(knob.name, where, tuple(layers), what, loss, points, seconds, size, macs, remark)


def _points(loss: Reading, rate: Reading) -> Reading:
    """What a loss comes to in points."""
    if loss.value is None or rate.value is None:
        return unavailable("points", loss.note if loss.value is None else rate.note)
    low, high = (None if end is None else max(0.0, loss.value) * end for end in (rate.low, rate.high))
    return estimated(max(0.0, loss.value) * rate.value, "points", low=low, high=high, note=rate.note)


def _what(knob: Knob, old: Choice, new: Choice) -> str:
    if knob.name == TARGET:
        return f"runs on {new} in place of {old}"
    return TECHNIQUES[knob.kind].why(old, new)


def _remark(known: Recorded, gains: Mapping[str, Reading], pair: tuple[Plan, Plan], *, place: str) -> str:
    """Say why a change that makes the model less gains no time; empty where it gains some, or nothing was timed."""
    seconds, less = gains["latency_s"], _less(gains)
    elsewhere = any(plan.choices.get(TARGET) != pair[0].choices.get(TARGET) for plan in pair)
    if seconds.value is None or seconds.value > 0 or not (less or elsewhere):
        return ""
    was, now = (known.costs["latency_s"].by_layer(known.space.encode(plan)) for plan in pair)
    longer = float((now - was).max())
    told = "slower here" if seconds.high is not None and seconds.high < 0 else "gains no time here"
    said = f"{less}, but {told}" if less else told
    if longer <= 0 or elsewhere:
        return said
    worst = known.facts.layers[int(np.argmax(now - was))].name
    return f"{said}: {'it' if worst == place else worst} takes {show(longer, 's')} longer"


def _less(gains: Mapping[str, Reading]) -> str:
    """What a change takes away, in a word; empty where it takes nothing."""
    words = {"size_bytes": "smaller", "macs": "fewer MACs", "params": "fewer params"}
    return next((word for axis, word in words.items() if (gains[axis].value or 0.0) > 0), "")


def _by_gain(changes: Sequence[Change]) -> tuple[Change, ...]:
    """The one that gains most time first; where nothing was timed, most MACs, then most bytes."""
    return tuple(sorted(changes, key=lambda c: [-(r.value or 0.0) for r in (c.seconds, c.macs, c.bytes)]))


def _left(known: Recorded, plan: Plan, rate: Reading, pick: Evaluation) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """What was left: of each knob the further choice with the best rate that gains time, and what is smaller but gains none."""
    latency = pick.axis("latency_s")
    gaining: list[Change] = []
    rejected: list[Change] = []
    for knob in known.space.knobs:
        here = knob.menu.index(plan[knob.name])
        mine: list[Change] = []
        for choice in knob.menu[here + 1 :]:
            other = known.canonical(plan.but({knob.name: choice}))
            if other == plan:  # it does nothing under the others' choices
                continue
            more = _added_loss(known, knob, plan[knob.name], choice)
            found = _change(known, knob, (plan, other), more, rate, what=_what(knob, plan[knob.name], choice))
            if found.remark:
                rejected.append(found)
            elif (found.seconds.value or 0.0) > 0:
                mine.append(_rated(found, latency))
        gaining += sorted(mine, key=_order)[:1]
    return tuple(sorted(gaining, key=_order)), tuple(sorted(rejected, key=lambda c: c.seconds.value or 0.0))


def _added_loss(known: Recorded, knob: Knob, old: Choice, new: Choice) -> Reading:
    """What a choice loses beyond the one that was taken."""
    before, after = known.loss(knob.name, old), known.loss(knob.name, new)
    if before.value is None or after.value is None:
        return after if after.value is None else before
    if old == knob.menu[0]:
        return after
    more = max(0.0, after.value - before.value)
    made = measured if before.provenance == after.provenance == "measured" else estimated
    return made(more, after.unit, note=f"beyond what {old} loses; {after.note}")


def _rated(change: Change, latency: Reading) -> Change:
    """A change with its exchange rate."""
    if change.points.value is None or latency.value is None or not change.seconds.value:
        return change
    percent = 100 * change.seconds.value / latency.value
    return replace(change, rate=change.points.value / percent)


def _order(change: Change) -> tuple[float, float]:
    """Least points for a percent first; where that is not known, least loss for a second."""
    gain = change.seconds.value or 1e-12
    loss = math.inf if change.loss.value is None else max(0.0, change.loss.value) / gain
    return (math.inf if change.rate is None else change.rate, loss)


def _beaten(study: Study) -> tuple[Beaten, ...]:
    """Whole models that are smaller and were measured to be slower, the slowest first."""
    out = []
    base = study.baseline.axis("size_bytes")
    for e in study.usable:
        ratio, size = study.ratio(e), e.axis("size_bytes")
        if size.value and base.value and size.value < base.value and verdict(ratio) == "slower":
            smaller = measured(base.value / size.value, "1")
            out.append(Beaten(e.key, describe(e, study.baseline), ratio.reading("1"), smaller))
    return tuple(sorted(out, key=lambda row: row.times_faster.value or 0.0))
