"""Which survivors of the one-shot search are trained, for how long, and which of them go on: successive halving, as numbers.

A model that looks ruined after pruning may come back in minutes while another does not, so ranking before recovery is wrong.
Several candidates get a short training, the promising ones a longer one. What training will bring is forecast from what it has
brought; its time counts. Under a bound on the drop the one to train on is the one that promises most: how much faster it is
than the fastest that keeps the bounds now, times the chance that it will keep them too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from equipoise.axes import AXES
from equipoise.budget import Budget
from equipoise.pareto import non_dominated
from equipoise.records import Evaluation, Plan
from equipoise.road.forecast import Forecasts, History
from equipoise.search.propose import halving
from equipoise.study.picks import promising
from equipoise.study.record import Study

RUNGS = ((4, 0.12), (2, 0.13), (1, 0.35), (1, 0.4))
"""(candidates, share of the recovery time) of each rung; one alone may be any that was trained before."""
LEAST_S = 2.0
"""A rung that would give a candidate less than this, or less than the overhead of its training, is not worth that overhead.

A MiniLM of which each evaluation took 36 s got 3 to 11 steps of training in a rung that gave 4 candidates 47 s each; which of
them to train on was then told by chance."""
MARGIN = 0.8
"""Share of the allowed drop to stay within: forecasts err, and validation is a sample."""
MENDABLE = 20.0
"""A one-shot drop of more than this many times the allowed one is not worth training.

An EfficientNet-Lite0 cut to 0.35 of its time, in 8 bits: from a drop of 16.4 points to 2.9 [-0.6, 6.5] in 280 seconds of two
cores, 411 steps (one seed)."""
MENDABLE_LOSS, MENDABLE_SHARE = 0.5, 1 / 6
"""Loss up to which a plan is worth training whatever it drops, and the same as a share of the logarithm of the classes, which
is all that can be lost: of sentences written word by word the points are gone before the nats are.

A Transformer that translates, half trained, BLEU 33.5 on 200 sentences, two of the four blocks of its decoder gone: from BLEU
10.0 at 0.607 nats to 31.5 at 0.142 in 88 CPU seconds, 203 steps of 32 pairs (one seed). Trained to the end, without the same
blocks: from 0.84 nats to 0.147 in 480, BLEU 38.08 of 38.13 on 200 sentences."""
SURE = 0.75
"""Chance of keeping the drop at which a quarter of the time left is enough for a plan."""
INTACT = 0.02
"""Loss under which a one-shot model needs no recovery to speak of."""

SHORTLIST, HOPES = 6, 2
"""Room in the last race, and how much of it is for the best by figures that it is there to settle."""
FRESH = 2
"""New models that are trained first, of the `RUNGS`' candidates: the larger may be too slow, and the smaller too weak."""


def trainees(rung: int, count: int, room_s: float, overhead_s: float, carried: float, *, kinds: int = 1) -> tuple[int, float]:
    """Return how many of `count` candidates a rung trains, and the seconds that it may take; none where there is too little.

    Args:
        rung: From 0.
        room_s: Seconds left for this rung and those after it.
        overhead_s: Of one training, its evaluation included.
        carried: Share of the time that is this rung's, with what earlier ones left.
        kinds: Kinds of candidates none of which has been trained. A rung has room for one of each, and for two where it is to
            compare several, or it leaves its time to the next; the last takes what there is.
    """
    later = sum(share for _, share in RUNGS[rung + 1 :])
    seconds = room_s * carried / (carried + later)
    fit = int(seconds / ((max(LEAST_S, overhead_s) if later else LEAST_S) + overhead_s))
    most = RUNGS[rung][0]
    return 0 if later and fit < max(kinds, min(2, most, count)) else min(max(most, kinds), count, fit), seconds


def mendable_loss(classes: int) -> float:
    """Return the loss up to which a plan is worth training whatever it drops, of a model that chooses among so many classes."""
    return max(MENDABLE_LOSS, MENDABLE_SHARE * math.log(max(classes, 1)))


