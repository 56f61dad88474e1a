"""The genetic search on shape: which width, depth, resolution, ... spend a given compute best.

The law says what size deserves; near the best size the loss is flat, and shape decides. What a shape loses or wins against the
family's own rule of growth is learned from a few small runs: first every dimension moved alone, then what NSGA-II proposes over
law and surrogate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from equipoise.errors import InputError
from equipoise.records import Knob
from equipoise.scaling import Available, Fit, Run, predict
from equipoise.scaling.runs import BACKWARD, Floats
from equipoise.search import Genomes, Space, nsga2
from equipoise.search.surrogate import GaussianProcess, fit_gp
from equipoise.sizing.advice import CAUTIOUS
from equipoise.workloads.families import Family, Scale

UNIT = 0.1
"""Log loss that the surrogate's priors, made for compression losses, take for 1: shapes matter by hundredths of it."""
UNKNOWN = 0.03
"""Standard deviation of what a shape does to log loss, before any run tells."""
POPULATION, GENERATIONS = 32, 20


@dataclass(frozen=True)
class Shapes:
    """What is known of the shapes of one family.

    Attributes:
        available: Counts a scale; remembers.
        ray: Sizes of the family's own rule, ascending.
        fitted: The law, fitted to runs on the ray.
        learned: Of the log loss of runs off the ray, less the law's; None before there are any.
        unique: Distinct samples that there are.
    """

    family: Family
    available: Callable[[Scale], Available]
    ray: tuple[Available, ...]
    fitted: Fit
    learned: GaussianProcess | None = None
    unique: float = math.inf

    def taught(self, runs: Sequence[Run]) -> Shapes:
        """Return this with a surrogate fitted to `runs` off the ray, and to those on it, whose residuals say what noise is."""
        if not runs:
            return self
        every = [*self.fitted.runs, *runs]
        rows = self._features([self.available(self.family.scale(**run.scale)) for run in every])
        left = np.array([math.log(run.loss / self._law(run)) for run in every])
        return replace(self, learned=fit_gp(rows, rows, left / UNIT))

    def shift(self, sizes: Sequence[Available]) -> tuple[Floats, Floats]:
        """Return mean and standard deviation `(n,)` of what each shape adds to the law's log loss."""
        rows = self._features(sizes)
        off = np.abs(rows).max(axis=1, initial=0.0) > 1e-6
        if self.learned is None:
            return np.zeros(len(rows)), np.where(off, UNKNOWN, 0.0)
        mean, sd = self.learned.predict(rows, rows)
        return np.where(off, UNIT * mean, 0.0), np.where(off, UNIT * sd, 0.0)

    def star(self, base: Available) -> list[Scale]:
        """Return `base` with each dimension moved alone, one choice down and one up."""
        out: list[Scale] = []
        for dimension in self.family.dimensions:
            here = base.scale[dimension.name]
            below = [v for v in dimension.menu if v < here]
            above = [v for v in dimension.menu if v > here]
            for value in (*below[-1:], *above[:1]):
                scale = self._scale({**base.scale, dimension.name: value})
                if scale is not None:
                    out.append(scale)
        return out

    def search(self, flops: float, *, rng: np.random.Generator, hopeful: bool) -> list[tuple[Available, float]]:
        """Return the front of predicted log loss and work of a sample, for `flops` of training.

        Args:
            hopeful: Score shapes by the lower end of what they may do (to find what is worth a run), or by the upper, and then
                only those between shapes that runs were made of: beyond them nothing holds what is predicted.
        """
        space = self._space()
        if space is None:
            return []
        sign = -1.0 if hopeful else CAUTIOUS

        def score(genomes: Genomes) -> tuple[Floats, Floats]:
            objectives, excess = np.zeros((len(genomes), 2)), np.zeros((len(genomes), 1))
            for i, size in enumerate([self._sized(space, row) for row in genomes]):
                if size is None:
                    objectives[i], excess[i] = (1e9, 1e9), 1.0
                    continue
                mean, sd = self.shift([size])
                objectives[i] = self._log_loss(size, flops) + mean[0] + sign * sd[0], math.log(size.flops_per_sample)
                excess[i] = 0.0 if hopeful else self._beyond(size)
            return objectives, excess

        found = nsga2(space, score, rng=rng, population=POPULATION, generations=GENERATIONS)
        best = found.front & ~np.any(found.excess > 0, axis=1)
        rows = [(self._sized(space, g), o[0]) for g, o in zip(found.genomes[best], found.objectives[best], strict=True)]
        known = [(size, float(loss)) for size, loss in rows if size is not None]
        return sorted(known, key=lambda row: row[1])

    def _space(self) -> Space | None:
        knobs = [
            Knob(d.name, tuple(dict.fromkeys((_choice(d.default), *map(_choice, d.menu)))))
            for d in self.family.dimensions
            if len(d.menu) > 1
        ]
        return Space(tuple(knobs)) if len(knobs) > 1 else None

    def _sized(self, space: Space, genome: Genomes) -> Available | None:
        scale = self._scale({name: float(value) for name, value in space.decode(genome).choices.items()})
        return None if scale is None else self.available(scale)

    def _scale(self, values: Scale) -> Scale | None:
        """The checked scale, or None for a combination that the family does not have."""
        try:
            return self.family.scale(**values)
        except InputError:
            return None

    def _features(self, sizes: Sequence[Available]) -> Floats:
        """Logs of the dimensions over those of the ray at the same work, `(n, dimensions)`."""
        names = [d.name for d in self.family.dimensions]
        work = np.log([a.flops_per_sample for a in self.ray])
        out = np.zeros((len(sizes), len(names)))
        for i, size in enumerate(sizes):
            at = math.log(size.flops_per_sample)
            for k, name in enumerate(names):
                usual = np.interp(at, work, np.log([a.scale[name] for a in self.ray]))
                out[i, k] = math.log(size.scale[name]) - usual
        return np.where(np.abs(out) < 0.05, 0.0, out)

    def _beyond(self, size: Available) -> float:
        """How far a shape lies beyond those that runs were made of; 0 between them."""
        row = self._features([size])[0]
        tried = np.zeros((1, len(row))) if self.learned is None else self.learned.x
        over = np.maximum(tried.min(axis=0) - row, row - tried.max(axis=0)).max()
        return float(over) if over > 1e-6 else 0.0

    def _law(self, run: Run) -> float:
        return predict(self.fitted, run.size(self.fitted.law.size), run.samples, run.unique).value

    def _log_loss(self, size: Available, flops: float) -> float:
        law, samples = self.fitted.law, flops / (BACKWARD * size.flops_per_sample)
        return math.log(float(law.loss(size.size(law.size), samples, min(samples, self.unique))))


def _choice(value: float) -> int | str:
    """A menu entry as a plan holds it."""
    return int(value) if float(value).is_integer() else f"{value:g}"
