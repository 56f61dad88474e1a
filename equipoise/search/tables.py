"""Loss tables, measured one knob at a time, and the line that corrects what they add up to.

What each change does alone to the loss (KL divergence from the teacher, in nats) ranks joint plans well when it is added up,
and better when it is added as a vector: two changes that push the answers the same way cost more than their sum, two that push
against each other less. To second order a loss is the squared length of such a push, so losses a and b at an angle w make
a + b + 2 cos(w) sqrt(a b). What is left is biased: a line in log space is fitted on whole plans as soon as some are evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.records import Choice, Knob, Plan
from equipoise.search.robust import huber_weights
from equipoise.search.space import Genomes, Space

Floats = NDArray[np.float64]

_ROWS = 4096

EPSILON = 1e-3
"""Nats added before taking the logarithm of a loss: below it, differences do not matter."""

TOGETHER = 0.5
"""Share of 2 cos(w) sqrt(a b) that counts: repair mends some of it, and angles are read on few samples."""

PRIOR_INTERCEPT = math.log(0.7)
"""Repair downstream also mends upstream damage, so a joint plan loses about 0.7 of the sum."""


@dataclass(frozen=True)
class LossTable:
    """What each choice alone adds to the loss, in nats, column by column of a space.

    Attributes:
        columns: One array per knob, `(menu,)`; entry 0 (untouched) is 0.
        floor: No other entry is below it: less than two standard errors cannot be told from it.
        toward: One array per knob, `(menu, d)`: in which direction each entry moves the answers, of length 1; 0 where this is
            not known, which counts as at right angles to all others. None where nothing is known.
    """

    space: Space
    columns: tuple[Floats, ...]
    floor: float
    toward: tuple[Floats, ...] | None = None

    def sums(self, genomes: Genomes) -> Floats:
        """Return the added loss in nats, `(n,)`, of `genomes` `(n, knobs)`."""
        rows = self.space.canonical(genomes)
        total = np.zeros(len(rows))
        for k, column in enumerate(self.columns):
            total += column[rows[:, k]]
        return total if self.toward is None else total + self._crossed(rows)

    def _crossed(self, rows: Genomes) -> Floats:
        """What the angles between the changes of each plan add, `(n,)`: the squared length of their sum less their own."""
        out = np.zeros(len(rows))
        for begin in range(0, len(rows), _ROWS):
            chosen = self._chosen(rows[begin : begin + _ROWS])
            out[begin : begin + _ROWS] = TOGETHER * np.sum((chosen @ self._products) * chosen, axis=1)
        return out

    @cached_property
    def _products(self) -> Floats:
        """Products of how far and where to entries move the answers, `(all choices, all choices)`; 0 within a knob."""
        assert self.toward is not None, "directions are known"
        pushes = np.concatenate([np.sqrt(c)[:, None] * along for c, along in zip(self.columns, self.toward, strict=True)])
        knobs = np.repeat(np.arange(len(self.columns)), self.space.sizes)
        return np.asarray(np.where(knobs[:, None] == knobs, 0.0, pushes @ pushes.T))

    def _chosen(self, rows: Genomes) -> Floats:
        """Return `(n, all choices)`: 1 where a choice is chosen."""
        out = np.zeros((len(rows), int(self.space.sizes.sum())))
        np.put_along_axis(out, rows + self._starts, 1.0, axis=1)
        return out

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each knob's menu begins among all choices."""
        return np.concatenate([[0], np.cumsum(self.space.sizes)[:-1]])

    def around(self, base: Genomes) -> tuple[Floats, ...]:
        """Return what each entry adds to the loss of a plan `(knobs,)` that has this knob untouched, a column a knob."""
        if self.toward is None:
            return self.columns
        crossed = self._products @ self._chosen(self.space.canonical(base[None]))[0]
        parts = np.split(crossed, self._starts[1:])
        return tuple(column + 2 * TOGETHER * part for column, part in zip(self.columns, parts, strict=True))

    def predict(self, plan: Plan) -> float:
        """Return the added loss of one plan in nats, not calibrated."""
        return float(self.sums(self.space.encode(plan)[None])[0])

    def shares(self, genomes: Genomes) -> Floats:
        """Return `(n, all choices)`: the share of the sum that each chosen entry has (all 0 where nothing changed)."""
        out = self._chosen(self.space.canonical(genomes)) * np.concatenate(self.columns)
        return np.asarray(out / np.maximum(out.sum(axis=1, keepdims=True), EPSILON))


