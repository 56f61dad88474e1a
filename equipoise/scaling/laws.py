"""The laws themselves: loss from size and data, their optima in closed form, and the published constants.

Every function takes numbers or arrays that broadcast, and so does a `Law`: with constants of shape `(draws, 1)` it is a whole
bootstrap sample of laws, evaluated at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from equipoise.errors import must_be
from equipoise.scaling.runs import BACKWARD, Floats, Size

Number = float | Floats

REPETITION = 15.0
"""Epochs of repetition after which a repeated sample is worth 1/e of a fresh one, where no run says more (R*, median)."""


@dataclass(frozen=True)
class Law:
    """Loss L(N, D) = E + A / N**a + B / D_eff**b.

    D_eff = U + U R* (1 - exp(-R / R*)) with R = D / U - 1 repeats: the n-th repeat of a sample is worth exp(-n / R*) of a
    fresh one.

    Attributes:
        E: Irreducible loss, that of an unlimited model on unlimited data.
        A, a: Coefficient and exponent of what too small a model loses.
        B, b: Coefficient and exponent of what too little data loses.
        repetition: R*, in epochs beyond the first.
        size: What N counts: trainable parameters, or forward FLOPs of one sample (when resolution, width and depth all move).

    References:
        Hoffmann et al. 2022 (arXiv 2203.15556), equation 2 and approach 3. Muennighoff et al. 2023 (arXiv 2305.16264),
        equation 5, for D_eff; their second term, repeated *parameters*, is left out.
    """

    E: Number
    A: Number
    B: Number
    a: Number
    b: Number
    repetition: Number = REPETITION
    size: Size = "params"

    def effective(self, samples: Number, unique: Number | None = None) -> Number:
        """Return the fresh samples that `samples` draws from `unique` distinct ones are worth; None: all are fresh."""
        if unique is None:
            return samples
        distinct = np.minimum(unique, samples)
        repeats = np.maximum(np.asarray(samples) / distinct - 1.0, 0.0)
        return _plain(distinct * (1.0 - self.repetition * np.expm1(-repeats / self.repetition)))

    def samples_worth(self, effective: Number, unique: Number | None = None) -> Number:
        """Return the samples to see so that they are worth `effective` fresh ones; inf where no repetition can do it."""
        if unique is None:
            return effective
        worth = np.asarray(effective, dtype=float)
        share = (worth / unique - 1.0) / self.repetition
        with np.errstate(divide="ignore", invalid="ignore"):
            repeated = unique * (1.0 - self.repetition * np.log1p(-np.minimum(share, 1.0)))
        return _plain(np.where(share <= 0, worth, repeated))

    def loss(self, size: Number, samples: Number, unique: Number | None = None) -> Number:
        """Return the loss of a model of `size` that saw `samples`, of which `unique` were distinct."""
        fresh = self.effective(samples, unique)
        return _plain(self.E + self.A * np.power(size, -self.a) + self.B * np.power(fresh, -self.b))

    def samples_for(self, loss: Number, size: Number, unique: Number | None = None) -> Number:
        """Return the samples that bring a model of `size` down to `loss`; inf where it cannot get there."""
        left = np.asarray(loss - self.E - self.A * np.power(size, -self.a), dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            fresh = np.where(left > 0, np.power(self.B / np.where(left > 0, left, 1.0), 1.0 / self.b), np.inf)
        return self.samples_worth(fresh, unique)

    def optimum(self, flops: Number, per_sample: float | None = None, *, growth: float = 1.0) -> Optimum:
        """Return the size and samples of least loss for `flops` of training, with fresh data.

        With C = k N**g D:  N**(a + g b) = (aA / (g b B)) (C/k)**b  and  D = C / (k N**g). For g = 1 this is the published
        N = G (C/k)**(b/(a+b)), D = (C/k)**(a/(a+b)) / G, G = (aA / bB)**(1/(a+b)).

        Args:
            flops: Training FLOPs C.
            per_sample: k, training FLOPs per sample and unit of size. None: 6 for parameters (a dense transformer), 3 for
                forward FLOPs (exact).
            growth: g, how the work of a sample grows with the size; 1 where it is proportional.
        References:
            Hoffmann et al. 2022 (arXiv 2203.15556), equation 4.
        """
        k = per_sample if per_sample is not None else BACKWARD * (2.0 if self.size == "params" else 1.0)
        both = self.a + growth * self.b
        ratio = (self.a * self.A) / (growth * self.b * self.B)
        size = np.power(ratio, 1.0 / both) * np.power(np.asarray(flops) / k, self.b / both)
        samples = np.asarray(flops) / (k * size**growth)
        return Optimum(_plain(size), _plain(samples), self.loss(size, samples))

    @property
    def exponent(self) -> Number:
        """How the best size grows with compute: N_opt ~ C**(b/(a+b))."""
        return _plain(self.b / (self.a + self.b))


@dataclass(frozen=True)
class Optimum:
    """The best use of a compute budget: size, samples and the loss they reach."""

    size: Number
    samples: Number
    loss: Number


@dataclass(frozen=True, slots=True)
class Published:
    """A law from the literature, with where it was read."""

    law: Law
    source: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "chinchilla-printed": Published(
            Law(1.69, 406.4, 410.7, 0.34, 0.28),
            "Hoffmann et al. 2022, equation 10: rounded, from an optimizer that stopped early; 0.04 nats off on its own data",
        ),
        "chinchilla-exact": Published(
            Law(math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083),
            "the same fit without rounding, from the paper's TeX source as given by Besiroglu et al. 2024",
        ),
        "epoch": Published(
            Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
            "Besiroglu et al. 2024 (arXiv 2404.10102): 240 points read off Hoffmann's figure 4, fitted to convergence",
        ),
        "epoch-notebook": Published(
            Law(1.8172, 477.84, 2143.86, 0.3473, 0.3672), "the same, as printed by the authors' own notebook"
        ),
        "data-constrained": Published(
            Law(math.exp(0.6255), math.exp(6.2554), math.exp(7.3050), 0.3527, 0.3527, 15.39),
            "Muennighoff et al. 2023 (arXiv 2305.16264): C4, up to 9 B parameters and 900 B tokens; R* = 15.39",
        ),
    }
)
"""Language models; N = parameters, D = tokens, loss in nats per token."""

CHINCHILLA = PUBLISHED["chinchilla-exact"].law
EPOCH = PUBLISHED["epoch"].law


@dataclass(frozen=True)
class ErrorLaw:
    """A bounded score (error rate) against compute or data: error = c + a (x + d)**-b.

    It saturates at both ends, as classification error does: `c` is never beaten, and `c` + a d**-b is where an untrained model
    starts.

    References:
        Zhai et al. 2022 (arXiv 2106.04560), the saturating power law of section 2.
    """

    c: Number
    a: Number
    b: Number
    d: Number

    def error(self, x: Number) -> Number:
        """Return the error at `x` (training FLOPs, samples or params, as it was fitted)."""
        return _plain(self.c + self.a * np.power(np.asarray(x) + self.d, -self.b))


@dataclass(frozen=True)
class ShapeLaw:
    """What a shape off its best costs: Δ log L = Σ_k q_k (log x_k - log x*_k)², with x*_k = s_k t**e_k.

    The quadratic form, around the optimum, of the shape law of vision transformers; two runs off the center per dimension
    determine `q` and `s`.

    Attributes:
        curvature: Dimension -> q_k, 0 or more.
        center: Dimension -> s_k, the best value at t = 1.
        growth: Dimension -> e_k.

    References:
        Alabdulmohsin et al. 2023 (arXiv 2305.13035), section 3.
    """

    curvature: Mapping[str, float]
    center: Mapping[str, float]
    growth: Mapping[str, float]

    def best(self, t: float = 1.0) -> dict[str, float]:
        """Return the best value of each dimension at scale `t`."""
        return {k: s * t ** self.growth.get(k, 0.0) for k, s in self.center.items()}

    def penalty(self, shape: Mapping[str, float], t: float = 1.0) -> float:
        """Return Δ log L of `shape` at scale `t`; dimensions without a curvature cost nothing."""
        best = self.best(t)
        return sum(q * math.log(shape[k] / best[k]) ** 2 for k, q in self.curvature.items() if k in shape)


def fit_shape(
    star: Mapping[str, Mapping[float, float]], *, t: float = 1.0, growth: Mapping[str, float] | None = None
) -> ShapeLaw:
    """Fit a quadratic shape law to a star sweep: each dimension moved alone, at equal compute.

    Args:
        star: Dimension -> value -> loss; three values or more of each, the shared center among them.
        t: Scale of the sweep.
        growth: Dimension -> e_k, from the family's own compound rule. None: the best shape does not move.
    Returns:
        A dimension whose losses do not turn upward gets curvature 0, for nothing was learned of its optimum; its center is
        then the best value seen.
    Raises:
        InputError: Fewer than three values of a dimension, or a value or loss that is not above 0.
    """
    moves = dict(growth or {})
    curvature, center = {}, {}
    for name, points in star.items():
        if len(points) < 3 or not all(x > 0 and y > 0 and math.isfinite(x * y) for x, y in points.items()):
            raise must_be(
                f"star[{name!r}]", "three positive values or more with positive losses", dict(points), "Run more values."
            )
        x = np.log(list(points))
        bend, slope, _ = np.polyfit(x, np.log(list(points.values())), 2)
        turns = bend > 0 and x.min() - 1.0 <= -slope / (2 * bend) <= x.max() + 1.0
        curvature[name] = float(bend) if turns else 0.0
        best = math.exp(-slope / (2 * bend)) if turns else min(points, key=lambda value: points[value])
        center[name] = best / t ** moves.get(name, 0.0)
    return ShapeLaw(curvature, center, moves)


@dataclass(frozen=True, slots=True)
class Served:
    """The cheapest way to a loss when the model is also served.

    Attributes:
        size, samples: What to train.
        train, serve: Cost of training and of the expected requests, in the unit of the prices.
    """

    size: float
    samples: float
    train: float
    serve: float

    @property
    def total(self) -> float:
        """Training and serving together."""
        return self.train + self.serve


def cheapest(
    law: Law,
    loss: float,
    *,
    requests: float,
    serve: Callable[[float], float],
    train_price: float = 1.0,
    forward: Callable[[float], float] | None = None,
    unique: float | None = None,
    largest: float = 1e15,
) -> Served:
    """Return the size that reaches `loss` at the least cost of training and serving together.

    Minimizes train_price · 3 F(N) D(N; loss) + requests · serve(N) over log N by golden section. Both terms are log-convex in
    log N where F and serve are sums of powers, so the minimum is the only one; a measured staircase is better enumerated (give
    `decide` the sizes that exist).

    Args:
        law: With plain numbers as constants.
        loss: To be reached, above what the law can reach at `largest`.
        requests: Expected over the life of the model (samples served).
        serve: Size -> cost of one request: seconds × price per second, or forward FLOPs × price per FLOP.
        train_price: Cost of one training FLOP, in the same unit.
        forward: Size -> forward FLOPs of a sample. None: 2 N for parameters, N for FLOPs.
        unique: Distinct samples there are. None: as many as wanted.
        largest: Upper end of the search.
    Raises:
        InputError: A loss that this law never reaches.
    References:
        Sardana et al. 2024 (arXiv 2401.00448), equation 1.
    """
    work = forward or ((lambda n: 2.0 * n) if law.size == "params" else (lambda n: n))

    def cost(log_size: float) -> tuple[float, float, float]:
        size = math.exp(log_size)
        samples = float(law.samples_for(loss, size, unique))
        return samples, train_price * BACKWARD * work(size) * samples, requests * serve(size)

    room = float(loss - law.E)
    low = math.log(float(law.A) / room) / float(law.a) if room > 0 else math.inf
    high = math.log(largest)
    if unique is not None and low < high:  # repetition bounds what data can give: the size must make up for it
        most = unique * (1.0 + float(law.repetition))
        rest = room - float(law.B) * most ** -float(law.b)
        low = math.log(float(law.A) / rest) / float(law.a) if rest > 0 else math.inf
    if not low < high:
        floor = float(law.loss(largest, math.inf if unique is None else unique * (1.0 + float(law.repetition))))
        raise must_be(
            "loss", f"above {floor:.4g}, the least that this law reaches", loss, "Ask for a higher loss, or find more data."
        )
    log_size = golden(lambda x: sum(cost(x)[1:]), low + 1e-9, high)
    samples, train, served = cost(log_size)
    return Served(math.exp(log_size), samples, train, served)


def golden(objective: Callable[[float], float], low: float, high: float, *, tolerance: float = 1e-7) -> float:
    """Return where a quasi-convex function of one number is least between `low` and `high`; inf is allowed as a value."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = objective(left), objective(right)
    while high - low > tolerance * (1.0 + abs(low)):
        if at_left < at_right or (at_left == at_right and math.isfinite(at_left)):
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = objective(left)
        else:  # both infinite: the sizes near the lower end cannot reach the loss
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = objective(right)
    return (low + high) / 2.0


def in_time(
    law: Law, sizes: Number, samples_per_s: Number, seconds: float, unique: float | None = None
) -> tuple[Number, Number]:
    """Return the samples that each size sees before a deadline and the loss it then has.

    Args:
        samples_per_s: Measured training throughput of each size; it, not FLOPs, decides what a deadline allows.
    """
    samples = _plain(np.asarray(samples_per_s) * seconds)
    return samples, law.loss(sizes, samples, unique)


def _plain(value: Any) -> Number:
    """A float where the result has no dimensions, else the array."""
    return float(value) if np.ndim(value) == 0 else value
