"""Fit the law to runs, and say how far it may be trusted.

The objective is the published one (Huber's loss of the residual of log loss, summed, in log-sum-exp form) plus weak priors,
which five constants need when there are twelve runs. Many of random starts, then L-BFGS, then Nelder-Mead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from equipoise.errors import InputError, must_be
from equipoise.scaling.laws import REPETITION, Law, Number, Optimum
from equipoise.scaling.runs import BACKWARD, Columns, Floats, Run, Size, columns
from equipoise.scaling.solve import Model, Noise, Posterior, Prior, posterior
from equipoise.stats import Interval

FEWEST = 6
"""Runs below which no law is fitted."""

CLEARLY = 0.01
"""Share by which one kind of size must foretell better to be preferred: where work is proportional to params, neither does."""

EXPONENTS = (0.05, 1.5)
"""Bounds of a and b."""


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is believed of a law before any run: log-normal, median and standard deviation of the logarithm.

    Attributes:
        exponents: a and b. Published fits lie between .05 and .6; 90 % of this prior between .18 and .91.
        entropy: E over the least loss seen.
        terms: What size and what data cost at the middle of the runs, over the median loss.
        repetition: R*, in epochs.
        noise: Standard deviation of log loss between repeats of one run, and the observations that this is worth.
        drift: By how much a law may be off beyond its runs: standard deviation of log loss per e-fold of size and of data.
            No law is exact: fits of 12 random small runs of the published language models are 0.5 % too high at 2–4× the size
            on average, and no residual among the small runs shows it.
        floor: Loss that nothing can beat (label noise, say), if one is known: E is kept above 0.8 of it.
    """

    exponents: tuple[float, float] = (0.4, 0.5)
    entropy: tuple[float, float] = (0.5, 1.0)
    terms: tuple[float, float] = (0.2, 1.2)
    repetition: tuple[float, float] = (REPETITION, 0.7)
    noise: tuple[float, float] = (0.004, 1.0)
    drift: float = 0.004
    floor: float | None = None


WEAK = Beliefs()
NONE = Beliefs((0.4, 50.0), (0.5, 50.0), (0.2, 50.0), noise=(0.004, 0.01), drift=0.0)
"""Bounds only, as the published fits; R* keeps its prior, for most tables say nothing of it."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law with its uncertainty.

    Attributes:
        law: The most probable law.
        draws: Equally likely laws: constants of shape `(k, 1)`, so that `draws.loss(sizes, samples)` is `(k, m)`.
        noise: Standard deviation of log loss of one run; `noises` `(k, 1)` the same for each draw.
        dof: Degrees of freedom behind `noise`.
        drift: As in `Beliefs`.
        runs: What was fitted; `left_out` counts the runs that had not annealed.
        residuals: Log loss observed minus fitted, per run.
        work: (k, g): training FLOPs of a sample are k N**g in this family.
        hold_out: Kind of size -> median relative error on the largest size when the law is fitted without it.
        diagnostics: `agreed` (share of the starts that found this minimum), `effective` (constants that the runs determine).
    """

    law: Law
    draws: Law
    noise: float
    noises: Floats
    dof: float
    drift: float
    runs: tuple[Run, ...]
    left_out: int
    residuals: tuple[float, ...]
    work: tuple[float, float]
    hold_out: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)

    def constant(self, name: str, *, level: float = 0.9) -> Interval:
        """Return a constant of the law (E, A, B, a, b, repetition, exponent) with its interval."""
        return between(np.ravel(getattr(self.draws, name)), float(getattr(self.law, name)), level, len(self.runs))

    def optimum(self, flops: float, *, level: float = 0.9) -> dict[str, Interval]:
        """Return the best size, samples and loss for `flops` of training on fresh data, each with its interval."""
        best, drawn = self._optimum(self.law, flops), self._optimum(self.draws, flops)
        losses = np.asarray(drawn.loss, dtype=float).reshape(-1, 1)
        draws = {
            "size": np.ravel(drawn.size),
            "samples": np.ravel(drawn.samples),
            "loss": spread(self, losses, best.size, best.samples, noise=False),
        }
        return {k: between(v, float(getattr(best, k)), level, len(self.runs)) for k, v in draws.items()}

    def _optimum(self, law: Law, flops: float) -> Optimum:
        return law.optimum(flops, self.work[0], growth=self.work[1])