def to_measure(space: Space, *, most: int | None = None) -> list[tuple[str, Choice]]:
    """Return the ``(knob, choice)`` pairs to evaluate one at a time so that `loss_table` can be filled.

    Args:
        most: Pairs that can be afforded; None for all. When there are more, nested menus are measured at fewer, evenly spaced
            choices that include the last; one each is the least, even where that is more than `most`.
    """
    longest = int(space.sizes.max()) - 1
    for count in range(longest, 0, -1):
        pairs = [(knob.name, knob.menu[i]) for knob in space.knobs for i in _anchors(knob, count)]
        if most is None or len(pairs) <= most:
            return pairs
    return [(knob.name, knob.menu[i]) for knob in space.knobs for i in _anchors(knob, 1)]


def _anchors(knob: Knob, count: int) -> list[int]:
    """Menu indices to measure: all but the untouched, or `count` of a nested menu."""
    last = len(knob.menu) - 1
    if not knob.nested or count >= last:
        return list(range(1, last + 1))
    return sorted({round(last * (i + 1) / count) for i in range(count)})


def loss_table(
    space: Space,
    measured: Mapping[tuple[str, Choice], float],
    *,
    errors: Mapping[tuple[str, Choice], float] | float = 0.0,
    toward: Mapping[tuple[str, Choice], Floats] | None = None,
) -> LossTable:
    """Build the table from one-at-a-time measurements.

    An entry below two of its standard errors is raised to that floor, not to 0: nothing is free until shown. Along a nested
    menu (see `Knob`) the entries are made rising by isotonic regression, and choices that were not measured are interpolated:
    the loss goes as a power of the share taken away, between two measured choices, and as its square outside them.

    Args:
        measured: ``(knob, choice)`` -> KL to the teacher with only that changed, in nats, finite; untouched may be left out.
        errors: Standard error of each, or of all, in nats.
        toward: Of some, the direction `(d,)` in which they move the answers, in units in which a loss is its squared length. A
            choice of a nested menu of which it is not known goes where the nearest one does.
    Raises:
        InputError: A knob or choice that is not in `space`, a value that is not finite, or a menu that cannot be filled.
    """
    for (name, choice), value in measured.items():
        space.check(space.untouched.but({name: choice}))
        if not math.isfinite(value):
            raise must_be(f"loss of {name}={choice}", "finite", value, "Leave out what could not be measured.")
    floors = {key: 2 * (errors if isinstance(errors, float | int) else errors.get(key, 0.0)) for key in measured}
    floor = min(floors.values(), default=0.0)
    raised = {key: max(value, floors[key], 0.0) for key, value in measured.items()}
    columns = tuple(_column(knob, raised) for knob in space.knobs)
    known = {key: value for key, value in (toward or {}).items() if np.any(value)}
    return LossTable(space, columns, floor, tuple(_directions(knob, known) for knob in space.knobs) if known else None)


def _directions(knob: Knob, known: Mapping[tuple[str, Choice], Floats]) -> Floats:
    """Unit vectors of one knob's menu; 0 where none is known."""
    found = {i: known[knob.name, choice] for i, choice in enumerate(knob.menu) if i and (knob.name, choice) in known}
    rows = np.zeros((len(knob.menu), len(next(iter(known.values())))))
    for i in range(1, len(knob.menu)):
        nearest = min(found, key=lambda j: abs(i - j), default=0) if knob.nested else i
        if nearest in found:
            rows[i] = found[nearest] / np.linalg.norm(found[nearest])
    return rows


