"""Genetic search over menu indices: non-dominated sorting with operators that know what a knob is.

Crossover swaps whole stages or single knobs; mutation redraws one to three knobs or makes a *level switch* (one knob cut
more, another less), which moves along the front instead of across it. A genome is never evaluated twice in a population.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.search.rank import Bools, survivors
from equipoise.search.space import Genomes, Space

Floats = NDArray[np.float64]

Evaluate = Callable[[Genomes], tuple[Floats, Floats]]
"""Genomes `(n, knobs)` -> objectives `(n, axes)`, minimized, and excesses over the bounds `(n, bounds)`, 0 where they hold."""


@dataclass(frozen=True)
class Population:
    """Distinct genomes with what they score.

    Attributes:
        genomes: `(n, knobs)`.
        objectives: `(n, axes)`.
        excess: `(n, bounds)`.
        rank: `(n,)`, 0 = dominated by none of the others, constraints first.
    """

    genomes: Genomes
    objectives: Floats
    excess: Floats
    rank: NDArray[np.int64]

    @property
    def front(self) -> Bools:
        """Which are on the first front and break no bound; all of the first front when every one breaks some."""
        first = self.rank == 0
        feasible = ~np.any(self.excess > 0, axis=1)
        return np.asarray(first & feasible if np.any(first & feasible) else first)


def nsga2(
    space: Space,
    evaluate: Evaluate,
    *,
    rng: np.random.Generator,
    seeds: Genomes | None = None,
    population: int = 100,
    generations: int = 200,
) -> Population:
    """Search `space` and return the last population.

    Args:
        evaluate: Scores a matrix of distinct genomes at once; must be a pure function.
        rng: The only randomness. For a search that resumes, derive one for each round:
            ``np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(round,)))``.
        seeds: Genomes to start from, `(n, knobs)`; the rest is drawn. More than `population` are thinned by their rank.
        population: Genomes kept, 4 or more; a smaller space is enumerated as far as it goes.
        generations: 0 returns the best of the start.
    Raises:
        InputError: A population below 4 or generations below 0.
    References:
        Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002; the level switch follows Sieberling
        et al., "EvoPress", 2024.
    """
    if population < 4 or generations < 0:
        raise must_be("population and generations", "at least 4 and 0", (population, generations), "100 and 200 are usual.")
    untouched = np.zeros((1, len(space.knobs)), dtype=np.int64)
    start = [untouched, *([] if seeds is None else [seeds]), space.sample(rng, n=population)]
    genomes = _distinct(space.canonical(np.concatenate(start)), set())
    genomes = genomes[: max(population, 1 + (0 if seeds is None else len(seeds)))]
    now = _survivors(genomes, *evaluate(genomes), population)
    groups = _stages(space)
    for _ in range(generations):
        children = _offspring(space, now, groups, rng, population)
        if not len(children):
            break  # the space is used up
        objectives, excess = evaluate(children)
        now = _survivors(
            np.concatenate([now.genomes, children]),
            np.concatenate([now.objectives, objectives]),
            np.concatenate([now.excess, excess]),
            population,
        )
    return now


def _survivors(genomes: Genomes, objectives: Floats, excess: Floats, population: int) -> Population:
    """Keep whole fronts while they fit, then the least crowded of the next."""
    kept, rank = survivors(objectives, excess, population)
    return Population(genomes[kept], objectives[kept], excess[kept], rank)


def _offspring(space: Space, parents: Population, groups: NDArray[np.int64], rng: np.random.Generator, n: int) -> Genomes:
    """Return up to `n` genomes that are not in `parents` and not copies of each other."""
    mothers, fathers = (parents.genomes[_tournament(parents, rng, n)] for _ in range(2))
    children = _mutate(space, _cross(mothers, fathers, groups, rng), rng)
    known = {row.tobytes() for row in parents.genomes}
    fresh = _distinct(space.canonical(children), known)
    for _ in range(3):  # copies get another chance, as one more mutation
        missing = n - len(fresh)
        if not missing:
            break
        again = _reset(space, parents.genomes[_tournament(parents, rng, missing)], rng)
        known |= {row.tobytes() for row in fresh}
        fresh = np.concatenate([fresh, _distinct(space.canonical(again), known)])
    return fresh


def _tournament(parents: Population, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """Indices of the better of two: survivors are kept in order of rank, then crowding, so the smaller index is better."""
    return np.asarray(rng.integers(0, len(parents.genomes), size=(n, 2)).min(axis=1))


def _cross(mothers: Genomes, fathers: Genomes, groups: NDArray[np.int64], rng: np.random.Generator) -> Genomes:
    """Uniform crossover, by whole stages for half of the children and by single knobs for the others."""
    n, knobs = mothers.shape
    by_stage = (rng.random((n, int(groups.max()) + 1)) < 0.5)[:, groups]
    by_knob = rng.random((n, knobs)) < 0.5
    whole = rng.random((n, 1)) < 0.5
    return np.where(np.where(whole, by_stage, by_knob), mothers, fathers)


def _mutate(space: Space, genomes: Genomes, rng: np.random.Generator) -> Genomes:
    """Two fifths get one to three redrawn knobs, two fifths a level switch, one fifth stays."""
    action = rng.random(len(genomes))
    redrawn = _reset(space, genomes, rng)
    switched = _switch(space, genomes, rng)
    return np.where((action < 0.4)[:, None], redrawn, np.where((action < 0.8)[:, None], switched, genomes))


def _reset(space: Space, genomes: Genomes, rng: np.random.Generator) -> Genomes:
    """Redraw one to three knobs of each genome."""
    out = genomes.copy()
    rows = np.arange(len(out))
    times = rng.integers(1, 4, size=len(out))
    for turn in range(3):
        column = rng.integers(0, len(space.knobs), size=len(out))
        value = rng.integers(0, space.sizes[column])
        out[rows, column] = np.where(turn < times, value, out[rows, column])
    return out


def _switch(space: Space, genomes: Genomes, rng: np.random.Generator) -> Genomes:
    """Move one knob a level further from untouched and another a level back, where there is room."""
    out = genomes.copy()
    rows = np.arange(len(out))
    for step, room in ((1, out < space.sizes - 1), (-1, out > 0)):
        column = np.where(room, rng.random(out.shape), -1.0).argmax(axis=1)
        out[rows, column] += np.where(room[rows, column], step, 0)
    return out


def _distinct(genomes: Genomes, known: set[bytes]) -> Genomes:
    """Rows of `genomes` not in `known`, first copies only, in order."""
    seen = set(known)
    kept = []
    for i, row in enumerate(genomes):
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return np.asarray(genomes[kept])


def _stages(space: Space) -> NDArray[np.int64]:
    """Group number of each knob: its kind and the first part of its place."""
    names = [(k.kind, k.place.partition(".")[0]) for k in space.knobs]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)
