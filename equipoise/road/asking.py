"""``Study.ask`` and ``Study.tell``: a search whose plans its user makes and measures, elsewhere or in ways of their own.

What is told stands in the record beside what was measured here, under a kind of its own and marked as told. It is on the
front, among the picks, and on the report's page; a search that goes on does not try its plan again. The last race, `export`
and `serve` leave it out, for there is no file of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.axes import AXES
from equipoise.errors import StoreError, must_be, unknown
from equipoise.records import Choice, Evaluation, Plan, Reading, as_data, evaluation_from, unavailable
from equipoise.road import rungs
from equipoise.road.proposals import Known, worst_loss
from equipoise.road.recorded import recorded
from equipoise.study.pruning import check_whole
from equipoise.study.record import TOLD, Study, interval_of, latency_beside
from equipoise.study.store import Store

HANDED = "handed"
"""Kind of the record of plans that were asked for."""
APART = 1 << 21
"""From where asked proposals are numbered, so that they draw otherwise than the rounds of a search."""
MOST = 1000
"""Plans that may be asked for at once."""
NOTE = "told by the user"
COSTS = {axis.key: axis.unit for axis in AXES.values() if not axis.of and axis.key not in ("drop", "quality")}
"""Key -> unit of what may be told of a plan's cost; what follows from another is worked out."""


def ask(study: Study | str | Path, count: int = 1) -> list[Plan]:
    """Return the plans of a study's space to try next, the most promising first, where something else evaluates them.

    They are proposed as in a search: from the tables, from what was measured here, and from the losses that were told. A plan
    that was asked for is not returned again; until it is told, it counts as it is predicted.

    Args:
        study: A study that has its tables, or its place; it must not be walked meanwhile.
        count: 1 to `MOST`.
    Returns:
        Fewer than `count` only where few are left.
    Raises:
        InputError: No study there, one that was pruned, or no such count.
        StoreError: The study has no tables yet, or another process works on it.
    Example:
        >>> plan, *_ = equipoise.ask("runs/a", 4)       # doctest: +SKIP
    """
    if type(count) is not int or not 1 <= count <= MOST:
        raise must_be("count", f"1 to {MOST}", count, "Ask again once these were told: what is proposed learns from it.")
    with Store.open(_place(study), create=False) as store:
        check_whole(store)
        number = store.count(HANDED)
        plans = known(store, number=APART + number).next(count)
        store.put(HANDED, str(number), {"plans": [as_data(plan) for plan in plans]}, seconds=0.0)
    return plans


def tell(
    study: Study | str | Path,
    plan: Plan | Mapping[str, Choice],
    *,
    quality: Reading | float | None = None,
    drop: Reading | float | None = None,
    speed_up: Reading | float | None = None,
    cost: Mapping[str, Reading | float] | None = None,
    loss: float | None = None,
    error: str = "",
) -> Evaluation:
    """Record what was found of a plan elsewhere, and return it as an evaluation of the study; `Study.load` shows it there.

    Every figure is marked as told, whatever a `Reading` says of itself: it never passes for one that was measured here. Numbers
    are in base units (seconds, bytes); a `Reading` keeps its interval too.

    Args:
        study: As `ask`.
        plan: Of the study's space, asked for or not, and not measured here.
        quality: In points of the study's metric, on its validation split.
        drop: How much worse than the untouched model, in points; instead of `quality`.
        speed_up: How many times faster than the untouched model it was, timed beside it: seconds of two machines, or of two
            sessions of one, cannot be compared.
        cost: ``size_bytes``, and ``latency_s`` where no `speed_up` is told, are needed; others are keys of `AXES`.
        loss: Its divergence from the untouched model as `Evaluation.damage` counts it, before any training. It guides what is
            proposed next; None leaves the plan as it is predicted.
        error: Why it failed, instead of figures.
    Raises:
        InputError: A plan that is not of the space, was told before or was measured here, figures that are missing, unknown,
            not finite, or of another unit, no words in `error`, or a study that was pruned.
        StoreError: The study has no space yet, or another process works on it.
    Example:
        >>> equipoise.tell("runs/a", plan, drop=0.4, speed_up=1.8, cost={"size_bytes": 52_000})     # doctest: +SKIP
    """
    if not isinstance(error, str) or (error and not error.strip()):
        raise must_be("error", "the reason in words", error, "Of an exception: error=repr(exception).")
    if cost is not None and not isinstance(cost, Mapping):
        raise must_be("cost", "a mapping of axes to figures", cost, 'Write for example cost={"size_bytes": 52_000}.')
    with Store.open(_place(study), create=False) as store:
        check_whole(store)
        found = Study.read(store)
        space = recorded(store, found).facts.space
        if not isinstance(plan, Plan | Mapping):
            raise must_be("plan", "a plan, or its choices", plan, "study.ask() returns some.")
        plan = space.decode(space.encode(Plan(plan.choices if isinstance(plan, Plan) else plan)))
        made = Evaluation(plan, "told", unavailable("points", NOTE), unavailable("points", NOTE), {}, error=error)
        for e in found.evaluations:
            if e.plan == plan and (e.ok or e.fidelity == "told"):
                how = "told once" if e.fidelity == "told" else "one that was not measured here"
                raise must_be("plan", how, dict(plan.choices), f"The study has it as {e.key}.")
        if not error:
            made = _figured(made, found, quality=quality, drop=drop, speed_up=speed_up, cost=dict(cost or {}), loss=loss)
        elif any(given is not None for given in (quality, drop, speed_up, cost, loss)):
            raise must_be("error", "told instead of figures", error, "A plan that failed has none.")
        store.put(TOLD, made.key, {"evaluation": as_data(made)}, seconds=0.0)
    return made


