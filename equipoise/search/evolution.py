"""Genetic search alone: over any space of genes, by any function, with one objective or several.

`evolve` runs a function; `Evolver` is asked for candidates and told what they are worth, where something else runs them. The
plans of a model are searched by `search.propose`, which knows what they cost before they are tried; here nothing is known.
"""

from __future__ import annotations

import inspect
import math
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import must_be
from equipoise.pareto import hypervolume, knee
from equipoise.search.genes import Gene, Genes, Rows
from equipoise.search.rank import front_mask, survivors
from equipoise.units import check_seed, duration, is_real, is_whole

Floats = NDArray[np.float64]
Candidate = dict[str, Any]

FEWEST, MOST = 12, 100
"""Genomes of a population at least and at most; between them half of the square root of the evaluations."""
BATCH = 4
"""A part of the population is replaced at a time, one in so many: children count as soon as they are known."""
TRIES = 5
"""How often a child that is no new candidate is mutated again."""


@dataclass(frozen=True)
class Evolution:
    """What a genetic search found.

    Attributes:
        candidates: All that were evaluated, in their order.
        objectives: `(n, objectives)`, as the function gave them.
        excess: `(n, constraints)`, by how much each is broken, 0 where it holds.
        maximize: Which objectives are better when larger.
        stopped: Why it ended: ``evaluations``, ``time``, ``goal``, ``converged``, ``callback`` or ``exhausted``.
        seed: Of the generator.
        history: After each generation, evaluations so far and the best objective; of several the hypervolume of the front, up
            to the worst values among the first population. NaN while nothing keeps the constraints.
    """

    candidates: tuple[Candidate, ...]
    objectives: Floats
    excess: Floats
    maximize: tuple[bool, ...]
    stopped: str
    seed: int
    history: tuple[tuple[int, float], ...]

    @property
    def feasible(self) -> bool:
        """Whether anything keeps all constraints; if not, `front` and `best` are what breaks them least."""
        return bool(_holds(self.excess).any())

    @cached_property
    def front(self) -> tuple[int, ...]:
        """Which candidates no other beats on every objective, the best of the first objective first; they break no constraint,
        unless all do."""
        kept = np.flatnonzero(_feasible_first(self._signed, self.excess))
        return tuple(int(i) for i in kept[np.lexsort(self._signed[kept].T[::-1])])

    @cached_property
    def best(self) -> Candidate:
        """The best candidate; of several objectives the knee of the front."""
        if len(self.maximize) == 1 or len(self.front) == 1:
            return self.candidates[self.front[0]]
        return self.candidates[self.front[knee(self._signed[list(self.front)].tolist()).index]]

    @property
    def _signed(self) -> Floats:
        return self.objectives * np.where(self.maximize, -1.0, 1.0)


