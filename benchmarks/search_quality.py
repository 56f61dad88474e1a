"""Guided search against Optuna's NSGA-II: hypervolume after N evaluations of ours and after 3 N of theirs.

    python benchmarks/search_quality.py synthetic --n 75                                # half a minute
    python benchmarks/search_quality.py digits --n 36 --cache /tmp/digits.json          # 3 minutes, again: seconds
    python benchmarks/search_quality.py resnet20 --n 76 --cache /tmp/resnet20.json      # half an hour of one core

Rules of the duel. Both see the same problem through one cache; an evaluation is counted the first time that a side asks for a
plan, so copies are free for both. Ours pays for everything it evaluates: the untouched plan, every entry of its loss table,
every later point. The cost of a plan (MACs) is a formula that ours may call for free, as a deployed search reads latency off
its tables; that is part of the method under test. Optuna is started with the untouched plan and one uniform plan
per level, and runs with a population of 24 and with its default of 50: the better of the two counts.
Hypervolume is exact, on (cost / cost of the untouched plan, loss in nats), reference point (1, `worst_loss`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from search_problems import Problem, problem_of

from equipoise.pareto import hypervolume
from equipoise.records import Plan
from equipoise.search import (
    Evaluated,
    LossTable,
    Space,
    first_points,
    fit_loss,
    loss_table,
    predicted_front,
    propose,
    to_measure,
)

RESULTS = Path(__file__).parent / "results"


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
        keys = [row.tobytes() for row in genomes]
        new = {key: i for i, key in enumerate(keys) if key not in self.memo}
        for key, plan in zip(new, self.problem.space.decode_all(genomes[list(new.values())]), strict=True):
            self.memo[key] = self.problem.cost(plan)
        return np.array([self.memo[key] for key in keys])


def guided(problem: Problem, *, n: int, seed: int, table_share: float = 0.3, first: int = 12, q: int = 8) -> Ledger:
    """Our search with `n` evaluations in all: tables, first points, then rounds of 8.

    Args:
        table_share: Share of `n` that the table may take; wide menus are measured at fewer choices where it would be more.
    """
    space, ledger = problem.space, Ledger(problem)
    ledger(space.untouched)
    pairs = to_measure(space, most=int(table_share * n))
    measured = {pair: ledger(space.untouched.but(dict([pair])))[1] for pair in pairs}
    searched(ledger, loss_table(space, measured), n=n, seed=seed, first=first, q=q)
    return ledger


def searched(ledger: Ledger, table: LossTable, *, n: int, seed: int, first: int = 12, q: int = 8) -> None:
    """Evaluate points of the predicted front, then rounds of `q`, until `ledger` has seen `n`."""
    problem, space, cost = ledger.problem, ledger.problem.space, KnownCost(ledger.problem)
    front = predicted_front(space, table, [cost])
    front = front[np.any(front > 0, axis=1)]
    front = front[fit_loss(table, front[:0], np.zeros(0)).losses(front) < problem.worst_loss]
    left = n - len(ledger.seen)
    for plan in first_points(space, front, cost.many(front), table.sums(front), n=min(first, max(left // 2, 1)))[:left]:
        ledger(plan)
    turn = 0
    while (left := n - len(ledger.seen)) > 0:
        costs, losses = np.array(list(ledger.seen.values())).T
        known = Evaluated(space.encode_all(list(ledger.seen)), costs[:, None], losses)
        model = fit_loss(table, known.genomes, known.losses)
        rng = np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(turn,)))
        batch = propose(space, model, [cost], known, rng=rng, q=min(q, left), worst_loss=problem.worst_loss)
        if not batch:
            break
        for plan in batch:
            ledger(plan)
        turn += 1


def optuna_nsga2(problem: Problem, *, n: int, seed: int, population: int = 24) -> Ledger:
    """Optuna's NSGA-II with `n` distinct evaluations (or 4 n trials, whichever comes first)."""
    ledger = Ledger(problem)
    sampled(ledger, n=n, make=lambda kinds: kinds.NSGAIISampler(population_size=population, seed=seed))
    return ledger


def uniform(space: Space) -> list[dict[str, int]]:
    """The untouched plan, and one a level of all widths, as menu indices."""
    levels = range(int(space.sizes.max()))
    return [{k.name: min(level, len(k.menu) - 1) if k.nested else 0 for k in space.knobs} for level in levels]


def sampled(ledger: Ledger, *, n: int, make: Callable[[Any], Any]) -> None:
    """Let a sampler of Optuna's, which `make` makes of ``optuna.samplers``, evaluate `n` distinct plans (or 4 n trials)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = ledger.problem.space
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=make(optuna.samplers))
    for start in uniform(space):
        study.enqueue_trial(start)
    for _ in range(4 * n):
        trial = study.ask()
        genome = np.array([trial.suggest_int(k.name, 0, len(k.menu) - 1) for k in space.knobs])
        study.tell(trial, ledger(space.decode(genome)))
        if len(ledger.seen) >= n:
            break


def duel(
    problem: Problem, *, n: int, seeds: Sequence[int], table_share: float = 0.3, populations: Sequence[int] = (24, 50)
) -> dict[str, Any]:
    """Run both sides for each seed and return the hypervolumes, their ratios and how they were come by.

    Optuna runs once with each of `populations` (50 is its default); each ratio is taken against the better run of that seed.
    """
    rows = []
    for seed in seeds:
        started = time.process_time()
        ours = guided(problem, n=n, seed=seed, table_share=table_share)
        ours_s = time.process_time() - started
        theirs = {str(p): optuna_nsga2(problem, n=3 * n, seed=seed, population=p) for p in populations}
        rows.append(
            {
                "seed": seed,
                "ours_evaluations": len(ours.seen),
                "ours": {str(k): ours.volume(k) for k in sorted({n // 2, 3 * n // 4, n})},
                "optuna_evaluations": {p: len(run.seen) for p, run in theirs.items()},
                "optuna": {p: {str(k): run.volume(k) for k in (n, 2 * n, 3 * n)} for p, run in theirs.items()},
                "ratio": ours.volume(n) / max(run.volume(3 * n) for run in theirs.values()),
                "ours_cpu_s": round(ours_s, 2),
            }
        )
    ratios = [row["ratio"] for row in rows]
    return {
        "benchmark": "search_quality",
        "problem": problem.name,
        "n": n,
        "table_share": table_share,
        "optuna_populations": list(populations),
        "reference_point": {"cost": "that of the untouched plan", "loss_nats": problem.worst_loss},
        "evaluations_of_the_table": 1 + len(to_measure(problem.space, most=int(table_share * n))),
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("synthetic", "digits", "resnet20"))
    parser.add_argument("--n", type=int, default=70, help="evaluations of ours, tables included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table-share", type=float, default=0.3, help="share of n that the loss table may take")
    parser.add_argument("--populations", type=int, nargs="+", default=[24, 50], help="of Optuna; the better run counts")
    parser.add_argument("--problem-seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=None, help="JSON file outside the checkout that keeps evaluations")
    parser.add_argument("--save", action="store_true", help="write the result to benchmarks/results")
    args = parser.parse_args(argv)
    problem = problem_of(args.problem, seed=args.problem_seed, cache=args.cache)
    result = duel(problem, n=args.n, seeds=args.seeds, table_share=args.table_share, populations=args.populations)
    text = json.dumps(result, indent=1)
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"search_quality_{result['problem']}.json").write_text(text + "\n")
    return 0 if result["ratio_mean"] >= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
