"""How many real evaluations does a search need for the hypervolume that NSGA-II has after 216?

    python benchmarks/duel.py run --seeds 0 1 2 3 4 --cache CACHE.json    # hours of one core; goes on where it stopped
    python benchmarks/duel.py tell                                            # the table, and the sign test

The problem is `search_problems.resnet20`: widths and droppable blocks of a ResNet-20, cost (MACs) by a formula that all may
call, loss after closed-form repair by an evaluation that all pay for, through one cache. Optuna's NSGA-II (populations of 24
and 50: the better one that was run of a seed is its mark), TPE, GP and random search, and a genetic algorithm of DEAP's kind
with one objective (weights drawn anew for each of its runs) are started with the untouched plan and one uniform plan a level.

Ours reads its loss table as `optimize` does: one change at a time on 64 images, nothing built anew but what it touches. That
is no evaluation but is paid for too: a reading counts as the share of an evaluation that its CPU time is, measured in this run.
Hypervolume: (cost / cost of the untouched plan, loss in nats), reference point (1, 1). Each contender's is taken after each
evaluation.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from search_problems import Network, Problem, Remembered, resnet20
from search_quality import Ledger, sampled, searched, uniform

from equipoise.measure import machine
from equipoise.pareto import hypervolume
from equipoise.road import entries
from equipoise.road.prober import Prober
from equipoise.road.probing import change_of
from equipoise.search import LossTable
from equipoise.workloads.divergence import Divergence

RESULT = Path(__file__).parent / "results" / "duel_resnet20.json"
MARK = 216
"""Evaluations of NSGA-II whose hypervolume is to be reached."""
POPULATIONS = (24, 50)
MOST = {"ours": 60, "nsga2-24": MARK, "nsga2-50": MARK, "tpe": MARK, "random": MARK, "ga": MARK, "gp": 100}


class Run(Ledger):
    """What one contender saw, in order, and how much of an evaluation it had paid before the first."""

    paid = 0.0

    def volumes(self) -> list[float]:
        """Hypervolume after each evaluation."""
        untouched = self.problem.cost(self.problem.space.untouched)
        points = [(cost / untouched, loss) for cost, loss in self.seen.values()]
        return [hypervolume(points[: n + 1], (1.0, self.problem.worst_loss)) for n in range(len(points))]


def table_of(network: Network) -> tuple[LossTable, float]:
    """Read the whole loss table as `optimize` does; return it and its CPU seconds."""
    began, builder = time.process_time(), network._builder
    divergence = Divergence("softmax", axis=1, probabilities=False, why="classes")
    images = network._images
    reference = network._log_probabilities(builder.subject.model)
    prober = Prober(builder.subject.model, network.calibration, images, reference.float(), divergence)
    read = {}
    for knob in network.space.knobs:
        for choice in knob.menu[1:]:
            read[knob.name, choice] = prober.loss(change_of(builder, prober, knob.name, choice))
    losses = {key: loss.mean for key, loss in read.items()}
    return entries.table_of(network.space, losses, read), time.process_time() - began


def ours(problem: Problem, table: LossTable, paid: float, *, n: int, seed: int) -> Run:
    """The guided search, until `n` evaluations were paid for."""
    run = Run(problem)
    run.paid = paid
    run(problem.space.untouched)
    searched(run, table, n=math.floor(n - paid), seed=seed)
    return run


def genetic(problem: Problem, *, n: int, seed: int, population: int = 24) -> Run:
    """DEAP's ``eaSimple`` with one objective: tournament of three, two-point crossover 0.7, uniform mutation 0.3, one elite."""
    space, run, rng = problem.space, Run(problem), np.random.default_rng(seed)
    untouched = problem.cost(space.untouched)

    def score(genome: np.ndarray, weight: float) -> float:
        cost, loss = run(space.decode(genome))
        return weight * cost / untouched + (1 - weight) * min(loss, problem.worst_loss)

    while len(run.seen) < n:
        weight = float(rng.uniform(0.1, 0.9))
        starts = [np.array([start[k.name] for k in space.knobs]) for start in uniform(space)]
        herd = [*starts, *space.sample(rng, n=population - len(starts))]
        for _ in range(6):
            scores = [score(genome, weight) for genome in herd]
            if len(run.seen) >= n:
                break
            elite = herd[int(np.argmin(scores))]
            picked = [herd[min(rng.integers(len(herd), size=3), key=lambda i: scores[i])].copy() for _ in herd]
            for a, b in zip(picked[::2], picked[1::2], strict=True):
                if rng.random() < 0.7:
                    low, high = sorted(rng.integers(len(a) + 1, size=2))
                    a[low:high], b[low:high] = b[low:high].copy(), a[low:high].copy()
            for genome in picked:
                mutated = rng.random(len(genome)) < 0.3 / 2
                genome[mutated] = [int(rng.integers(len(space.knobs[i].menu))) for i in np.flatnonzero(mutated)]
            herd = [elite, *picked[1:]]
    return run


