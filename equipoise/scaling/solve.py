"""Many small robust nonlinear fits at once, and what may be said of their parameters with few points.

A fit is the largest posterior under Huber's loss and independent normal priors. Starts and bootstrap draws are rows of one
array, so that hundreds of fits are a few dozen matrix operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from equipoise.scaling.runs import Floats

Model = Callable[[Floats], tuple[Floats, Floats]]
"""Parameters `(rows, p)` -> values `(rows, n)` and their derivatives `(rows, n, p)`."""

HUBER = 1.345
"""Threshold in noise standard deviations that keeps 95 % of the efficiency of least squares under normal noise."""

PUBLISHED_DELTA = 1e-3
"""The threshold of the published fits, on log loss."""


@dataclass(frozen=True)
class Prior:
    """Independent normals with bounds, one of each per parameter, `(p,)`."""

    center: Floats
    sd: Floats
    low: Floats
    high: Floats

    def starts(self, rng: np.random.Generator, n: int, *, widen: float = 1.5) -> Floats:
        """Return the center and `n - 1` random points around it, `(n, p)`, inside the bounds."""
        scatter = rng.standard_normal((n, len(self.center))) * np.minimum(self.sd, 3.0) * widen
        scatter[0] = 0.0
        return np.asarray(np.clip(self.center + scatter, self.low, self.high))


@dataclass(frozen=True)
class Noise:
    """What is believed of the noise before the fit: standard deviation `sd`, worth `dof` observations."""

    sd: float
    dof: float = 1.0


@dataclass(frozen=True)
class Posterior:
    """A fit and equally likely alternatives to it.

    Attributes:
        best: Parameters of the largest posterior `(p,)`.
        draws: `(k, p)`.
        noise: Standard deviation of one observation; `noises` the same for each draw, `(k,)`.
        dof: Degrees of freedom behind `noise`.
        effective: Parameters that the points, not the prior, determine.
        residuals: Observed minus fitted `(n,)`.
        agreed: Share of the starts that ended in the best minimum.
    """

    best: Floats
    draws: Floats
    noise: float
    noises: Floats
    dof: float
    effective: float
    residuals: Floats
    agreed: float


def huber(residual: Floats, delta: Floats | float) -> Floats:
    """Return half the square inside `delta` and the tangent outside."""
    size = np.abs(residual)
    return np.asarray(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)))


def information(delta: float, noise: Floats | float) -> Floats:
    """Return the factor that turns a sum of Huber losses into minus a log likelihood under normal noise.

    It is E[ψ'] / E[ψ²], 1 / noise² for a wide threshold: with it the curvature of the objective is the inverse variance of the
    estimate, so that priors weigh what they say at any threshold.

    References:
        Huber, "Robust Estimation of a Location Parameter", 1964, equation 18 (the asymptotic variance).
    """
    sd = np.asarray(noise, dtype=float)
    k = np.minimum(delta / sd, 8.0)
    inside = np.vectorize(math.erf)(k / math.sqrt(2.0))
    density = np.exp(-0.5 * k**2) / math.sqrt(2.0 * math.pi)
    return np.asarray(inside / (sd**2 * (inside - 2.0 * k * density + k**2 * (1.0 - inside))))


def descend(
    model: Model,
    start: Floats,
    target: Floats,
    prior: Prior,
    *,
    noise: Floats | float,
    delta: float,
    center: Floats | None = None,
    weights: Floats | float = 1.0,
    steps: int = 80,
) -> tuple[Floats, Floats]:
    """Fit every row by Levenberg-Marquardt with Huber's reweighting, inside the bounds.

    Args:
        start: `(rows, p)`.
        target: `(n,)` or `(rows, n)`.
        noise: Standard deviation of an observation, one number or `(rows, 1)`.
        center: Prior centers of each row `(rows, p)`; None: those of `prior`.
        weights: Of the observations, `(n,)` or `(rows, n)`.
    Returns:
        Parameters `(rows, p)` and objectives `(rows,)`.
    """
    theta = np.clip(start, prior.low, prior.high)
    rows = len(theta)
    middle = np.broadcast_to(prior.center if center is None else center, theta.shape)
    scale = np.broadcast_to(information(delta, noise), (rows, 1))
    goal = np.broadcast_to(target, (rows, target.shape[-1]))
    share = np.broadcast_to(weights, goal.shape)
    longest = np.maximum(3.0, prior.sd / 10.0)
    objective = np.full(rows, np.inf)
    damping = np.full(rows, 1e-2)
    live, step = np.arange(rows), np.zeros_like(theta)
    for _ in range(steps):  # only rows that still move are worked on
        tried = np.clip(theta[live] + step[live], prior.low, prior.high)
        value, slope = model(tried)
        residual, pull = goal[live] - value, (middle[live] - tried) / prior.sd**2
        data = np.sum(scale[live] * share[live] * huber(residual, delta), axis=1)
        new = np.asarray(data + 0.5 * np.sum((middle[live] - tried) * pull, axis=1))
        old = objective[live]
        better = new < old
        moved = np.max(np.abs(step[live]), axis=1)
        with np.errstate(invalid="ignore"):
            settled = (better & (old - new <= 1e-9 * (1.0 + np.abs(new)))) | (~better & (moved < 1e-6))
        theta[live[better]] = tried[better]
        objective[live[better]] = new[better]
        damping[live] = np.clip(np.where(better, damping[live] / 5.0, damping[live] * 6.0), 1e-9, 1e12)
        step[live[~better]] /= 4.0  # too long: the direction goes down, so a shorter step will do
        fresh = better & ~settled
        if fresh.any():
            chosen = live[fresh]
            step[chosen] = _step(
                residual[fresh],
                slope[fresh],
                pull[fresh],
                scale[chosen] * share[chosen],
                theta[chosen],
                prior,
                damping[chosen],
                delta,
            )
            step[chosen] = np.clip(step[chosen], -longest, longest)
        live = live[~settled]
        if not len(live):
            break
    return theta, objective


def _step(
    residual: Floats, slope: Floats, pull: Floats, weight: Floats, theta: Floats, prior: Prior, damping: Floats, delta: float
) -> Floats:
    """The damped Gauss-Newton step of each row; a parameter that its gradient presses against a bound stays there."""
    share = weight * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    weighted = np.swapaxes(slope * share[..., None], 1, 2)
    hessian = weighted @ slope + np.diag(1.0 / prior.sd**2)
    gradient = (weighted @ residual[..., None])[..., 0] + pull
    held = ((theta <= prior.low) & (gradient < 0)) | ((theta >= prior.high) & (gradient > 0))
    eye = np.eye(theta.shape[1])
    hessian = np.where(held[:, :, None] | held[:, None, :], eye, hessian)
    hessian = hessian + (damping[:, None] * np.einsum("ijj->ij", hessian))[:, :, None] * eye
    return np.asarray(np.linalg.solve(hessian, np.where(held, 0.0, gradient)[..., None])[..., 0])


def posterior(
    model: Model,
    target: Floats,
    prior: Prior,
    *,
    noise: Noise,
    rng: np.random.Generator,
    starts: int = 100,
    draws: int = 200,
    delta: float | None = None,
    resample: bool = False,
    polish: Callable[[Callable[[Floats], tuple[float, Floats]], Floats, Prior], Floats] | None = None,
) -> Posterior:
    """Fit `target` from many starts and draw equally likely parameters, warm-started from the best.

    A draw refits after adding noise to the points *and* to the prior centers (exact for a linear model), with a noise level
    drawn from what the residuals leave open of it: with 3 degrees of freedom the noise itself is known within a factor of
    2, and an interval that ignores this is far too narrow. Every draw keeps every point, so all are identifiable as the whole.

    Args:
        target: `(n,)`.
        delta: Huber threshold. None: `HUBER` noise standard deviations, `PUBLISHED_DELTA` at least.
        resample: Draw by weighing the points at random (Dirichlet weights) instead of adding noise: makes no assumption on the
            noise, and needs many points.
        polish: Takes objective-with-gradient, start and bounds and returns a better point.
    References:
        Bardsley et al., "Randomize-then-optimize", SIAM J. Sci. Comput. 36 (2014). Rubin, "The Bayesian bootstrap", Ann.
        Statist. 9 (1981). Hoffmann et al. 2022, appendix D.3, for the objective.
    """
    n, sd = len(target), noise.sd
    limit = delta or max(HUBER * sd, PUBLISHED_DELTA)
    many, objectives = descend(model, prior.starts(rng, starts), target, prior, noise=sd, delta=limit)
    best = many[int(np.argmin(objectives))]
    agreed = float(np.mean(objectives < objectives.min() + 0.05))
    for _ in range(6):
        residuals, slope, share = _residuals(model, best, target, limit)
        curvature = float(information(limit, sd))
        hessian = (slope * (share * curvature)[:, None]).T @ slope + np.diag(1.0 / prior.sd**2)
        leverage = np.einsum("ij,jk,ik->i", slope, np.linalg.inv(hessian), slope) * share * curvature
        effective = float(np.clip(leverage.sum(), 0.0, n - 0.5))
        clipped = np.minimum(residuals**2, (3.0 * sd) ** 2)
        dof = noise.dof + n - effective
        before, sd = sd, math.sqrt((noise.dof * noise.sd**2 + float(clipped.sum())) / dof)
        limit = delta or max(HUBER * sd, PUBLISHED_DELTA)
        best = descend(model, best[None], target, prior, noise=sd, delta=limit)[0][0]
        if abs(math.log(sd / before)) < 1e-3:
            break
    if polish is not None:
        best = polish(_objective(model, target, prior, sd, limit), best, prior)
    residuals, _, share = _residuals(model, best, target, limit)
    noises = sd * np.sqrt(dof / rng.chisquare(dof, size=(draws, 1)))
    middle = prior.center + prior.sd * rng.standard_normal((draws, len(best)))
    warm = np.repeat(best[None], draws, axis=0)
    if resample:
        weights = n * rng.dirichlet(np.ones(n), size=draws)
        drawn, _ = descend(model, warm, target, prior, noise=sd, delta=limit, center=middle, weights=weights)
    else:
        share = np.maximum(share, 0.05)
        shocked = target + noises * rng.standard_normal((draws, n)) / np.sqrt(share)
        drawn, _ = descend(model, warm, shocked, prior, noise=noises, delta=1e9, center=middle, weights=share, steps=40)
    return Posterior(best, drawn, sd, noises[:, 0], dof, effective, residuals, agreed)


def flat(prior: Prior) -> Prior:
    """Return the prior with next to no weight, its bounds kept."""
    return replace(prior, sd=np.full_like(prior.sd, 50.0))


def _residuals(model: Model, theta: Floats, target: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    """Residuals `(n,)`, derivatives `(n, p)` and Huber weights `(n,)` at one point."""
    value, slope = model(theta[None])
    residual = target - value[0]
    return residual, slope[0], np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))


def _objective(
    model: Model, target: Floats, prior: Prior, noise: float, delta: float
) -> Callable[[Floats], tuple[float, Floats]]:
    """The objective of one fit with its gradient."""
    scale = float(information(delta, noise))

    def value(theta: Floats) -> tuple[float, Floats]:
        residual, slope, share = _residuals(model, theta, target, delta)
        gap = (theta - prior.center) / prior.sd**2
        total = scale * float(huber(residual, delta).sum()) + 0.5 * float(((theta - prior.center) * gap).sum())
        return total, gap - scale * (slope.T @ (share * residual))

    return value