def candidates(evaluations: Sequence[Evaluation], budget: Budget, *, mendable: float = MENDABLE_LOSS) -> list[Evaluation]:
    """Return the one-shot evaluations to train first: within the bounds that training cannot change, spread over the loss.

    Under a bound on the drop they are spread over the latency, which is then what is to be gained: half of the losses of a
    translating Transformer lay between 1.25 and 1.6 times as fast, and what was twice as fast was not among those tried.

    Args:
        mendable: As of `mendable_loss`.
    """
    count = RUNGS[0][0]
    rows = _one_shot(evaluations, budget)
    bound = budget.bound("drop")
    if bound:
        kept = any(e.drop.get() <= MARGIN * bound for e in rows)  # then the search has a better use for the time
        rows = [e for e in rows if _mendable(e, bound, mendable)] or [e for e in rows if not kept]
    front = [rows[i] for i in non_dominated([[lost(e), e.axis("latency_s").get()] for e in rows])]
    front = sorted((e for e in front if lost(e) >= INTACT), key=lost)
    if budget.bound("latency") is not None or len(front) <= count:
        return front[:count]  # at a given latency the least loss is the best start
    logs = np.log([e.axis("latency_s").get() if bound else lost(e) for e in front])
    wanted = np.linspace(logs[0], logs[-1], count)
    return [front[i] for i in sorted({int(np.argmin(np.abs(logs - w))) for w in wanted})]


def fresh(untrained: Sequence[Evaluation], baseline: Evaluation, budget: Budget) -> list[Evaluation]:
    """Return the new models to train first: within the bounds that training cannot change, and cheaper than the untouched one.

    Nothing is known of what they will lose. Of those that cost alike the one with more MACs holds more, so those on the front
    of MACs against the costs are spread; under a bound on a cost the largest that keep it come first.
    """
    fixed = [c for c in budget.constraints if not AXES[c.word].trained]
    axes = tuple(dict.fromkeys(("latency_s", "size_bytes", *(c.axis for c in fixed if AXES[c.word].smaller))))

    def cheaper(e: Evaluation) -> bool:
        return any(e.axis(a).get() < baseline.axis(a).get() for a in ("latency_s", "size_bytes"))

    rows = [e for e in untrained if e.ok and _within(e, budget) and cheaper(e)]
    front = [rows[i] for i in non_dominated([[-e.axis("macs").get(), *(e.axis(a).get() for a in axes)] for e in rows])]
    front = sorted(front, key=lambda e: (-e.axis("macs").get(), e.axis("latency_s").get()))
    if any(AXES[c.word].smaller for c in fixed) or len(front) <= FRESH:
        return front[:FRESH]
    return halving(front)[:FRESH]