def fit(
    runs: Sequence[Run],
    *,
    seed: int,
    starts: int = 100,
    bootstraps: int = 200,
    size: Size | Literal["auto"] = "auto",
    beliefs: Beliefs = WEAK,
    delta: float | None = None,
    resample: bool = False,
) -> Fit:
    """Fit L(N, D, U) to runs.

    Args:
        runs: Annealed ones are used (a run stopped at a high learning rate lies above the law by what annealing would bring).
        seed: Of the starts and of the draws.
        starts: Random starts, 25–500.
        bootstraps: Draws of the law.
        size: What N counts. ``auto``: both are fitted without the largest size, and params are kept unless FLOPs predict it
            clearly better.
        beliefs: Priors; `NONE` for none but bounds.
        delta: Huber threshold on log loss. None: 1.345 standard deviations of the noise, 1e-3 at least; at 1e-3 and a noise of
            several 1e-3 the fit is a median regression, which with a dozen runs wastes a third of them.
        resample: Draw by reweighing the runs instead of by adding noise (for 40 runs or more).
    Limits:
        Runs that share a trunk share its luck, which the intervals do not know: give one size two trunks if it matters.
    Raises:
        InputError: Fewer than `FEWEST` annealed runs, fewer than 3 sizes, or fewer than 2 amounts of data.
    """
    used = tuple(run for run in runs if run.annealed)
    check(used, left_out=len(runs) - len(used))
    errors: dict[str, float] = {}
    if size == "auto":
        errors = {
            kind: error for kind in ("params", "flops") if (error := _hold_out(used, kind, seed, beliefs, delta)) is not None
        }
        size = "flops" if errors.get("flops", math.inf) < errors.get("params", math.inf) * (1 - CLEARLY) else "params"
    at = columns(used)
    problem = _Problem.of(at, size, beliefs)
    rng = np.random.default_rng(seed)
    found = _solve(problem, beliefs, rng, starts=starts, draws=bootstraps, delta=delta, resample=resample)
    return Fit(
        law=problem.law(found.best),
        draws=problem.law(found.draws),
        noise=found.noise,
        noises=found.noises[:, None],
        dof=found.dof,
        drift=beliefs.drift,
        runs=used,
        left_out=len(runs) - len(used),
        residuals=tuple(float(r) for r in found.residuals),
        work=_work(at, size),
        hold_out=errors,
        diagnostics={"agreed": found.agreed, "effective": found.effective},
    )


def check(runs: Sequence[Run], *, left_out: int = 0) -> None:
    """Raise `InputError` where these runs cannot determine a law."""
    aside = f" ({left_out} more had not annealed)" if left_out else ""
    if len(runs) < FEWEST:
        raise InputError(
            f"runs must be {FEWEST} or more, annealed; got {len(runs)}{aside}. Plan some: four sizes 2× apart at three compute "
            "levels 3–4× apart are 12."
        )
    sizes = len({round(math.log(r.params), 2) for r in runs})
    amounts = len({round(math.log(r.samples), 2) for r in runs})
    if sizes < 3 or amounts < 2:
        raise InputError(
            f"runs must have 3 sizes and 2 amounts of data or more; got {sizes} and {amounts}{aside}. Add runs of other sizes, "
            "and of one size with other amounts of data."
        )


def predict(
    fitted: Fit, size: float, samples: float, unique: float | None = None, *, level: float = 0.9, noise: bool = True
) -> Interval:
    """Return the loss of a run of this size and data with its interval.

    Args:
        size: In the unit of `fitted.law.size`.
        noise: Whether the interval is that of one new run (with the noise of a run) or of its expected loss.
    """
    value = float(fitted.law.loss(size, samples, unique))
    losses = np.asarray(fitted.draws.loss(size, samples, unique), dtype=float).reshape(-1, 1)
    return between(spread(fitted, losses, size, samples, noise=noise), value, level, len(fitted.runs))


