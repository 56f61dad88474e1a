"""Which evaluation is meant: by name (``knee``, ``best``, ``fastest``, ``smallest``) or by a budget (``latency<=1ms``).

The untouched model competes everywhere; a failed trial never does, and neither does one whose axis was not measured.

Measured figures are not taken for the truth. Two evaluations are *told apart* on an axis when their difference is more than
their two 95 % intervals allow together (the root of the sum of the squares of the halves that face each other; a figure without
an interval is taken as exact). What cannot be told apart from the best on one axis is decided by the next; but a cost whose
figure is more than `CLOSE` times the best is no tie, however little was measured of it. A drop below zero counts as zero unless
its interval leaves zero out: a gain must be shown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from equipoise.budget import Budget, parse_budget
from equipoise.errors import EquipoiseError, InputError, must_be, unknown
from equipoise.pareto import Knee, knee, non_dominated
from equipoise.records import Evaluation, Reading
from equipoise.stats import median

NAMES = ("best", "fastest", "knee", "smallest")
"""Picks that have a name; anything with ``<=`` or ``>=`` in it is a budget."""

CLOSE = 1.1
"""Times the best of a cost beyond which nothing ties with it. Of two loads the interval of a latency is a factor of ten."""
_ORDERS = {
    "fastest": ("latency_s", "drop", "size_bytes"),
    "smallest": ("size_bytes", "drop", "latency_s"),
    "nearest": ("drop", "latency_s", "size_bytes"),
}
"""What is minimized first, and what decides between those that it cannot tell apart."""


def pick(evaluations: Sequence[Evaluation], baseline: Evaluation, text: str, budget: Budget) -> Evaluation:
    """Return the evaluation that `text` names.

    ``fastest`` and ``smallest`` stay within the study's budget where it has one. A budget in `text` takes the place of the
    study's; what it leaves free is decided so: where the drop is bounded that much may be spent, and the fastest wins;
    otherwise the smallest drop wins. ``best`` is this rule on the study's budget, or the knee where the study has none.

    Args:
        evaluations: All trials of a study, in any order.
        baseline: The untouched model.
        text: A name of `NAMES`, or a budget.
        budget: The study's.
    Raises:
        InputError: An unknown name, a budget that cannot be read, or a bound on what this study did not measure.
        EquipoiseError: Nothing meets the budget; the message tells the nearest point and the bound that binds.
    """
    wanted = parse_pick(text)
    rivals = [e for e in _with(baseline, evaluations) if e.ok]
    if text == "knee" or (text == "best" and not budget.constraints):
        return knee_of(rivals)[0]
    for c in wanted.constraints if wanted else ():
        if not any(e.axis(c.axis).known for e in rivals):
            raise must_be(
                f"pick {c.word}", "on what this study measured", str(c), "Name it in --budget of `equipoise optimize`."
            )
    bounds = budget if wanted is None else wanted
    within = [e for e in rivals if bounds.met_by(e)]
    if not within:
        raise EquipoiseError(_missed(rivals, bounds))
    return _least(within, text if text in ("fastest", "smallest") else _order(bounds))


def promising(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """Return what keeps the bounds of a budget by its figures, the best first; whether they hold a closer look must say."""
    order = _ORDERS[_order(budget)]
    within = [e for e in evaluations if budget.constraints and e.ok and budget.met_by(e)]
    return sorted(within, key=lambda e: [_counted(e, axis) if e.axis(axis).known else math.inf for axis in order])


def parse_pick(text: str) -> Budget | None:
    """Return the budget that `text` writes, or None when it is a name.

    Raises:
        InputError: Neither a name of `NAMES` nor a budget.
    """
    if not isinstance(text, str):
        raise must_be("pick", f"one of {', '.join(NAMES)}, or a budget in words", text, 'Write for example "latency<=1ms".')
    if text in NAMES:
        return None
    if not {"<", ">", "="} & set(text):
        raise unknown("pick", text, [*NAMES, 'a budget like "latency<=1ms"'])
    return parse_budget(text)


def knee_of(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, Knee]:
    """Return the knee of latency (on a log scale) against drop, with its votes and its stability under the measured noise.

    Raises:
        InputError: No evaluation with both measured.
    """
    known = [e for e in evaluations if e.ok and e.axis("latency_s").known and e.drop.known]
    if not known:
        raise InputError("a knee must be looked for among measured evaluations; got none. Run `equipoise optimize` first.")
    points = [(math.log(e.axis("latency_s").get()), settled(e.drop)) for e in known]
    front = list({points[i]: i for i in non_dominated(points)}.values())  # equal points are one
    errors = (_error(known, "latency_s", math.log), _error(known, "drop", float))
    found = knee([points[i] for i in front], errors=errors, rng=random.Random(0))
    chosen = known[front[found.index]]
    sized = [e for e in peers(known, chosen) if e.axis("size_bytes").known]
    return min(sized, key=lambda e: (e.axis("size_bytes").get(), e is not chosen), default=chosen), found


def peers(evaluations: Sequence[Evaluation], chosen: Evaluation) -> list[Evaluation]:
    """Return the evaluations, `chosen` among them, that its measured latency and drop cannot tell it apart from."""
    axes = ("latency_s", "drop")
    known = [e for e in evaluations if e.ok and all(e.axis(axis).known for axis in axes)]
    return [e for e in known if all(_tied(e, chosen, axis) for axis in axes)]


def settled(drop: Reading) -> float:
    """Return a drop as it counts in a choice: below zero only where its interval leaves zero out."""
    value = drop.get()
    return value if value >= 0 or (drop.high is not None and drop.high < 0) else 0.0


def apart(a: Reading, b: Reading) -> bool:
    """Whether two readings of one axis differ by more than their intervals together allow."""
    low, high = sorted((a, b), key=lambda r: r.get())
    above = (low.high - low.get()) if low.high is not None else 0.0
    below = (high.get() - high.low) if high.low is not None else 0.0
    return high.get() - low.get() > math.hypot(max(above, 0.0), max(below, 0.0))


def _error(evaluations: Sequence[Evaluation], axis: str, scale: Callable[[float], float]) -> float:
    """Typical standard error of an axis: the median half-interval over 1.96; 0 where no interval was measured."""
    readings = [e.axis(axis) for e in evaluations]
    halves = [(scale(r.high) - scale(r.low)) / 2 for r in readings if r.low is not None and r.high is not None]
    return median(halves) / 1.96 if halves else 0.0


def _with(baseline: Evaluation, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    return [*evaluations] if any(e.key == baseline.key for e in evaluations) else [baseline, *evaluations]


def _least(evaluations: Sequence[Evaluation], name: str) -> Evaluation:
    """Return the evaluation that is least on the axes of `name`: each decides among those the ones before cannot tell apart."""
    axes = _ORDERS[name]
    left = [e for e in evaluations if e.axis(axes[0]).known]
    if not left:
        raise EquipoiseError(f"{axes[0]} was measured for none of the evaluations within the budget")
    for axis in axes:
        known = [e for e in left if e.axis(axis).known]
        if known:
            best = min(known, key=lambda e: _counted(e, axis))
            left = [e for e in known if _tied(e, best, axis)]
    return min(left, key=lambda e: [_counted(e, a) if e.axis(a).known else math.inf for a in reversed(axes)])


def _order(budget: Budget) -> str:
    """Where the drop is bounded that much may be spent, and the fastest wins; otherwise the smallest drop."""
    return "fastest" if {"drop", "quality"} & {c.word for c in budget.constraints} else "nearest"


def _tied(e: Evaluation, best: Evaluation, axis: str) -> bool:
    a, b = _counted(e, axis), _counted(best, axis)
    return a == b or ((axis == "drop" or a <= CLOSE * b) and not apart(e.axis(axis), best.axis(axis)))


def _counted(evaluation: Evaluation, axis: str) -> float:
    return settled(evaluation.drop) if axis == "drop" else evaluation.axis(axis).get()


def _missed(evaluations: Sequence[Evaluation], budget: Budget) -> str:
    """Say that nothing meets `budget`, what comes nearest and which bound binds."""
    near = min(evaluations, key=lambda e: sum(budget.excesses(e).values()), default=None)
    if near is None:
        return f"no evaluation of this study ended well, so none meets {budget.text}"
    over = budget.excesses(near)
    worst = max(over, key=lambda word: over[word])
    axes = {c.word: c.axis for c in budget.constraints}
    told = ", ".join(f"{word} {near.axis(axes[word])}" for word in over)
    return (
        f"no evaluation of this study meets {budget.text}. The nearest has {told}; the bound on {worst} binds. "
        "Pick the knee, write a looser budget, or give `equipoise optimize` more time."
    )
