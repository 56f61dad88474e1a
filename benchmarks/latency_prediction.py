"""Latency predicted from the look-up tables against latency measured, on random plans that the model never saw.

    python benchmarks/latency_prediction.py --workload digits                      # 4 min, 2 cores
    python benchmarks/latency_prediction.py --workload "cifar10:DATA.zip?weights=W.safetensors"

The tables are measured once (every layer shape as its own program), calibrated on `--fit` random whole plans, and judged on
`--n` others: median and 90th percentile of |predicted / measured - 1|. Weights are not repaired: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from equipoise import workloads
from equipoise.measure import machine
from equipoise.measure.loads import compare_loads
from equipoise.records import Evaluation, Plan, ProgramRef, measured
from equipoise.road import prediction, probing
from equipoise.road.bench import Workbench
from equipoise.road.features import Features, completed
from equipoise.road.racing import Contender
from equipoise.runtimes import Target, get
from equipoise.stats import median, quantile

LIMIT = 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--target", default="onnxruntime:cpu")
    parser.add_argument("--fit", type=int, default=16, help="whole plans that the cost model is calibrated on (16)")
    parser.add_argument("--n", type=int, default=40, help="plans that it is judged on (40)")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    target = Target.parse(args.target)
    bench = Workbench(workloads.load(args.workload), (target,), lambda content: "")
    precisions, facts = tuple(get(target.runtime).precisions), bench.facts
    space = facts.space
    times, _ = probing.layer_times(target, facts.layers, frozenset(space.positions), seconds=30)
    features = {str(target): Features(space, facts.layers, completed(times, facts.layers, precisions), precisions)}
    genomes = np.unique(space.sample(np.random.default_rng(0), n=args.fit + args.n), axis=0)
    np.random.default_rng(1).shuffle(genomes)
    plans = [space.decode(row) for row in genomes]
    seconds = _measure(bench, target, plans)
    known = [_evaluation(plan, target, s) for plan, s in zip(plans[: args.fit], seconds[: args.fit], strict=True)]
    rows = genomes[args.fit :]
    truth = np.array(seconds[args.fit :])
    result = {
        "what": __doc__.splitlines()[0],
        "workload": args.workload.partition("?")[0].rpartition("/")[2],
        "target": str(target),
        "fit": args.fit,
        "n": len(rows),
        "machine": machine.describe(),
    }
    for name, fitted in (("tables alone", []), ("tables, calibrated", known)):
        predicted = prediction.fit("latency_s", space, features, fitted).many(rows)
        errors = np.abs(predicted / truth - 1).tolist()
        result[name] = {"median_error": median(errors), "p90_error": quantile(errors, 0.9), "worst": max(errors)}
        print(f"{name:20s} median {median(errors):.1%}, p90 {quantile(errors, 0.9):.1%}, worst {max(errors):.1%}")
    slug = "".join(c if c.isalnum() else "-" for c in args.workload.partition(":")[0])
    out = args.out or Path(__file__).parent / "results" / f"latency_prediction_{slug}_{target.runtime}.json"
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0 if result["tables, calibrated"]["median_error"] <= LIMIT else 1


def _measure(bench: Workbench, target: Target, plans: list[Plan]) -> list[float]:
    """Seconds of every plan, each as its ratio to the untouched model timed in the same rounds."""
    request = bench.samples(target.batch)
    contenders = {"reference": Contender(bench.reference_program, target).load(request)}
    for plan in plans:
        draft = bench.build(plan, repair=False)
        program = bench.compile(draft, bench.source(draft.model), target, samples=32)
        contenders[plan.digest] = Contender(program, target).load(request)
    timed = compare_loads(contenders, seconds=120)
    base = timed.latency("reference").get()
    return [base / timed.speedup("reference", plan.digest).value for plan in plans]


def _evaluation(plan: Plan, target: Target, seconds: float) -> Evaluation:
    nothing = measured(0.0, "points")
    cost = {"latency_s": measured(seconds, "s")}
    return Evaluation(plan, "one-shot", nothing, nothing, cost, program=ProgramRef(target.runtime, "", str(target), {}))


if __name__ == "__main__":
    raise SystemExit(main())