@dataclass
class Evolver:
    """A genetic search that is asked for candidates and told what they are worth.

    ```
    search = Evolver({"width": range(8, 65, 8), "rate": Real(1e-4, 1e-1, log=True)}, seed=0)
    for _ in range(25):
        for candidate in search.ask(8):
            search.tell(candidate, loss_of(candidate))
    search.found().best
    ```

    Args:
        space: Name -> gene; see `genes.Gene`.
        population: Genomes that are kept, 4 or more.
        maximize: Whether larger is better; one for each objective where there are several.
        seeds: Candidates to begin with.
        seed: Of every random choice.
    Raises:
        InputError: A space or an argument that cannot be used.
    """

    space: Mapping[str, Gene]
    population: int = 20
    maximize: bool | Sequence[bool] = False
    seeds: Sequence[Mapping[str, Any]] = ()
    seed: int = 0
    history: list[tuple[int, float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if type(self.population) is not int or self.population < 4:
            raise must_be("population", "4 or more", self.population, "20 to 100 are usual.")
        self.genes = Genes(self.space)
        self._rng = np.random.default_rng(self.seed)
        begin = [self.genes.encode(candidate)[None] for candidate in self.seeds]
        self._first = list(np.concatenate([*begin, self.genes.sample(self._rng, max(1, self.population - len(begin)))]))
        self._known: dict[bytes, Rows] = {}  # all that were asked for
        self._worth: set[bytes] = set()  # of them, those that were told
        self._rows: list[Rows] = []
        self._objectives: list[Sequence[float]] = []
        self._excess: list[Sequence[float]] = []
        self._kept = np.zeros(0, dtype=np.int64)
        self._front = 0
        self._seen = 0
        self._worst: Floats | None = None

    def ask(self, count: int = 1) -> list[Candidate]:
        """Return up to so many candidates that were not asked for before; fewer only where the space has no more."""
        if type(count) is not int or count < 1:
            raise must_be("count", "1 or more", count, "Ask for one candidate at least.")
        return self.genes.decode(self._asked(count))

    def tell(
        self, candidate: Mapping[str, Any], objectives: float | Sequence[float], excess: float | Sequence[float] = ()
    ) -> None:
        """Say what a candidate is worth; one that was never asked for counts too.

        Args:
            objectives: One number, or several. NaN: it failed, and is no parent.
            excess: By how much it breaks each constraint, at most 0 where it holds. NaN: it failed too.
        Raises:
            InputError: It is not of the space, was told before, is worth no numbers, or has another number of objectives than
                those before.
        """
        given = self.genes.encode(candidate)
        (key,) = _keys(given[None])
        row = self._known.get(key, given)  # there and back costs the last digits
        if key in self._worth:
            raise must_be("candidate", "told once", dict(candidate), "Keep what it was worth the first time.")
        self._told(row[None], _numbers("objectives", [objectives], 1), _numbers("excess", [excess], 1))

    def found(self, stopped: str = "") -> Evolution:
        """Return what was told so far; failed candidates are left out.

        Raises:
            InputError: Nothing was told, or all failed.
        """
        if not self._rows:
            raise must_be("found()", "called after tell()", "no candidate told", "Ask for some and tell what they are worth.")
        kept = np.flatnonzero(_sound(self._scores, np.array(self._excess)))
        if not len(kept):
            raise must_be("objective", "a number for one candidate at least", f"{len(self._rows)} that failed", "Look at why.")
        candidates = self.genes.decode(np.array(self._rows)[kept])
        larger = self._larger(self._scores.shape[1])
        signs = np.where(larger, -1.0, 1.0)
        broken = np.array(self._excess)[kept]
        return Evolution(tuple(candidates), self._scores[kept] * signs, broken, larger, stopped, self.seed, tuple(self.history))

    def _larger(self, count: int) -> tuple[bool, ...]:
        """Which of so many objectives are better when larger."""
        return (self.maximize,) * count if isinstance(self.maximize, bool) else tuple(self.maximize)

    @property
    def _scores(self) -> Floats:
        """Objectives that are minimized, `(n, objectives)`."""
        return np.array(self._objectives)

    def _asked(self, count: int) -> Rows:
        out: list[Rows] = []
        while self._first and len(out) < count:
            out += self._new(self._first.pop(0)[None])
        if len(out) < count and self._seen < len(self._rows):
            self._select()
        for turn in range(TRIES + 1):
            missing = count - len(out)
            if not missing:
                break
            if not len(self._kept):
                rows = self.genes.sample(self._rng, missing)
            else:
                parents = np.array([self._rows[i] for i in self._kept])
                rows = self.genes.children(parents, self._front, missing, self._rng)
            for _ in range(turn):
                rows = self.genes.mutated(rows, self._rng, always=True)
            out += self._new(rows)
        if len(out) < count and self.genes.size <= 10 * (len(self._known) + count):
            out += self._rest(count - len(out))
        return np.array(out).reshape(len(out), len(self.genes.names))

    def _new(self, rows: Rows) -> list[Rows]:
        """Return those of some genomes that were not asked for before."""
        new = []
        for key, row in zip(_keys(rows), rows, strict=True):
            if key not in self._known:
                self._known[key] = row
                new.append(row)
        return new

    def _rest(self, count: int) -> list[Rows]:
        """Return what is left of a space that is nearly used up."""
        left: list[Rows] = []
        for index in np.ndindex(*self.genes.levels.tolist()):
            if len(left) == count:
                break
            place = np.array(index, dtype=float)
            left += self._new(np.where(self.genes.ordered, place / np.maximum(self.genes.levels - 1, 1), place)[None])
        return left

    def _told(self, rows: Rows, objectives: Floats, excess: Floats) -> None:
        given = objectives.shape[1], excess.shape[1]
        told = (len(self._objectives[0]), len(self._excess[0])) if self._rows else given
        if not given[0]:
            raise must_be("objectives", "one number or more for each candidate", (), "Say what a candidate is worth.")
        if told != given:
            raise must_be("objectives and excess", f"{told[0]} and {told[1]} numbers, as before", given, "Give all of them.")
        if not isinstance(self.maximize, bool) and len(self.maximize) != given[0]:
            raise must_be(
                "maximize", f"one for each of {given[0]} objectives", list(self.maximize), "Write True or False each."
            )
        keys = _keys(rows)
        self._known |= dict(zip(keys, rows, strict=True))
        self._worth.update(keys)
        self._rows += [*rows]
        self._objectives += [*(objectives * np.where(self._larger(given[0]), -1.0, 1.0))]
        self._excess += [*np.maximum(excess, 0.0)]

    def _select(self) -> None:
        """Let what is new take the place of what is worse."""
        new = np.arange(self._seen, len(self._rows))
        self._seen = len(self._rows)
        pool = np.concatenate([self._kept, new])
        scores = np.array([self._objectives[i] for i in pool])
        excess = np.array([self._excess[i] for i in pool])
        sound = _sound(scores, excess)
        pool, scores, excess = pool[sound], scores[sound], excess[sound]
        order, self._front = _survivors(scores, excess, self.population)
        self._kept, scores, holds = pool[order], scores[order], _holds(excess[order])
        if self._worst is None and len(scores):
            self._worst = scores.max(axis=0)
        larger = self._larger(scores.shape[1])[0]
        self.history.append((len(self._rows), _progress(scores[holds], self._worst, larger=larger)))


def evolve(
    space: Mapping[str, Gene],
    objective: Callable[..., Any],
    *,
    evaluations: int = 1000,
    time: str | float | None = None,
    goal: float | None = None,
    patience: int | None = None,
    constraints: Callable[..., Any] | None = None,
    maximize: bool | Sequence[bool] = False,
    population: int | None = None,
    seeds: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    many: bool = False,
    on_generation: Callable[[Evolver], bool | None] | None = None,
) -> Evolution:
    """Search a space of one's own by one's own function.

    ```
    found = eq.evolve({"x": eq.Real(-5, 5), "kind": ["a", "b"]}, lambda x, kind: (x - 1) ** 2 + (kind == "a"))
    found.best  # {'x': 1.0000004, 'kind': 'b'}
    ```

    Args:
        space: Name -> gene: `Real`, a ``range``, or a list of values.
        objective: Called with the genes as keywords; returns a number, or several. NaN: it failed.
        evaluations: Calls at most.
        time: Wall time at most, such as ``"5min"``, or seconds; looked at between generations.
        goal: Of one objective: it ends where this is reached by what breaks no constraint.
        patience: Generations, 1 or more, after which it ends where the best objective, or the front's hypervolume, did not
            grow.
        constraints: Called as `objective`; returns by how much each is broken, at most 0 where it holds. What breaks none beats
            what breaks some; of two that break some, less is better. NaN: it failed.
        maximize: Whether larger is better; one for each objective where there are several.
        population: Genomes that are kept; None: half of the square root of `evaluations`, from 12 to 100.
        seeds: Candidates to begin with.
        seed: Of every random choice: the same arguments find the same.
        many: Whether both functions take arrays, a value for each of n candidates, and return `(n,)` or `(n, objectives)`.
        on_generation: Told after each; True ends the search.
    Raises:
        InputError: An argument that cannot be used, or a function that does not take the genes or returns no numbers. What a
            function raises is passed on as it is.
    References:
        Deb et al. 2002 (NSGA-II) for the selection; `genes` for the variation.
    """
    if type(evaluations) is not int or evaluations < 1:
        raise must_be("evaluations", "1 or more", evaluations, "1000 are usual.")
    if population is None:
        population = min(MOST, max(FEWEST, round(math.sqrt(evaluations) / 2)))
    limit_s = math.inf if time is None else duration(time)
    if goal is not None and not (is_real(goal) and -math.inf < goal < math.inf):
        raise must_be("goal", "a finite number, or None", goal, "Write the objective at which to end.")
    if patience is not None and not (is_whole(patience) and patience >= 1):
        raise must_be("patience", "a whole number of 1 or more, or None", patience, "20 are usual.")
    if on_generation is not None and not callable(on_generation):
        raise must_be("on_generation", "a function of the search, or None", on_generation, "Write a function.")
    began = clock.perf_counter()
    search = Evolver(space, population, maximize, seeds, seed)
    _check_takes("objective", objective, search.genes.names)
    if constraints is not None:
        _check_takes("constraints", constraints, search.genes.names)
    stopped = ""
    while not stopped:
        left = evaluations - len(search._rows)
        rows = search._asked(min(left, max(BATCH, population // BATCH) if search.history else population))
        if not len(rows):
            stopped = "exhausted"
            break
        values, excess = _called("objective", objective, search.genes, rows, many), np.zeros((len(rows), 0))
        if constraints is not None:
            excess = _called("constraints", constraints, search.genes, rows, many)
        search._told(rows, values, excess)
        search._select()
        stopped = next(_ends(search, evaluations, goal, patience, clock.perf_counter() - began > limit_s), "")
        if on_generation is not None and on_generation(search):
            stopped = "callback"
    return search.found(stopped)


def _ends(search: Evolver, evaluations: int, goal: float | None, patience: int | None, late: bool) -> Iterator[str]:
    """Yield why the search is to end."""
    values = [value for _, value in search.history]
    count = len(search._objectives[0])
    best = max if count > 1 or search._larger(count)[0] else min
    if goal is not None and count > 1:
        raise must_be("goal", f"left out where there are {count} objectives", goal, "End by patience or on_generation.")
    if goal is not None and len(values) and best(goal, values[-1]) == values[-1]:
        yield "goal"
    if len(search._rows) >= evaluations:
        yield "evaluations"
    if late:
        yield "time"
    if patience is not None and len(values) > patience and best(values[-1 - patience], values[-1]) == values[-1 - patience]:
        yield "converged"


def _progress(scores: Floats, worst: Floats | None, *, larger: bool) -> float:
    """Return the best objective of what breaks no constraint, or its hypervolume up to `worst`; NaN where there is none."""
    if worst is None or not len(scores):
        return math.nan
    if scores.shape[1] == 1:
        return float(-scores.min() if larger else scores.min())
    within = scores[(scores <= worst).all(axis=1)]
    return hypervolume(within[front_mask(within)].tolist(), worst.tolist()) if len(within) else 0.0


def _check_takes(name: str, function: Callable[..., Any], genes: Sequence[str]) -> None:
    """Raise `InputError` unless a function can be called with the genes as keywords; what hides its signature is believed."""
    wanted, remedy = "a function of the genes' names", f"Its arguments are to be {', '.join(map(str, genes))}."
    if not callable(function):
        raise must_be(name, wanted, function, remedy)
    try:  # a wrapper is what is called, not what it wraps
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**dict.fromkeys(genes))
    except TypeError as error:
        raise must_be(name, wanted, str(error), remedy) from error


def _called(name: str, function: Callable[..., Any], genes: Genes, rows: Rows, many: bool) -> Floats:
    """Return what a function says of genomes, `(n, numbers)`."""
    values = function(**genes.columns(rows)) if many else [function(**candidate) for candidate in genes.decode(rows)]
    return _numbers(f"what {name} returns", values, len(rows))


def _numbers(name: str, values: Any, count: int) -> Floats:
    """Return what was given for `count` candidates, one number each or several, as `(count, numbers)`."""
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise must_be(name, "numbers, as many for each candidate", str(error), "Give one, or a tuple of them.") from error
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or len(found) != count:
        raise must_be(name, f"{count} rows of numbers", found.shape, "Give one row for each candidate.")
    return found


def _sound(scores: Floats, excess: Floats) -> NDArray[np.bool_]:
    """Return which rows did not fail."""
    return np.asarray(np.isfinite(scores).all(axis=1) & ~np.isnan(excess).any(axis=1))


def _holds(excess: Floats) -> NDArray[np.bool_]:
    """Return which rows break no constraint."""
    return np.asarray(~np.any(excess > 0, axis=1))


def _keys(rows: Rows) -> list[bytes]:
    return [row.tobytes() for row in np.round(rows, 12)]


def _survivors(scores: Floats, excess: Floats, count: int) -> tuple[NDArray[np.int64], int]:
    """Return the places of the best, the best first, and how many of them are on the first front: whole fronts while they fit,
    then the least crowded."""
    if scores.shape[1] == 1:  # one objective: an order, nothing crowded
        order = np.lexsort((scores[:, 0], excess.sum(axis=1)))[:count]
        return order, 1
    order, rank = survivors(scores, excess, count)
    return order, int((rank == 0).sum())


def _feasible_first(scores: Floats, excess: Floats) -> NDArray[np.bool_]:
    """Return which rows none beats; where some break no constraint, of those alone."""
    holds = _holds(excess)
    if not holds.any():
        holds = excess.sum(axis=1) == excess.sum(axis=1).min()
    out = np.zeros(len(scores), dtype=bool)
    out[np.flatnonzero(holds)[front_mask(scores[holds])]] = True
    return out
