"""How many candidates a minute do two workers make, train and score beside what one does?

    python benchmarks/workers.py "cifar10:CIFAR.zip?weights=W.safetensors"       # 6 minutes on two quiet cores

Work that need not be timed: plans drawn at random are built, repaired, exported and scored, by a pool of processes as
`optimize --workers` makes it. One worker, one worker with a second core for its operators, and two workers do the same plans
in turns, in a shuffled order; a pool has prepared the model before. Printed are ratios of evaluations a minute, with 95 %
intervals over the turns, and what a worker that is killed in the midst costs: its plan is a failed trial, the rest is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from equipoise import workloads
from equipoise.measure import machine
from equipoise.records import Plan, as_data
from equipoise.road.answers import Died
from equipoise.road.bench import Workbench
from equipoise.road.isolated import isolated
from equipoise.road.jobs import TOGETHER, Job
from equipoise.road.pool import Pool
from equipoise.runtimes import parse_targets
from equipoise.stats import student_t
from equipoise.study.store import Store

RESULT = Path(__file__).parent / "results" / "workers.json"
WAYS = {"one worker": (1, 1), "one worker, two threads": (1, 2), "two workers": (2, 1)}
"""Workers, and threads of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "study") as store:
        bench = Workbench(workloads.load(args.workload), parse_targets("onnxruntime"), store.blob)
        with contextlib.ExitStack() as open_:
            pools = {way: open_.enter_context(pooled(bench, store, args.workload, *each)) for way, each in WAYS.items()}
            spaces = [pool.facts().space for pool in pools.values()]
            plans = spaces[0].decode_all(spaces[0].sample(np.random.default_rng(0), n=TOGETHER * args.turns))
            rows = [turn(pools, plans[TOGETHER * n : TOGETHER * (n + 1)], random.Random(n)) for n in range(args.turns)]
            lost = killed(pools["two workers"], plans[:TOGETHER])
    found = {"rows": rows, "killed": lost, "plans": TOGETHER, "machine": machine.describe(), "workload": bench.work.name}
    for way in ("one worker", "one worker, two threads"):
        ratios = [row[way] / row["two workers"] for row in rows]
        half = student_t(0.975, len(ratios) - 1) * stdev(ratios) / len(ratios) ** 0.5
        found[f"two workers over {way}"] = [mean(ratios), mean(ratios) - half, mean(ratios) + half]
    RESULT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key not in ("machine", "rows")}, indent=1))


@contextlib.contextmanager
def pooled(bench: Workbench, store: Store, spec: str, count: int, threads: int) -> Iterator[Pool]:
    with isolated(bench, store.files, spec=spec, seed=0, tell=lambda *_: None, count=count) as children:
        for child in children:
            child.recipe = {**child.recipe, "threads": threads, "cores": threads}
        yield Pool(children)


def turn(pools: dict[str, Pool], plans: list[Plan], order: random.Random) -> dict[str, float]:
    """Return the seconds that each way takes for the same plans."""
    took: dict[str, float] = {}
    for way in order.sample(list(pools), len(pools)):
        jobs = jobs_of(plans)
        began = time.perf_counter()
        pools[way].begin(jobs)
        for job in jobs:
            pools[way].scored(job)
        took[way] = time.perf_counter() - began
    print(json.dumps({way: round(seconds, 2) for way, seconds in took.items()}), flush=True)
    return took


def jobs_of(plans: list[Plan]) -> list[Job]:
    given = {"fidelity": "one-shot", "leg": 0, "predicted": {}}
    return [Job("evaluation", plan.digest, {"plan": as_data(plan), **given}) for plan in plans]


def killed(pool: Pool, plans: list[Plan]) -> dict[str, Any]:
    """Kill a worker while it works on one of the plans."""
    jobs = jobs_of(plans)
    pool.begin(jobs)
    time.sleep(1.0)
    process = pool._makers[0]._process
    assert process is not None
    process.kill()
    failed = done = 0
    for job in jobs:
        try:
            pool.scored(job)
            done += 1
        except Died:
            failed += 1
    return {"done": done, "failed": failed}


if __name__ == "__main__":
    main()
