"""All techniques searched together, against prune-then-quantize and against each technique alone, in equal time.

    python benchmarks/joint.py resnet20 --workload "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000&shift=2" --time 8min
    python benchmarks/joint.py minilm   --workload "sentiment:SST2?model=FOLDER&length=32" --time 15min      # 1 h a seed
    python benchmarks/joint.py efficientnet --workload benchmarks/efficientnet.py:make_workload --time 15min

*Together* is `optimize`; *alone* is `optimize --only` (channels; precision); *one after the other* gives 70 % of the time to
channels, blocks and recovery in floats, then makes every file of that front int8 and whatever else every second layer can be,
on each target, until the time is over. All start from the same model with the same seed; what counts is the volume that a front
dominates, of latency and drop, and of latency, bytes and drop: shares of the untouched model's, drops of up to `WORST` points,
all on validation samples. The result file holds one row a seed; the same seed again is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from equipoise import workloads
from equipoise.measure import machine
from equipoise.pareto import hypervolume, non_dominated
from equipoise.records import Evaluation
from equipoise.road.bench import Workbench
from equipoise.road.facts import TARGET
from equipoise.road.proposals import uniform_plans
from equipoise.road.walk import optimize
from equipoise.runtimes import get, parse_targets
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.units import duration
from equipoise.workloads import Workload

sys.path.insert(0, str(Path(__file__).parent))
import photographs

RESULTS = Path(__file__).parent / "results"
TARGETS = "openvino:cpu,onnxruntime:cpu"
WORST = 5.0
"""Points of drop beyond which a plan is of no worth."""
FIRST = 0.7
"""Share of the time for what comes first of two."""
CUT, ROUND = ("width", "depth"), ("bits",)


def main() -> None:
    photographs.declare_operators()  # transformers and timm import torchvision
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", help="names the result file")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--time", default="8min", help="for each contender (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("runs/joint"), help="folder of the studies (%(default)s)")
    args = parser.parse_args()
    work, seconds = workloads.load(args.workload), duration(args.time)
    folder = args.store / f"{args.subject}-{args.seed}"

    def searched(name: str, share: float = 1.0, only: Sequence[str] = ()) -> Study:
        store = folder / name
        return optimize(
            work, target=TARGETS, time=share * seconds, store=store, seed=args.seed, only=only, listen=lambda _: None
        )

    fronts: dict[str, list[Evaluation]] = {}
    fronts["together"] = list(searched("together").evaluations)
    fronts["channels and blocks alone"] = list(searched("cut", only=CUT).evaluations)
    fronts["precision alone"] = list(searched("round", only=ROUND).evaluations)
    first = searched("first", FIRST, CUT)
    fronts["one after the other"] = [*first.evaluations, *rounded(work, folder / "first", first, (1 - FIRST) * seconds)]
    volumes = {name: volume(rows) for name, rows in fronts.items()}
    alone = max((name for name in volumes if name.endswith("alone")), key=lambda name: volumes[name]["latency, drop"])
    rivals = {"the best alone": alone, "one after the other": "one after the other"}
    ratios = {
        axes: {told: whole / volumes[name][axes] for told, name in rivals.items()}
        for axes, whole in volumes["together"].items()
    }
    for name, row in volumes.items():
        print(f"{name:28s} {row['latency, drop']:.4f}  {row['latency, bytes, drop']:.4f}  {len(fronts[name])} evaluations")
    print(ratios)
    file = RESULTS / f"joint_{args.subject}.json"
    seeds = json.loads(file.read_text()) if file.is_file() else {}
    seeds[f"seed {args.seed}"] = {
        "time_s": seconds,
        "volumes": volumes,
        "ratios": ratios,
        "best alone": alone,
        "evaluations": {name: len(rows) for name, rows in fronts.items()},
        "machine": machine.describe(),
    }
    file.write_text(json.dumps(seeds, indent=1, sort_keys=True) + "\n")


def volume(rows: Sequence[Evaluation]) -> dict[str, float]:
    """Return the dominated volume, of the unit square and cube between the untouched model and nothing."""
    base = next(e for e in rows if e.fidelity == "untouched")
    points = [
        (
            e.axis("latency_s").get() / base.axis("latency_s").get(),
            e.axis("size_bytes").get() / base.axis("size_bytes").get(),
            max(0.0, e.drop.get()) / WORST,
        )
        for e in rows
        if e.ok
    ]
    points = [points[i] for i in non_dominated(points)]
    return {
        "latency, drop": hypervolume([(a, c) for a, _, c in points], (1.0, 1.0)),
        "latency, bytes, drop": hypervolume(points, (1.0, 1.0, 1.0)),
    }


def rounded(work: Workload, store: Path, study: Study, seconds: float) -> list[Evaluation]:
    """Make every file of a front int8, or what else all layers can be, on each target, while there is time; score and time."""
    began, found = time.perf_counter(), list[Evaluation]()
    targets = parse_targets(TARGETS)
    with Store.open(store, create=False) as opened:
        bench = Workbench(work, targets, opened.blob)
        space = bench.facts.space
        ways = uniform_plans(space, {str(t): get(t.runtime).precisions for t in targets})
        reference = study.baseline.axis("latency_s").get()
        for start in sorted(study.front, key=lambda e: e.drop.get()):
            for way in ways:
                changes = {name: c for name, c in way.choices.items() if name == TARGET or name.startswith("bits.")}
                plan = start.plan.but(changes)
                if plan == start.plan:
                    continue
                if time.perf_counter() - began > seconds:
                    return found
                draft = bench.restore(plan, opened.read_blob(start.weights))
                scored = bench.score(plan, draft, fidelity="recovered")
                found.append(bench.time(scored, opened.read_blob, reference_s=reference, seconds=1.5))
    return found


if __name__ == "__main__":
    main()