def known(store: Store, *, number: int) -> Known:
    """Return what the plans of an open study are proposed from outside of a walk.

    Raises:
        StoreError: Its tables were not measured.
    """
    study = Study.read(store, raced=False)  # the search's own readings, as a walk takes them
    found = recorded(store, study)
    space = found.table.space
    if space.size < 2 or not found.timed:
        raise StoreError(
            f"the study at {store.name} has no tables yet that plans could be proposed from. "
            "Give `equipoise optimize` on it more time."
        )
    told = [evaluation_from(row["evaluation"]) for row in store.all(TOLD)]
    plans: dict[Plan, float | None] = {Plan(choices): None for row in store.all(HANDED) for choices in row["plans"]}
    plans |= {e.plan: e.damage for e in told}
    own = [e for e in study.evaluations if e.fidelity not in ("told", "recovered") and space.holds(e.plan)]
    mendable = (rungs.MENDABLE, rungs.mendable_loss(found.facts.classes))
    return Known(
        space=space,
        table=found.table,
        features={target: replace(features, space=space) for target, features in found.features.items()},
        evaluations=own,
        budget=study.budget,
        meters=study.header.meters,
        worst_loss=worst_loss(own, study.budget, mendable=mendable),
        seed=study.header.seed,
        number=number,
        elsewhere={plan: loss for plan, loss in plans.items() if space.holds(plan)},
    )


def _place(study: Study | str | Path) -> str | Path:
    return study.path if isinstance(study, Study) else study


def _figured(
    made: Evaluation,
    study: Study,
    *,
    quality: Reading | float | None,
    drop: Reading | float | None,
    speed_up: Reading | float | None,
    cost: dict[str, Reading | float],
    loss: Any,
) -> Evaluation:
    """Put the figures that were told into an evaluation, and what follows from them."""
    base = study.baseline
    if (quality is None) == (drop is None):
        raise must_be("quality or drop", "told, one of the two", (quality, drop), "Each follows from the other.")
    if (speed_up is None) == ("latency_s" not in cost):
        raise must_be(
            "speed_up or cost['latency_s']", "told, one of the two", (speed_up, cost), "Time the untouched model too."
        )
    if "size_bytes" not in cost:
        raise must_be("cost", "told with size_bytes", cost, "The front trades it off.")
    if loss is not None and not (_real(loss) and loss >= 0):
        raise must_be("loss", "a finite number, 0 or more", loss, f"It is counted in {study.header.damage_unit}.")
    for key in cost:
        if key not in COSTS:
            raise unknown("cost", key, COSTS)
    costs = {key: _reading(f"cost[{key!r}]", value, COSTS[key], positive=True) for key, value in cost.items()}
    ratio = None if speed_up is None else _reading("speed_up", speed_up, "1", positive=True)
    if ratio is not None:
        costs["latency_s"] = replace(latency_beside(base.axis("latency_s").get(), interval_of(ratio)), provenance="told")
    sign = 1.0 if study.header.metric["maximize"] else -1.0
    if quality is not None:
        good = _reading("quality", quality, base.quality.unit)
        if base.quality.unit == "points" and 0 < good.get() <= 1 < base.quality.get() / 20:
            raise must_be("quality", "in points, as the untouched model's is", quality, f"Its own is {base.quality.get():.4g}.")
        worse = _turned(good, base.quality.get(), sign, base.drop.unit)
    else:
        assert drop is not None
        worse = _reading("drop", drop, base.drop.unit)
        good = _turned(worse, sign * base.quality.get(), sign, base.quality.unit)
    damage = None if loss is None else float(loss)
    return replace(made, quality=good, drop=worse, cost=costs, speed_up=ratio, damage=damage)


def _turned(told: Reading, base: float, sign: float, unit: str) -> Reading:
    """Return the drop that a told quality is, below the `base`; of a drop, below ``sign * base``, the quality."""
    ends = [None if end is None else sign * (base - end) for end in (told.low, told.high)]
    low, high = sorted(ends) if None not in ends else (None, None)  # type: ignore[type-var]
    return replace(told, value=sign * (base - told.get()), low=low, high=high, unit=unit)


def _reading(name: str, told: Any, unit: str, *, positive: bool = False) -> Reading:
    """Return a figure that was told, marked as such.

    Raises:
        InputError: It is no finite number of this unit, or not positive where it has to be.
    """
    found = told if isinstance(told, Reading) else Reading(float(told), unit) if _real(told) else None
    if found is None or found.value is None or not all(_real(v) for v in (found.value, found.low, found.high) if v is not None):
        raise must_be(name, "a finite number, or a reading of one", told, "Tell why it failed as error=... instead.")
    if found.unit != unit:
        raise must_be(name, f"in {unit}", found.unit, "Convert it.")
    if not (-math.inf if found.low is None else found.low) <= found.value <= (math.inf if found.high is None else found.high):
        raise must_be(name, "inside its interval", told, "Give low and high in order.")
    if positive and min(v for v in (found.value, found.low) if v is not None) <= 0:
        raise must_be(name, "above 0", told, "Nothing costs nothing.")
    estimate = " as an estimate" if found.provenance == "estimated" else ""
    return replace(found, provenance="told", note=f"{NOTE}{estimate}{f': {found.note}' if found.note else ''}")


def _real(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except TypeError:
        return False
