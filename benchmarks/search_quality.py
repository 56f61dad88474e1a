"""Guided search against Optuna's NSGA-II: hypervolume after N evaluations of ours and after 3 N of theirs.

    python benchmarks/search_quality.py synthetic --n 70 --seeds 0 1 2

Rules of the duel. Both see the same problem through one cache; an evaluation is counted the first time that a side asks for a
plan, so copies are free for both. Ours pays for everything it evaluates: the untouched plan, every entry of its loss table,
every later point. The cost of a plan (MACs) is a formula that ours may call for free, as a deployed search reads latency off
its tables; that is part of the method under test. Optuna is started with the untouched plan and one uniform plan per level.
Hypervolume is exact, on (cost / cost of the untouched plan, loss in nats), reference point (1, `worst_loss`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from equipoise.pareto import hypervolume
from equipoise.records import Choice, Plan
from equipoise.search import Knob, Space, loss_table
from equipoise.search.front import predicted_front
from equipoise.search.propose import Evaluated, first_points, propose
from equipoise.search.surrogate import fit_loss

RESULTS = Path(__file__).parent / "results"


class Problem(Protocol):
    """A space whose plans have a known cost and a loss that must be evaluated."""

    name: str
    space: Space
    worst_loss: float

    def cost(self, plan: Plan) -> float: ...

    def evaluate(self, plan: Plan) -> float: ...


class Synthetic:
    """Nine widths and five droppable blocks: power-law losses with interactions between neighbors and a fixed ripple.

    What makes it hard is known: costs are products of neighboring widths, the joint loss is 0.7 of the sum to the power 0.87,
    neighbors cut together hurt more, and each plan has its own log-normal ripple.
    """

    def __init__(self, *, seed: int = 0, widths: int = 9, drops: int = 5, ripple: float = 0.1, clash: float = 0.6) -> None:
        self.name = f"synthetic-{seed}"
        self.worst_loss = 1.0
        rng = np.random.default_rng(seed)
        blocks = [f"layer{1 + 3 * i // widths}.{i}" for i in range(widths)]
        droppable = blocks[-drops:] if drops else []
        self.space = Space(
            (
                *(Knob(f"width.{b}", (64, 48, 32, 24, 16)) for b in blocks),
                *(Knob(f"depth.{b}", ("keep", "drop")) for b in droppable),
            ),
            moot={(f"depth.{b}", "drop"): (f"width.{b}",) for b in droppable},
        )
        self._blocks, self._ripple = blocks, ripple
        self._scale = np.exp(rng.normal(math.log(0.25), 1.0, widths))
        self._power = rng.uniform(1.5, 3.5, widths)
        self._drop = np.exp(rng.normal(math.log(0.3), 0.6, widths))
        self._clash = clash * rng.random(widths)

    def _cut(self, plan: Plan) -> np.ndarray:
        return np.array([1 - int(plan[f"width.{b}"]) / 64 for b in self._blocks])

    def cost(self, plan: Plan) -> float:
        there = np.array([plan.choices.get(f"depth.{b}", "keep") == "keep" for b in self._blocks])
        return float(0.15 * len(there) + np.sum(there * (1 - self._cut(plan)) * (1.0 + 0.3 * np.arange(len(there)) % 1.0)))

    def evaluate(self, plan: Plan) -> float:
        cut = self._cut(plan)
        gone = np.array([plan.choices.get(f"depth.{b}", "keep") == "drop" for b in self._blocks])
        part = np.where(gone, self._drop, self._scale * cut**self._power)
        harsh = np.where(gone, 1.0, cut)
        total = part.sum() + float(np.sum(self._clash[1:] * np.sqrt(part[1:] * part[:-1]) * harsh[1:] * harsh[:-1] * 4))
        if total == 0:
            return 0.0
        ripple = np.random.default_rng(int(plan.digest, 16)).normal(0, self._ripple)
        return float(0.7 * total**0.87 * math.exp(ripple))


class Ledger:
    """Counts what one side evaluates and keeps what it saw, in order."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.seen: dict[Plan, tuple[float, float]] = {}

    def __call__(self, plan: Plan) -> tuple[float, float]:
        if plan not in self.seen:
            self.seen[plan] = (self.problem.cost(plan), self.problem.evaluate(plan))
        return self.seen[plan]

    def volume(self, n: int) -> float:
        """Hypervolume of the first `n` evaluations."""
        untouched = self.problem.cost(self.problem.space.untouched)
        points = [(cost / untouched, loss) for cost, loss in list(self.seen.values())[:n]]
        return hypervolume(points, (1.0, self.problem.worst_loss))