def _column(knob: Knob, measured: Mapping[tuple[str, Choice], float]) -> Floats:
    """Fill one knob's menu."""
    known = [i for i, choice in enumerate(knob.menu) if i and (knob.name, choice) in measured]
    column = np.zeros(len(knob.menu))
    column[known] = [measured[knob.name, knob.menu[i]] for i in known]
    if not knob.nested:
        missing = [c for i, c in enumerate(knob.menu) if i and i not in known]
        if missing:
            raise must_be(f"loss table of {knob.name}", f"measured at {missing}", None, "Evaluate each choice once.")
        return column
    if len(knob.menu) == 1:
        return column
    if not known:
        raise must_be(f"loss table of {knob.name}", "measured at one choice or more", None, "Evaluate its last choice.")
    column[known] = isotonic(column[known])
    gone = 1.0 - np.array([float(c) for c in knob.menu]) / float(knob.menu[0])  # share taken away
    for i in range(1, len(knob.menu)):
        if i not in known:
            column[i] = _power_law(gone[i], gone[known], column[known])
    return column


def _power_law(at: float, shares: Floats, losses: Floats) -> float:
    """Interpolate linearly in log-log; outside the measured range the loss goes as the square of the share."""
    nearest = float(np.clip(at, shares[0], shares[-1]))
    inside = float(np.exp(np.interp(np.log(nearest), np.log(shares), np.log(np.maximum(losses, 1e-12)))))
    return inside * (at / nearest) ** 2


def isotonic(values: Floats) -> Floats:
    """Return the rising sequence nearest to `values` in least squares, by pooling neighbors that fall."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, n = float(value), 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (before * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    return np.concatenate([np.full(n, mean) for mean, n in pools]) if pools else np.zeros(0)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A line from added to real loss: ``log(K + eps) = a + b log(sum + eps)``.

    Attributes:
        a, b: Intercept and slope.
        sd: Typical error of log K; the prior's while fewer than 6 plans stand behind it.
        n: Plans it was fitted on.
    """

    a: float = PRIOR_INTERCEPT
    b: float = 1.0
    sd: float = 0.3
    n: int = 0

    def log(self, sums: Floats) -> Floats:
        """Return the predicted log(K + eps) for added losses in nats."""
        return np.asarray(self.a + self.b * np.log(sums + EPSILON))

    def __call__(self, sums: Floats) -> Floats:
        """Return the predicted loss in nats, never negative."""
        return np.asarray(np.maximum(np.exp(self.log(sums)) - EPSILON, 0.0))


def calibrate(sums: Sequence[float] | Floats, losses: Sequence[float] | Floats) -> Calibration:
    """Fit the line on whole plans: robust to outliers, and held near its prior while there are few.

    Args:
        sums: Added losses of the evaluated plans in nats, `(n,)`; any n, 0 gives the prior.
        losses: Their real losses in nats, `(n,)`.
    Raises:
        InputError: Lengths that differ, or a value that is not finite or below 0.
    """
    x, y = np.asarray(sums, dtype=float), np.asarray(losses, dtype=float)
    if x.shape != y.shape or not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))) or bool(np.any(x < 0)):
        raise must_be(
            "sums and losses", "finite, nonnegative and of the same length", (len(x), len(y)), "Leave out failed plans."
        )
    if len(x) == 0:
        return Calibration()
    prior = Calibration()
    design = np.stack([np.ones_like(x), np.log(x + EPSILON)], axis=1)
    target = np.log(np.maximum(y, 0.0) + EPSILON)
    center = np.array([prior.a, prior.b])
    strength = np.diag([prior.sd**2 / 0.5**2, prior.sd**2 / 0.15**2])  # a is known to 0.5, b to 0.15, before any plan
    weights = np.ones_like(x)
    solution = center
    for _ in range(20):  # reweighted least squares with Huber's weights
        left = design.T @ (design * weights[:, None]) + strength
        solution = np.linalg.solve(left, design.T @ (weights * target) + strength @ center)
        weights = huber_weights(target - design @ solution, least=0.02)
    residual = target - design @ solution
    spread = 1.4826 * float(np.median(np.abs(residual))) * math.sqrt(len(x) / max(len(x) - 2, 1))
    return Calibration(float(solution[0]), float(solution[1]), max(spread, 0.02) if len(x) >= 6 else prior.sd, len(x))
