"""Which size to train: a range of sizes with next to no regret, the recommended one in it, and when not to answer.

The loss is flat around its best size (twice the size costs about half a percent), so the answer is a range, and within it cost
decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.scaling.design import Addition, Available, affordable, to_add
from equipoise.scaling.fit import Fit, between, spread
from equipoise.scaling.quality import Link
from equipoise.scaling.runs import BACKWARD, Floats, columns
from equipoise.stats import Interval
from equipoise.units import counted

REACH = 4.0
"""How far beyond the largest run a size, or an amount of data, may lie.

Along the best use of compute, size and data both grow near its square root, so 4× in each is 16× in compute: one rule for both.
Beyond it a few runs no longer hold the exponents: on the published language-model runs, 8 to 40 small ones choose an optimum
10× further in compute within 0.5 % of loss, and one 100× further not.
"""

SPAN = 8.0
"""Width of the 90 % interval of the best size, as a ratio, beyond which no size is recommended."""

SLACK = 0.005
"""Relative loss that may be given away for a cheaper size."""

ROUND_OFF = 1e-9
"""Relative excess that breaks no limit: a size trained for all the time there is keeps the limit on it."""

ENOUGH = 8
"""Runs below which no size is recommended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A size that could be trained, and what the caller knows of it.

    Attributes:
        available: The size.
        samples: Samples that it would see within the compute or the time there is.
        unique: Distinct samples among them. None: all.
        costs: Name -> value, for the limits (`latency_s`, `train_s`, `price_usd`, `size_bytes`, ...). None: unknown.
        serve: Cost of one request, in any unit; None: unknown.
        train: Cost of the training, in the same unit.
        penalty: What is added to its log loss by what follows training (a compressor's predicted loss).
        label: How it would be made, where there are several ways (``direct``, ``compressed``).
    """

    available: Available
    samples: float
    unique: float | None = None
    costs: Mapping[str, float | None] = field(default_factory=dict)
    serve: float | None = None
    train: float = 0.0
    penalty: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate with what is predicted of it.

    Attributes:
        loss: Of one training run, with its interval; `quality` likewise, or None.
        regret: Loss over the best loss among the candidates that meet the limits, minus 1, by the most probable law.
        regret_high: The upper end of its interval over the draws of the law.
        excess: Limit -> by how much it is broken, relative; infinite is written as None, for a cost that is unknown.
        reach: Its size or data over those of the largest run, whichever is more.
        total: Training plus the expected requests, or None where requests or the cost of one are unknown.
    """

    candidate: Candidate
    loss: Interval
    quality: Interval | None
    regret: float
    regret_high: float
    excess: Mapping[str, float | None]
    reach: float
    total: float | None

    @property
    def allowed(self) -> bool:
        """Whether every limit holds."""
        return not self.excess


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, or why there is none.

    Attributes:
        answered: False for a refusal.
        reason: Why this one, or why none, in one or two sentences.
        recommended: The cheapest option of the range to serve (or in total, with `requests`). None when refused.
        best: The option of least predicted loss that meets the limits. None when none does.
        range: Options within `SLACK` of the best that meet the limits and lie within `REACH`, by size.
        options: Every candidate, by size.
        optimum: The best size (params) among those that meet the limits, with its interval. None when none does.
        binding: Limits that no candidate meets together with the others, the tightest first; empty when some size meets all.
        nearest: When none meets the limits, the option that breaks them least.
        add: When refused for want of runs, the runs to add.
        within: When refused for want of runs, the best that lies within `REACH`: a size that does, on no more data than does.
            It is none of `options` where those see more. None where every size is too large, or the runs are too few to tell.
    """

    answered: bool
    reason: str
    recommended: Option | None
    best: Option | None
    range: tuple[Option, ...]
    options: tuple[Option, ...]
    optimum: Interval | None
    binding: tuple[str, ...] = ()
    nearest: Option | None = None
    add: tuple[Addition, ...] = ()
    within: Option | None = None


def decide(
    fitted: Fit,
    candidates: Sequence[Candidate],
    *,
    limits: Mapping[str, float] | None = None,
    requests: float | None = None,
    link: Link | None = None,
    slack: float = SLACK,
    level: float = 0.9,
) -> Decision:
    """Choose among sizes by predicted loss under limits, then by cost.

    Args:
        fitted: From `fit`.
        candidates: Sizes with the data each would see; several ways to make one size may compete (`label`).
        limits: Cost name -> most that is accepted. A cost that is unknown cannot meet its limit.
        requests: Expected over the life of the model. Given: the recommended option is the one of least training + requests ×
            serving within the range. None: the one of least serving cost.
        link: From loss to the user's metric.
        slack: Regret accepted, relative loss.
        level: Of all intervals.
    Raises:
        InputError: No candidates, a value that is not positive, or a limit on a cost that no candidate has.
    References:
        The refusals follow Hoffmann et al. 2022 refitted by Besiroglu et al. 2024: exponents from small runs alone are biased.
    """
    bounds = dict(limits or {})
    _check(candidates, bounds, requests)
    ordered = sorted(candidates, key=lambda c: (c.available.params, c.label))
    value, draws = _losses(fitted, ordered)
    broken = [_excess(c, bounds) for c in ordered]
    allowed = np.array([not e for e in broken])
    options = _options(fitted, ordered, value, draws, broken, allowed, requests=requests, link=link, level=level)
    if not allowed.any():
        return _no_size(options, bounds)
    kept = [o for o, ok in zip(options, allowed, strict=True) if ok]
    best = min(kept, key=lambda o: o.regret)
    sizes = np.array([o.candidate.available.params for o in kept])
    chosen = sizes[np.argmin(draws[:, allowed], axis=1)]
    optimum = between(chosen, best.candidate.available.params, level, len(fitted.runs))
    inside = tuple(o for o in kept if o.regret <= slack and o.reach <= REACH)
    why = _refusal(fitted, best, optimum)
    if why:
        add = _additions(fitted, kept, best)
        within = _within(fitted, [o.candidate for o in kept], link, level) if len(fitted.runs) >= ENOUGH else None
        return Decision(False, why + _named(within, best), None, best, inside, options, optimum, add=add, within=within)
    recommended = min(inside, key=lambda o: _cost(o, requests))
    by = f"total cost with {requests:g} requests" if requests is not None else "cost of serving"
    reason = (
        f"Of {counted(len(inside), 'size')} within {slack:.1%} of the least predicted loss, the one of "
        f"least {by}; its regret is "
        f"{recommended.regret:.2%} ({recommended.regret_high:.2%} at the worst end of the {level:.0%} interval)."
    )
    return Decision(True, reason, recommended, best, inside, options, optimum)


def for_compute(menu: Sequence[Available], flops: float, *, unique: float | None = None) -> tuple[Candidate, ...]:
    """Return one candidate per size, each trained with `flops` of compute on `unique` distinct samples."""
    out = []
    for available in menu:
        samples = flops / (BACKWARD * available.flops_per_sample)
        out.append(Candidate(available=available, samples=samples, unique=None if unique is None else min(unique, samples)))
    return tuple(out)


def _check(candidates: Sequence[Candidate], limits: Mapping[str, float], requests: float | None) -> None:
    if not candidates:
        raise must_be("candidates", "at least one size", [], "Give the sizes of the family.")
    for c in candidates:
        if not (c.available.params > 0 and c.available.flops_per_sample > 0 and c.samples > 0 and math.isfinite(c.samples)):
            raise must_be("candidate", "of positive size with positive, finite samples", c, "Check the family's counts.")
    for name, bound in limits.items():
        if not any(name in c.costs for c in candidates):
            raise must_be("limits", "on costs that the candidates state", name, "Put this cost into Candidate.costs.")
        if not bound > 0:
            raise must_be(f"limit {name}", "above 0", bound, "Give the most that you can accept.")
    if requests is not None and not requests >= 0:
        raise must_be("requests", "0 or more", requests, "Give the requests expected over the life of the model.")


def _losses(fitted: Fit, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
    """Loss of each candidate by the most probable law `(m,)` and by each draw `(k, m)`."""
    size = np.array([c.available.size(fitted.law.size) for c in candidates])
    samples = np.array([c.samples for c in candidates])
    unique = np.array([c.samples if c.unique is None else min(c.unique, c.samples) for c in candidates])
    after = np.exp([c.penalty for c in candidates])
    value = np.asarray(fitted.law.loss(size, samples, unique), dtype=float) * after
    return value, np.asarray(fitted.draws.loss(size, samples, unique), dtype=float) * after


def _excess(candidate: Candidate, limits: Mapping[str, float]) -> dict[str, float | None]:
    """Limit -> relative excess, of those that are broken."""
    out: dict[str, float | None] = {}
    for name, bound in limits.items():
        cost = candidate.costs.get(name)
        if cost is None:
            out[name] = None
        elif cost > bound * (1.0 + ROUND_OFF):
            out[name] = cost / bound - 1.0
    return out


def _options(
    fitted: Fit,
    candidates: Sequence[Candidate],
    value: Floats,
    draws: Floats,
    broken: Sequence[Mapping[str, float | None]],
    allowed: NDArray[np.bool_],
    *,
    requests: float | None,
    link: Link | None,
    level: float,
) -> tuple[Option, ...]:
    """Every candidate with what is predicted of it."""
    among = allowed if allowed.any() else np.ones_like(allowed)
    regret = value / value[among].min() - 1.0
    regrets = draws / draws[:, among].min(axis=1, keepdims=True) - 1.0
    at = columns(fitted.runs)
    largest, most = at.size(fitted.law.size).max(), at.samples.max()
    sizes = np.array([c.available.size(fitted.law.size) for c in candidates])
    noisy = spread(fitted, draws, sizes, np.array([c.samples for c in candidates]))
    out = []
    for i, c in enumerate(candidates):
        total = None if requests is None or c.serve is None else c.train + requests * c.serve
        out.append(
            Option(
                c,
                between(noisy[:, :, i], float(value[i]), level, len(fitted.runs)),
                None if link is None else link.predict(noisy[:, :, i], float(value[i]), level=level),
                max(float(regret[i]), 0.0) if among[i] else float(regret[i]),
                float(np.quantile(regrets[:, i], (1.0 + level) / 2.0)),
                broken[i],
                float(max(sizes[i] / largest, c.samples / most)),
                total,
            )
        )
    return tuple(out)


def _cost(option: Option, requests: float | None) -> tuple[float, float]:
    """What decides within the range; sizes whose cost is unknown come last, then the smaller work wins."""
    cost = option.total if requests is not None else option.candidate.serve
    return (math.inf if cost is None else cost, option.candidate.available.flops_per_sample)


def _refusal(fitted: Fit, best: Option, optimum: Interval) -> str:
    """Why no size may be recommended, or nothing."""
    if len(fitted.runs) < ENOUGH:
        return f"{len(fitted.runs)} runs are too few to choose a size; {ENOUGH} or more are needed."
    if best.reach > REACH:
        return (
            f"The size of least predicted loss, {best.candidate.available.params:.3g} params on {best.candidate.samples:.3g} "
            f"samples, is {best.reach:.1f}× the largest run in size or data; a fit of small runs holds to {REACH:g}×."
        )
    if optimum.high / optimum.low > SPAN:
        return (
            f"The {optimum.confidence:.0%} interval of the best size, {optimum.low:.3g} to {optimum.high:.3g} params, spans "
            f"more than {SPAN:g}×: the runs do not determine it."
        )
    return ""


def _within(fitted: Fit, candidates: Sequence[Candidate], link: Link | None, level: float) -> Option | None:
    """The candidate of least predicted loss within `REACH` of the largest run, its data cut where they are not."""
    at = columns(fitted.runs)
    largest, most = at.size(fitted.law.size).max(), REACH * at.samples.max()
    near = [
        replace(c, samples=min(c.samples, most), unique=None if c.unique is None else min(c.unique, most))
        for c in candidates
        if c.available.size(fitted.law.size) <= REACH * largest
    ]
    if not near:
        return None
    value, draws = _losses(fitted, near)
    every = np.ones(len(near), dtype=bool)
    found = _options(fitted, near, value, draws, [{}] * len(near), every, requests=None, link=link, level=level)
    return min(found, key=lambda o: o.regret)


def _named(within: Option | None, best: Option) -> str:
    """What can be said all the same: the best size within reach, and what it would give."""
    if within is None:
        return ""
    loss, c = within.loss, within.candidate
    above = max(0.0, loss.value / best.loss.value - 1.0)
    return (
        f" Within reach of the runs the best is {c.available.params:.3g} params on {c.samples:.3g} samples: "
        f"expected loss {loss.value:.4g} ({loss.low:.4g} to {loss.high:.4g}), {above:.1%} above the least predicted."
    )


def _additions(fitted: Fit, kept: Sequence[Option], best: Option) -> tuple[Addition, ...]:
    """Three runs that would help most: within reach of the best where it is too far, else those that narrow the choice."""
    dearest = max(run.flops for run in fitted.runs)
    target = [(o.candidate.available, o.candidate.samples) for o in kept]
    menu = list({a.params: a for a, _ in target}.values())
    unique = best.candidate.unique
    if best.reach > REACH:  # bring the best within reach: runs at a quarter of its size and data
        wanted = best.candidate.available.flops_per_sample / REACH
        enough = [a for a in menu if a.flops_per_sample >= 0.999 * wanted]
        near = sorted(enough, key=lambda a: a.flops_per_sample)[:3]
        return to_add(fitted, [(a, best.candidate.samples / REACH) for a in near], target=target, unique=unique)
    small = [a for a in menu if a.params <= REACH * max(r.params for r in fitted.runs)] or menu[:1]
    return to_add(fitted, affordable(small, dearest), target=target, unique=unique)


def _no_size(options: tuple[Option, ...], limits: Mapping[str, float]) -> Decision:
    """Refuse because no size meets the limits: which binds, and what comes nearest."""

    def over(o: Option) -> float:
        return sum(math.inf if e is None else math.log1p(e) for e in o.excess.values())

    nearest = min(options, key=lambda o: (over(o), o.regret))
    worst = {name: math.inf if e is None else e for name, e in nearest.excess.items()}
    binding = tuple(sorted(worst, key=lambda name: -worst[name]))
    name = binding[0]
    cost = nearest.candidate.costs.get(name)
    what = "is unknown" if cost is None else f"is {cost:.4g} against {limits[name]:.4g}"
    reason = f"No size meets the limits. {nearest.candidate.available.params:.3g} params comes nearest: its {name} {what}" + (
        f"; {', '.join(binding[1:])} also broken." if binding[1:] else "."
    )
    return Decision(False, reason, None, None, (), options, None, binding, nearest)