class KnownCost:
    """The problem's own cost formula, for many genomes."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.memo: dict[bytes, float] = {}

    def many(self, genomes: np.ndarray) -> np.ndarray:
        out = np.empty(len(genomes))
        for i, row in enumerate(genomes):
            key = row.tobytes()
            if key not in self.memo:
                self.memo[key] = self.problem.cost(self.problem.space.decode(row))
            out[i] = self.memo[key]
        return out


def guided(problem: Problem, *, n: int, seed: int, anchors: int | None = None, first: int = 14) -> Ledger:
    """Our search with `n` evaluations in all: tables, first points, then rounds of 8.

    Args:
        anchors: Choices measured of each nested menu (the rest interpolated); None measures all.
    """
    space, ledger, cost = problem.space, Ledger(problem), KnownCost(problem)
    ledger(space.untouched)
    measured: dict[tuple[str, Choice], float] = {}
    for knob in space.knobs:
        for choice in _anchors(knob, anchors):
            if len(ledger.seen) < n:
                measured[knob.name, choice] = ledger(space.untouched.but({knob.name: choice}))[1]
    table = loss_table(space, measured)
    front = predicted_front(space, table, [cost])
    front = front[np.any(front > 0, axis=1)]
    front = front[fit_loss(table, front[:0], np.zeros(0)).losses(front) < problem.worst_loss]
    left = n - len(ledger.seen)
    for plan in first_points(space, front, cost.many(front), table.sums(front), n=min(first, left))[:left]:
        ledger(plan)
    turn = 0
    while (left := n - len(ledger.seen)) > 0:
        plans = list(ledger.seen)
        costs, losses = np.array(list(ledger.seen.values())).T
        known = Evaluated(space.encode_all(plans), costs[:, None], losses)
        model = fit_loss(table, known.genomes, known.losses)
        rng = np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(turn,)))
        batch = propose(space, model, [cost], known, rng=rng, q=min(8, left), worst_loss=problem.worst_loss)
        if not batch:
            break
        for plan in batch:
            ledger(plan)
        turn += 1
    return ledger


def _anchors(knob: Knob, count: int | None) -> Sequence[Choice]:
    """Which choices of a menu are measured."""
    if count is None or not knob.nested or len(knob.menu) - 1 <= count:
        return knob.menu[1:]
    places = np.unique(np.linspace(1, len(knob.menu) - 1, count + 1).round().astype(int)[1:])
    return [knob.menu[i] for i in places]


def optuna_nsga2(problem: Problem, *, n: int, seed: int, population: int = 24) -> Ledger:
    """Optuna's NSGA-II with `n` distinct evaluations (or 4 n trials, whichever comes first)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, ledger = problem.space, Ledger(problem)
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    most = int(space.sizes.max())
    for level in range(most):
        study.enqueue_trial({k.name: min(level, len(k.menu) - 1) if k.nested else 0 for k in space.knobs})
    for _ in range(4 * n):
        trial = study.ask()
        genome = np.array([trial.suggest_int(k.name, 0, len(k.menu) - 1) for k in space.knobs])
        study.tell(trial, ledger(space.decode(genome)))
        if len(ledger.seen) >= n:
            break
    return ledger


def duel(problem: Problem, *, n: int, seeds: Sequence[int], anchors: int | None = None, population: int = 24) -> dict[str, Any]:
    """Run both sides for each seed and return the hypervolumes, their ratios and how they were come by."""
    rows = []
    for seed in seeds:
        started = time.perf_counter()
        ours = guided(problem, n=n, seed=seed, anchors=anchors)
        middle = time.perf_counter()
        theirs = optuna_nsga2(problem, n=3 * n, seed=seed, population=population)
        rows.append(
            {
                "seed": seed,
                "ours_evaluations": len(ours.seen),
                "optuna_evaluations": len(theirs.seen),
                "ours": {str(k): ours.volume(k) for k in sorted({n // 2, 3 * n // 4, n})},
                "optuna": {str(k): theirs.volume(k) for k in (n, 2 * n, 3 * n)},
                "ratio": ours.volume(n) / theirs.volume(3 * n),
                "ours_s": round(middle - started, 2),
                "optuna_s": round(time.perf_counter() - middle, 2),
            }
        )
    ratios = [row["ratio"] for row in rows]
    return {
        "benchmark": "search_quality",
        "problem": problem.name,
        "n": n,
        "anchors": anchors,
        "optuna_population": population,
        "reference_point": {"cost": "that of the untouched plan", "loss_nats": problem.worst_loss},
        "evaluations_of_the_table": 1 + sum(len(_anchors(k, anchors)) for k in problem.space.knobs),
        "knobs": len(problem.space.knobs),
        "plans": problem.space.size,
        "seeds": rows,
        "ratio_mean": float(np.mean(ratios)),
        "ratio_min": min(ratios),
        "environment": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "python": platform.python_version(),
            **{package: version(package) for package in ("numpy", "optuna", "torch")},
        },
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class Remembered:
    """A problem whose evaluations are kept in a JSON file, written after each, so that a rerun is free."""

    def __init__(self, problem: Problem, path: Path, *, tag: str) -> None:
        self.problem, self.path = problem, path
        self.name, self.space, self.worst_loss = problem.name, problem.space, problem.worst_loss
        self.tag = hashlib.sha256(tag.encode()).hexdigest()[:12]
        self.losses: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def cost(self, plan: Plan) -> float:
        return self.problem.cost(plan)

    def evaluate(self, plan: Plan) -> float:
        key = f"{self.tag}:{plan.digest}"
        if key not in self.losses:
            self.losses[key] = self.problem.evaluate(plan)
            spare = self.path.with_suffix(".new")
            spare.write_text(json.dumps(self.losses))
            spare.replace(self.path)
        return self.losses[key]


PROBLEMS: dict[str, Callable[[argparse.Namespace], Problem]] = {"synthetic": lambda args: Synthetic(seed=args.problem_seed)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=sorted(PROBLEMS))
    parser.add_argument("--n", type=int, default=70, help="evaluations of ours, tables included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--anchors", type=int, default=None, help="choices measured of each width menu; default all")
    parser.add_argument("--population", type=int, default=24, help="of Optuna's NSGA-II")
    parser.add_argument("--problem-seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=None, help="JSON file outside the checkout that keeps evaluations")
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results")
    args = parser.parse_args(argv)
    result = duel(PROBLEMS[args.problem](args), n=args.n, seeds=args.seeds, anchors=args.anchors, population=args.population)
    text = json.dumps(result, indent=1)
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"search_quality_{result['problem']}.json").write_text(text + "\n")
    return 0 if result["ratio_mean"] >= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
