"""Genetic search alone beside pymoo's NSGA-II, and its speed beside DEAP's, on problems whose fronts are known.

    pip install pymoo deap
    python benchmarks/evolve.py             # 3 minutes of one core

Quality: hypervolume of all that was evaluated, after 200 and after 2,000 evaluations, median of 11 seeds, with the share of
seeds in which ours is larger than the best of pymoo's for the same seed. pymoo has its own defaults and runs with populations
of 20, 40 and 100 (its default); ours chooses its population by itself. Reference points: (1.1, 7) for ZDT1 to 3, (1.1, 250) for
ZDT4, 2.5 on each axis for DTLZ2.
Speed: CPU time of an evaluation of ZDT1 (30 genes, the same function called with floats) at population 200, both NSGA-II,
in turns, seven times.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import equipoise as eq
from equipoise.measure import machine
from equipoise.pareto import hypervolume, non_dominated

RESULT = Path(__file__).parent / "results" / "evolve.json"
SEEDS, BUDGETS, POPULATIONS, TURNS = 11, (200, 2000), (20, 40, 100), 7
Function = Callable[[np.ndarray], np.ndarray]


def zdt(number: int) -> tuple[np.ndarray, np.ndarray, Function]:
    """Bounds and function of a problem of Zitzler, Deb and Thiele (2000)."""
    genes = 10 if number == 4 else 30
    low, high = np.zeros(genes), np.ones(genes)
    if number == 4:
        low[1:], high[1:] = -5, 5

    def function(x: np.ndarray) -> np.ndarray:
        rest = x[:, 1:]
        g = 1 + 9 * rest.mean(1) if number != 4 else 1 + np.sum(10 + rest**2 - 10 * np.cos(4 * np.pi * rest), axis=1)
        first = x[:, 0]
        part = np.sqrt(first / g) if number != 2 else (first / g) ** 2
        wave = first / g * np.sin(10 * np.pi * first) if number == 3 else 0
        return np.stack([first, g * (1 - part - wave)], axis=1)

    return low, high, function


def dtlz2() -> tuple[np.ndarray, np.ndarray, Function]:
    """Bounds and function of the second problem of Deb, Thiele, Laumanns and Zitzler (2002): three objectives, 12 genes."""

    def function(x: np.ndarray) -> np.ndarray:
        a, b = x[:, 0] * np.pi / 2, x[:, 1] * np.pi / 2
        g = 1 + ((x[:, 2:] - 0.5) ** 2).sum(1)
        return g[:, None] * np.stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)], axis=1)

    return np.zeros(12), np.ones(12), function


PROBLEMS = {
    **{f"ZDT{number}": (zdt(number), (1.1, 250.0 if number == 4 else 7.0)) for number in (1, 2, 3, 4)},
    "DTLZ2": (dtlz2(), (2.5, 2.5, 2.5)),
}


def ours(low: np.ndarray, high: np.ndarray, function: Function, evaluations: int, seed: int) -> np.ndarray:
    space = {f"x{i}": eq.Real(*ends) for i, ends in enumerate(zip(low.tolist(), high.tolist(), strict=True))}

    def objective(**genes: Any) -> Any:
        return function(np.stack(list(genes.values()), axis=1))

    return eq.evolve(space, objective, evaluations=evaluations, seed=seed, many=True).objectives


def pymoos(low: np.ndarray, high: np.ndarray, function: Function, evaluations: int, seed: int, population: int) -> np.ndarray:
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.optimize import minimize

    seen: list[np.ndarray] = []

    class Given(Problem):  # type: ignore[misc]
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = function(x)
            seen.append(out["F"].copy())

    problem = Given(n_var=len(low), n_obj=function(low[None]).shape[1], xl=low, xu=high)
    minimize(problem, NSGA2(pop_size=population), ("n_eval", evaluations), seed=seed)
    return np.concatenate(seen)[:evaluations]


def volume(objectives: np.ndarray, reference: tuple[float, ...]) -> float:
    points = objectives[(objectives < reference).all(axis=1)].tolist()
    return hypervolume([points[i] for i in non_dominated(points)], reference) if points else 0.0


def quality() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, ((low, high, function), reference) in PROBLEMS.items():
        for evaluations in BUDGETS:
            given = low, high, function, evaluations
            mine = [volume(ours(*given, seed), reference) for seed in range(SEEDS)]
            theirs = {p: [volume(pymoos(*given, seed, p), reference) for seed in range(SEEDS)] for p in POPULATIONS}
            best = max(theirs, key=lambda p: median(theirs[p]))
            row = {
                "ours": median(mine),
                "pymoo": {str(p): median(values) for p, values in theirs.items()},
                "best_population": best,
                "ratio": median(mine) / median(theirs[best]),
                "larger_in": sum(a > b for a, b in zip(mine, theirs[best], strict=True)),
                "seeds": SEEDS,
            }
            found[f"{name} {evaluations}"] = row
            print(f"{name} {evaluations}", json.dumps(row), flush=True)
    return found


def one(*x: float) -> tuple[float, float]:
    """ZDT1 of one candidate."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - math.sqrt(x[0] / g))


def deaps(evaluations: int, population: int) -> None:
    from deap import base, creator, tools

    if not hasattr(creator, "Worth"):
        creator.create("Worth", base.Fitness, weights=(-1.0, -1.0))
        creator.create("Candidate", list, fitness=creator.Worth)
    people = [creator.Candidate(random.random() for _ in range(30)) for _ in range(population)]
    for each in people:
        each.fitness.values = one(*each)
    people, used = tools.selNSGA2(people, population), population
    copied = base.Toolbox().clone
    while used < evaluations:
        children = [copied(each) for each in tools.selTournamentDCD(people, population)]
        for a, b in zip(children[::2], children[1::2], strict=True):
            if random.random() < 0.9:
                tools.cxSimulatedBinaryBounded(a, b, eta=15.0, low=0.0, up=1.0)
            for each in (a, b):
                tools.mutPolynomialBounded(each, eta=20.0, low=0.0, up=1.0, indpb=1 / 30)
                each.fitness.values = one(*each)
        used += population
        people = tools.selNSGA2(people + children, population)


def speed(evaluations: int = 4000, population: int = 200) -> dict[str, Any]:
    space = {f"x{i}": eq.Real(0.0, 1.0) for i in range(30)}
    rows = []
    for seed in range(TURNS):
        times = []
        for run in (
            lambda: deaps(evaluations, population),
            lambda: eq.evolve(
                space,
                lambda **x: one(*x.values()),
                evaluations=evaluations,
                population=population,
                seed=seed,  # noqa: B023
            ),
        ):
            began = time.process_time()
            run()
            times.append((time.process_time() - began) / evaluations)
        rows.append({"deap_s": times[0], "ours_s": times[1], "times_faster": times[0] / times[1]})
    ratios = sorted(row["times_faster"] for row in rows)
    found = {"times_faster": median(ratios), "least": ratios[0], "most": ratios[-1], "turns": rows, "population": population}
    print(json.dumps({key: found[key] for key in ("times_faster", "least", "most")}))
    return found


def main() -> int:
    found = {"quality": quality(), "speed": speed(), "pymoo": version("pymoo"), "deap": version("deap"), **machine.describe()}
    RESULT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    met = all(row["ratio"] >= 1 for row in found["quality"].values()) and found["speed"]["times_faster"] >= 5
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