def beside(cut: Sequence[Evaluation], new: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the candidates of the first rung: those that were cut down and new ones in turn, as many as it takes."""
    turns = itertools.zip_longest(cut[: RUNGS[0][0] - len(new)], new)
    return [e for pair in turns for e in pair if e is not None]


def shortlist(study: Study, by_hand: Collection[Plan]) -> list[str]:
    """Return the keys of what the last race times beside the untouched model.

    Args:
        study: Not raced before, as it is on a replay.
        by_hand: What hand use of one tool gives: the untouched model quantized for each target.
    """
    rivals = [e for e in study.evaluations if e.ok and e.fidelity == "one-shot" and e.plan in by_hand]
    rivals.sort(key=lambda e: e.axis("latency_s").get())
    wanted = (study.best, *promising(study.usable, study.budget)[:HOPES], study.knee, *rivals, *study.front)
    return list(dict.fromkeys(e.key for e in wanted if e.fidelity != "untouched"))[:SHORTLIST]


def fastest(evaluations: Sequence[Evaluation], budget: Budget) -> float | None:
    """Return the least latency of what keeps every bound, the drop with `MARGIN`; None where nothing does."""
    bound = budget.bound("drop")
    rows = [e for e in evaluations if e.ok and _within(e, budget) and (bound is None or e.drop.get() <= MARGIN * bound)]
    return min((e.axis("latency_s").get() for e in rows), default=None)


def _within(e: Evaluation, budget: Budget) -> bool:
    """Whether an evaluation keeps the bounds that training cannot change."""
    fixed = [c for c in budget.constraints if not AXES[c.word].trained]
    return all(e.axis(c.axis).known and c.excess(e.axis(c.axis).get()) == 0 for c in fixed)


def _one_shot(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """Return the one-shot evaluations that ended well within the bounds that training cannot change."""
    return [e for e in evaluations if e.ok and e.fidelity == "one-shot" and _within(e, budget)]


def _mendable(e: Evaluation, bound: float, loss: float) -> bool:
    """Whether a one-shot evaluation drops more than the bound, and no more than training could win back."""
    return bound < e.drop.get() and (e.drop.get() <= MENDABLE * bound or lost(e) <= loss)


def lost(evaluation: Evaluation) -> float:
    """Return the loss of an evaluation that ended well to the untouched model."""
    assert evaluation.damage is not None, "a failed evaluation has no loss"
    return evaluation.damage


def reserves(
    evaluations: Sequence[Evaluation], trained: History, budget: Budget, *, mendable: float = MENDABLE_LOSS
) -> list[Evaluation]:
    """Return the one-shot evaluations beside those trained of which training on one alone may make more; with a drop bound.

    Args:
        mendable: As of `mendable_loss`.
    """
    bound = budget.bound("drop")
    if not bound:
        return []
    rows = (e for e in _one_shot(evaluations, budget) if e.plan.digest not in trained)
    return [e for e in rows if _mendable(e, bound, mendable)]


def forecasts(evaluations: Sequence[Evaluation], trained: History) -> Forecasts:
    """Return forecasts from what was trained and what each plan lost before."""
    return Forecasts({e.plan.digest: lost(e) for e in evaluations if e.ok and e.fidelity == "one-shot"}, trained)


def promote(
    alive: Sequence[Evaluation],
    outlook: Forecasts,
    count: int,
    budget: Budget,
    *,
    horizon: float,
    tried: Sequence[Evaluation],
) -> list[Evaluation]:
    """Return the `count` candidates to train on: under a bound on the drop those that promise most, else those forecast best.

    Of those none of which was trained some are spread over all, under a bound on the latency the first; where one alone will
    be trained under a bound on the drop, it is the one that promises most by its loss.

    Args:
        horizon: Seconds of training that the survivor may still get.
        tried: Everything evaluated by now.
    """
    if len(alive) <= count:
        return list(alive)
    bound = budget.bound("drop")
    if not any(outlook.trained.get(e.plan.digest) for e in alive):
        if budget.bound("latency") is not None:
            return list(alive)[:count]
        if count > 1 or bound is None:
            return _spread(alive, count)
    forecast = {e.key: outlook.drop(e.plan.digest, horizon)[0] for e in alive}
    if bound is None:
        ranked = sorted(alive, key=lambda e: forecast[e.key])
        if budget.bound("latency") is None:  # no bound at all: balance, by the distance to the ideal corner
            ranked = sorted(alive, key=lambda e: _distance(e, alive, forecast))
        return ranked[:count]
    best = fastest(tried, budget)
    slowest = max(e.axis("latency_s").get() for e in alive)

    def promise(e: Evaluation) -> float:
        gain = math.log((slowest if best is None else best) / e.axis("latency_s").get())
        gain = 1.0 + gain if best is None else max(gain, 0.0)  # where none keeps the bounds, to keep them is worth most
        return gain * outlook.chance(e.plan.digest, horizon, MARGIN * bound)

    return sorted(alive, key=lambda e: (-promise(e), forecast[e.key]))[:count]


def alone(e: Evaluation, outlook: Forecasts, budget: Budget, *, share_s: float, room_s: float, overhead_s: float) -> float:
    """Return the seconds, evaluation included, that one is trained for which is the only one to be, of `room_s` left.

    As little as makes it likely to keep the drop, as what it leaves goes to a faster one; all where its share will hardly do.
    """
    bound = budget.bound("drop")
    if bound is None or not any(outlook.trained.values()):
        return room_s
    for seconds, least in ((room_s / 4, SURE), (share_s, 0.5)):
        if seconds > 2 * overhead_s and outlook.chance(e.plan.digest, seconds - overhead_s, MARGIN * bound) > least:
            return seconds
    return room_s


def _spread(alive: Sequence[Evaluation], count: int) -> list[Evaluation]:
    """Return `count` evaluations, as many of each kind and evenly over those of a kind, in their order."""
    kinds = [[e for e in alive if e.fidelity == kind] for kind in dict.fromkeys(e.fidelity for e in alive)]
    picked: set[str] = set()
    for k, kind in enumerate(kinds):
        most = len(range(k, count, len(kinds)))
        picked |= {kind[int((i + 0.5) * len(kind) / most)].key for i in range(most)}
    return [e for e in alive if e.key in picked]


def _distance(e: Evaluation, alive: Sequence[Evaluation], forecast: Mapping[str, float]) -> float:
    """Distance to the corner of least latency and least forecast drop, both scaled to 0..1."""
    times = [math.log(a.axis("latency_s").get()) for a in alive]
    drops = [forecast[a.key] for a in alive]
    x = (math.log(e.axis("latency_s").get()) - min(times)) / ((max(times) - min(times)) or 1.0)
    y = (forecast[e.key] - min(drops)) / ((max(drops) - min(drops)) or 1.0)
    return math.hypot(x, y)