def _optuna(make: Callable[[Any, int], Any]) -> Callable[[Problem, int, int], Run]:
    def contend(problem: Problem, n: int, seed: int) -> Run:
        run = Run(problem)
        sampled(run, n=n, make=lambda kinds: make(kinds, seed))
        return run

    return contend


CONTENDERS: dict[str, Callable[[Problem, int, int], Run]] = {
    "nsga2-24": _optuna(lambda kinds, seed: kinds.NSGAIISampler(population_size=24, seed=seed)),
    "nsga2-50": _optuna(lambda kinds, seed: kinds.NSGAIISampler(population_size=50, seed=seed)),
    "tpe": _optuna(lambda kinds, seed: kinds.TPESampler(seed=seed)),
    "random": _optuna(lambda kinds, seed: kinds.RandomSampler(seed=seed)),
    "ga": lambda problem, n, seed: genetic(problem, n=n, seed=seed),
    "gp": _optuna(lambda kinds, seed: kinds.GPSampler(seed=seed)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs, tells = verbs.add_parser("run"), verbs.add_parser("tell")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    runs.add_argument("--contenders", nargs="+", default=["ours", *CONTENDERS])
    runs.add_argument("--cache", type=Path, required=True, help="JSON file outside the checkout that keeps evaluations")
    for verb in (runs, tells):
        verb.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.verb == "run":
        run(args.seeds, args.contenders, args.cache, args.out)
    tell(json.loads(args.out.read_text()))


def run(seeds: Sequence[int], contenders: Sequence[str], cache: Path, out: Path) -> None:
    """Run what is not in the result file yet, seed by seed, and write after each."""
    found = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    network = resnet20()
    problem = Remembered(network, cache)
    if "ours" in contenders and "table_cpu_s" not in found:
        table, table_s = table_of(network)
        plans = network.space.decode_all(network.space.sample(np.random.default_rng(99), n=6))
        took = [-time.process_time() + (network.evaluate(plan), time.process_time())[1] for plan in plans]
        found |= {"table_cpu_s": table_s, "evaluation_cpu_s": median(took), "machine": machine.describe()}
    table = table_of(network)[0] if "ours" in contenders else None
    for seed in seeds:
        for name in contenders:
            key = f"{name}:{seed}"
            if key in found["runs"]:
                continue
            if name == "ours":
                paid = found["table_cpu_s"] / found["evaluation_cpu_s"]
                made = ours(problem, table, paid, n=MOST[name], seed=seed)
            else:
                made = CONTENDERS[name](problem, MOST[name], seed)
            found["runs"][key] = {"paid": made.paid, "volumes": made.volumes()}
            out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(f"{key}: {made.volumes()[-1]:.4f} after {len(made.seen)} (and {made.paid:.1f})", flush=True)


def tell(found: dict[str, Any]) -> None:
    """Print, for each seed, after how many evaluations each contender has the mark's hypervolume."""
    runs = found["runs"]
    seeds = sorted({int(key.partition(":")[2]) for key in runs})
    wins, rows = 0, 0
    for seed in seeds:
        marks = [runs[f"nsga2-{size}:{seed}"]["volumes"] for size in POPULATIONS if f"nsga2-{size}:{seed}" in runs]
        if not marks:
            continue
        mark = max(volumes[min(MARK, len(volumes)) - 1] for volumes in marks)
        told = []
        for name in MOST:
            row = runs.get(f"{name}:{seed}")
            if row is None:
                continue
            reached = next((n + 1 + row["paid"] for n, volume in enumerate(row["volumes"]) if volume >= mark), None)
            told.append(f"{name} {'not' if reached is None else f'{reached:.1f}'} ({row['volumes'][-1] / mark:.3f})")
            if name == "ours":
                rows += 1
                wins += reached is not None and reached <= MARK / 5
        print(f"seed {seed}: mark {mark:.4f}; " + ", ".join(told))
    if rows:
        print(f"ours within {MARK / 5:.0f} on {wins} of {rows} seeds; sign test p = {sign_test(wins, rows):.3f}")


def sign_test(wins: int, rows: int) -> float:
    """One-sided: how likely so many wins are by chance."""
    return sum(math.comb(rows, k) for k in range(wins, rows + 1)) / 2**rows


if __name__ == "__main__":
    main()