def spread(fitted: Fit, losses: Floats, sizes: Number, samples: Number, *, noise: bool = True) -> Floats:
    """Return draws of the loss of one run `(k, 9, m)` from draws `(k, m)` of its law: nine equally likely deviations each.

    The deviation is the law's drift beyond its runs and, with `noise`, that of a run.
    """
    at = columns(fitted.runs)
    away = [
        np.maximum(np.maximum(np.log(np.asarray(x) / seen.max()), np.log(seen.min() / np.asarray(x))), 0.0)
        for x, seen in ((sizes, at.size(fitted.law.size)), (samples, at.samples))
    ]
    drift = fitted.drift * np.sqrt(away[0] ** 2 + away[1] ** 2).reshape(1, -1)
    deviation = np.sqrt(drift**2 + (fitted.noises**2 if noise else 0.0))
    return np.asarray(losses[:, None, :] * np.exp(deviation[:, None, :] * _NINE[None, :, None]))


_NINE = np.array([-1.5932, -0.9674, -0.5895, -0.2822, 0.0, 0.2822, 0.5895, 0.9674, 1.5932])
"""Normal quantiles at 1/18, 3/18, ..., 17/18."""


def between(draws: Floats, value: float, level: float, n: int) -> Interval:
    """Return the central interval of draws around a value, widened to hold it."""
    if not 0.0 < level < 1.0:
        raise must_be("level", "between 0 and 1", level, "Write 0.9 for 90 %.")
    low, high = np.quantile(draws, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(value, min(float(low), value), max(float(high), value), n, level)


def _hold_out(runs: tuple[Run, ...], kind: Size, seed: int, beliefs: Beliefs, delta: float | None) -> float | None:
    """Median relative error on the largest size, fitted without it; None where too little would be left."""
    largest = max(run.size(kind) for run in runs)
    kept = tuple(run for run in runs if run.size(kind) < 0.99 * largest)
    try:
        check(kept)
    except InputError:
        return None
    problem = _Problem.of(columns(kept), kind, beliefs)
    found = _solve(problem, beliefs, np.random.default_rng(seed), starts=25, draws=2, delta=delta)
    held = columns([run for run in runs if run.size(kind) >= 0.99 * largest])
    guess = problem.law(found.best).loss(held.size(kind), held.samples, held.unique)
    return float(np.median(np.abs(guess / held.loss - 1.0)))


def _work(at: Columns, kind: Size) -> tuple[float, float]:
    """(k, g) of training FLOPs of a sample = k N**g, by least squares in logarithms."""
    if kind == "flops":
        return BACKWARD, 1.0
    x, y = np.log(at.params), np.log(BACKWARD * at.flops_per_sample)
    spread = x - x.mean()
    g = float(spread @ y / (spread @ spread))
    g = 1.0 if abs(g - 1.0) < 1e-6 else g
    return math.exp(float(y.mean() - g * x.mean())), g


@dataclass(frozen=True, eq=False)
class _Problem:
    """The fit in centered logarithms: parameters log E, log A', log B', log a, log b, log R*."""

    kind: Size
    log_size: Floats
    samples: Floats
    unique: Floats
    log_loss: Floats
    middle: tuple[float, float]
    prior: Prior

    @classmethod
    def of(cls, at: Columns, kind: Size, beliefs: Beliefs) -> _Problem:
        log_size = np.log(at.size(kind))
        fresh = Law(0, 0, 0, 1, 1, beliefs.repetition[0]).effective(at.samples, at.unique)
        middle = float(log_size.mean()), float(np.log(fresh).mean())
        least, usual = float(at.loss.min()), float(np.median(at.loss))
        terms = math.log(beliefs.terms[0] * usual)
        center = np.array(
            [
                math.log(beliefs.entropy[0] * least),
                terms,
                terms,
                math.log(beliefs.exponents[0]),
                math.log(beliefs.exponents[0]),
                math.log(beliefs.repetition[0]),
            ]
        )
        spread = (beliefs.entropy[1], beliefs.terms[1], beliefs.terms[1], beliefs.exponents[1], beliefs.exponents[1])
        floor = 1e-4 * least if beliefs.floor is None else min(0.8 * beliefs.floor, 0.99 * least)
        low = np.array([math.log(floor), terms - 12, terms - 12, *[math.log(EXPONENTS[0])] * 2, math.log(0.2)])
        high = np.array([math.log(1.02 * least), terms + 6, terms + 6, *[math.log(EXPONENTS[1])] * 2, math.log(500.0)])
        prior = Prior(np.clip(center, low, high), np.array([*spread, beliefs.repetition[1]]), low, high)
        return cls(kind, log_size - middle[0], at.samples, at.unique, np.log(at.loss), middle, prior)

    def model(self, theta: Floats) -> tuple[Floats, Floats]:
        """Log loss `(rows, n)` and its derivatives `(rows, n, 6)`."""
        a, b, limit = np.exp(theta[:, 3:4]), np.exp(theta[:, 4:5]), np.exp(theta[:, 5:6])
        repeats = np.maximum(self.samples / self.unique - 1.0, 0.0)
        left = np.exp(-repeats / limit)
        fresh = self.unique * (1.0 + limit * (1.0 - left))
        log_fresh = np.log(fresh) - self.middle[1]
        worth = self.unique * (limit * (1.0 - left) - repeats * left) / fresh
        terms = np.stack(
            np.broadcast_arrays(theta[:, 0:1], theta[:, 1:2] - a * self.log_size, theta[:, 2:3] - b * log_fresh), axis=-1
        )
        top = terms.max(axis=-1)
        parts = np.exp(terms - top[..., None])
        total = parts.sum(axis=-1)
        share = parts / total[..., None]
        slope = np.concatenate(
            [
                share,
                np.stack(
                    [-share[..., 1] * a * self.log_size, -share[..., 2] * b * log_fresh, -share[..., 2] * b * worth], axis=-1
                ),
            ],
            axis=-1,
        )
        return top + np.log(total), slope

    def law(self, theta: Floats) -> Law:
        """The law of parameters `(6,)`, or of draws `(k, 6)` as one law of `(k, 1)` constants."""
        column: Callable[[int], Number] = (lambda i: float(theta[i])) if theta.ndim == 1 else (lambda i: theta[:, i : i + 1])
        a, b = np.exp(column(3)), np.exp(column(4))
        return Law(
            E=_number(np.exp(column(0))),
            A=_number(np.exp(column(1) + a * self.middle[0])),
            B=_number(np.exp(column(2) + b * self.middle[1])),
            a=_number(a),
            b=_number(b),
            repetition=_number(np.exp(column(5))),
            size=self.kind,
        )


def _number(value: Number) -> Number:
    return float(value) if np.ndim(value) == 0 else value


def _solve(
    problem: _Problem,
    beliefs: Beliefs,
    rng: np.random.Generator,
    *,
    starts: int,
    draws: int,
    delta: float | None,
    resample: bool = False,
) -> Posterior:
    model: Model = problem.model
    return posterior(
        model,
        problem.log_loss,
        problem.prior,
        noise=Noise(*beliefs.noise),
        rng=rng,
        starts=starts,
        draws=draws,
        delta=delta,
        resample=resample,
        polish=_polish,
    )


def _polish(objective: Callable[[Floats], tuple[float, Floats]], start: Floats, prior: Prior) -> Floats:
    """L-BFGS inside the bounds, then Nelder-Mead, which does not stop where a line search gives up; the best of all is kept."""
    from scipy.optimize import minimize

    box = list(zip(prior.low, prior.high, strict=True))
    first = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=box, options={"maxiter": 500, "ftol": 1e-13})
    simplex = np.clip(np.vstack([first.x, first.x + 0.02 * np.eye(len(start))]), prior.low, prior.high)
    last = minimize(
        lambda theta: objective(theta)[0],
        first.x,
        method="Nelder-Mead",
        bounds=box,
        options={"initial_simplex": simplex, "xatol": 1e-6, "fatol": 1e-8, "maxiter": 500},
    )
    options = [start, np.asarray(first.x, dtype=float), np.asarray(last.x, dtype=float)]
    return min(options, key=lambda theta: objective(theta)[0])
