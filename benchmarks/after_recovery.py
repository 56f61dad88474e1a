"""Is the plan that a search chose the better one after training too? Beside four uniform widths, all trained alike.

    python benchmarks/after_recovery.py "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000&shift=2" --store RUN --steps 600
    python benchmarks/after_recovery.py "sentiment:SST2?model=FOLDER&length=32" --store RUN --steps 120

The study is one of `equipoise optimize`; its pick is trained anew. A uniform plan keeps one share of the channels of every
layer that has a width to choose, on the pick's target, in int8 where the pick has any, and is repaired in closed form as the
pick is. All are distilled by the recipe of the road, each for as many steps, with each seed; what they drop is read on test,
which chose nothing, and all programs are timed together in fresh processes. *At equal drop* is the latency on the line between
the uniform plans around the pick's drop (in the logarithm of latency), by the mean of the seeds; where none drops as little, it
is a bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from equipoise import workloads
from equipoise.batch import mapped
from equipoise.measure import machine
from equipoise.records import Plan, as_data, program_ref
from equipoise.road import training
from equipoise.road.bench import Answering, Workbench
from equipoise.road.racing import Contender, race_programs
from equipoise.runtimes import Program, Target
from equipoise.study.record import Study
from equipoise.training.recover import distill
from equipoise.workloads import Workload, predict
from equipoise.workloads.scoring import drop_reading

RESULTS = Path(__file__).parent / "results"
SHARES = (0.75, 0.625, 0.5, 0.375)
OURS = "chosen"


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import photographs

    photographs.declare_operators()  # transformers and timm import torchvision
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--pick", default="best")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the race (%(default)s)")
    args = parser.parse_args()
    work, study = workloads.load(args.workload), Study.load(args.store)
    drops, programs, plans = trained(work, study.pick(args.pick).plan, args.steps, args.seeds)
    found = told(work, drops, programs, args.seconds)
    found |= {
        "what": f"{work.name}: {args.steps} steps of training, {len(args.seeds)} seeds",
        "plans": {name: as_data(plan) for name, plan in plans.items()},
        "study": {"budget": study.header.budget, "time_s": study.header.time_s, "evaluations": len(study.evaluations)},
        "machine": machine.describe(),
    }
    (RESULTS / f"after_recovery_{work.name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def trained(
    work: Workload, pick: Plan, steps: int, seeds: list[int]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Program], dict[str, Plan]]:
    """Train every contender with every seed; return the drops on test, a program and the plan of each."""
    kept: dict[str, bytes] = {}

    def save(content: bytes) -> str:
        kept[name := str(len(kept))] = content
        return name

    bench = Workbench(work, (Target.parse(str(pick.choices.get("target", "onnxruntime:cpu"))),), save)
    space = bench.facts.space
    plans = {OURS: pick, **{f"uniform {share:g}": uniform(space.knobs, pick, share) for share in SHARES}}
    reference = predict(Answering(bench.reference_program), work.test, batch=50)[0].numpy()
    targets, drops, programs = work.test.targets(), dict[str, list[dict[str, Any]]](), dict[str, Program]()
    for seed in seeds:
        for name, plan in plans.items():
            draft = bench.build(plan)
            before = bench.score(plan, draft, fidelity="one-shot")

            def stepped(*given: Any, seconds: float, every_s: float, **more: Any) -> Any:
                return distill(*given, steps=steps, **more)

            with tempfile.TemporaryDirectory() as folder, mock.patch.object(training, "distill", stepped):
                done = training.train(
                    bench, plan, draft, seconds=1.0, lost=before.damage, checkpoint=Path(folder) / "at", leg=1, seed=seed
                )  # fmt: skip
            after = bench.score(plan, replace(draft, model=done.model), fidelity="recovered")
            program = Program.stored(program_ref(after), kept.__getitem__)
            answers = predict(Answering(program), work.test, batch=50)[0].numpy()
            drop = drop_reading(work.metric, reference, answers, targets)
            drops.setdefault(name, []).append(
                {"seed": seed, "before": before.damage, "after": after.damage, "drop": as_data(drop)}
            )
            programs.setdefault(name, program)
            print(f"seed {seed} {name:14s} {before.damage:.3f} -> {after.damage:.3f} nats, drop on test {drop}", flush=True)
    return drops, programs, plans


def uniform(knobs: Any, pick: Plan, share: float) -> Plan:
    """Return the plan that keeps of each width what is nearest to `share`, on the pick's target."""
    choices = {}
    for knob in knobs:
        full = knob.menu[0]
        if knob.kind == "width":
            choices[knob.name] = min(knob.menu, key=lambda n, full=full: abs(n / full - share))
        elif knob.kind == "bits" and 8 in pick.of("bits").values() and 8 in knob.menu:
            choices[knob.name] = 8
        elif knob.kind == "target":
            choices[knob.name] = pick.choices[knob.name]
        else:
            choices[knob.name] = full
    return Plan(choices)


def told(work: Workload, drops: Mapping[str, Any], programs: Mapping[str, Program], seconds: float) -> dict[str, Any]:
    """Race the programs and say how much faster the chosen one is at equal drop."""
    contenders = {name: Contender(program, Target(program.runtime)) for name, program in programs.items()}
    timed = race_programs(contenders, mapped(work.example, lambda v: v.numpy()), baseline=OURS, seconds=seconds)
    mean = {name: float(np.mean([row["drop"]["value"] for row in rows])) for name, rows in drops.items()}
    rows = {
        name: {"latency": as_data(timed.latency(name)), "slower": as_data(timed.speedup(OURS, name)), "drop": mean[name]}
        for name in contenders
    }
    line = sorted((mean[name], np.log(timed.latency(name).get())) for name in rows if name != OURS)
    # of those that drop more and are no faster, nothing is to be learned: the best of uniform widths is their front
    front = [line[0]]
    for at in line[1:]:
        if at[1] < front[-1][1]:
            front.append(at)
    equal = float(np.exp(np.interp(mean[OURS], *zip(*front, strict=True))))
    within = front[0][0] <= mean[OURS] <= front[-1][0]
    times = equal / timed.latency(OURS).get()
    for name, row in rows.items():
        slower, latency = row["slower"]["value"], row["latency"]["value"]
        print(f"{name:14s} {latency * 1e3:.3f} ms, {slower:.2f}x of the chosen, drop {row['drop']:.2f}")
    beyond = "" if within else " (the nearest: no uniform plan drops as it)"
    print(f"at equal drop the chosen plan is {times:.2f}x as fast{beyond}")
    return {"contenders": rows, "seeds": drops, "times_faster_at_equal_drop": times, "on_the_line": within}


if __name__ == "__main__":
    main()
