"""ResNet-20 on CIFAR-10: what `equipoise optimize` delivers in 45 minutes, beside what hand use of one tool gives.

    python benchmarks/resnet20.py run  --data CIFAR.zip --weights W.safetensors --store runs/r20    # 45 min on 2 cores
    python benchmarks/resnet20.py hand --data CIFAR.zip --weights W.safetensors --store runs/r20    # as many steps as the pick
    python benchmarks/resnet20.py hand --ratio 0.25 ...                                             # and milder
    python benchmarks/resnet20.py race --data CIFAR.zip --weights W.safetensors --store runs/r20    # 5 min; writes the result
    python benchmarks/resnet20.py race --workload benchmarks/efficientnet.py:make_workload --store runs/efficientnet   # as well

*run* optimizes for OpenVINO within ``drop<=1, size<=273KB`` (a quarter of the fp32 file), with 3,000 test images as validation:
the weights were trained on all of ``train/``. *hand* prunes every inner width by one ratio with Torch-Pruning's groups and L2
norms, fine-tunes by the same distillation for as many steps as the pick, and quantizes with NNCF. *race* times everything in
one run, in shuffled blocks, one thread, batch 1, and scores every file on all 10,000 test images and on the 7,000 that nothing
saw. Of another study it races the pick in the same way, scored on validation and test together, and on test alone.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise import workloads
from equipoise.compress.fold import fold
from equipoise.compress.prune import prune
from equipoise.measure import machine
from equipoise.records import Evaluation, as_data, program_ref
from equipoise.road.racing import Contender, race_programs
from equipoise.road.training import WITH_NORM
from equipoise.road.walk import optimize
from equipoise.runtimes import Program, Target, get
from equipoise.runtimes.export import Exporter
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.training.recover import distill
from equipoise.workloads import Workload
from equipoise.workloads.scoring import drop_reading

HOLDOUT = 3000
TIME = "45min"
BUDGET = "drop<=1, size<=273KB"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "hand", "race"))
    parser.add_argument("--data", type=Path, help="zip or folder of CIFAR-10 images")
    parser.add_argument("--weights", type=Path, help="ResNet-20 weights, safetensors")
    parser.add_argument("--workload", default="", help="of *race*: of a study that is not of ResNet-20, FILE.py:FUNCTION")
    parser.add_argument("--store", type=Path, required=True, help="folder of the study")
    parser.add_argument("--steps", type=int, default=0, help="of *hand*; 0 takes what the pick was trained for")
    parser.add_argument("--ratio", type=float, default=0.5, help="of *hand*: share of channels pruned (%(default)s)")
    args = parser.parse_args()
    spec = args.workload or f"cifar10:{args.data}?weights={args.weights}&holdout={HOLDOUT}&shift=2"
    if args.stage == "hand":
        hand(spec, args.store, args.steps, args.ratio)
    else:
        {"run": run, "race": race}[args.stage](spec, args.store)


def run(spec: str, store: Path) -> None:
    """Optimize and say what came out."""
    study = optimize(workloads.load(spec), target="openvino:cpu", budget=BUDGET, time=TIME, store=store, spec=spec)
    print(study.verdict(), study.sentence(study.best), sep="\n")


def hand(spec: str, store: Path, steps: int, ratio: float) -> None:
    """Prune uniformly, fine-tune for as many steps as the pick, quantize; keep the program beside the study."""
    work, study, folder = workloads.load(spec), Study.load(store), store.with_name(f"{store.name}-hand-{ratio:g}")
    legs = [e for e in study.evaluations if e.fidelity == "recovered" and e.plan == _pick(study).plan]
    steps = steps or int(sum(e.training.steps for e in legs if e.training))
    small = prune(work.model, work.example, ratio=ratio, criterion="l2")
    generator = torch.Generator().manual_seed(0)
    teacher = get("openvino").load(_compiled(work, work.model, "openvino"), threads=os.cpu_count() or 1)
    answer = lambda inputs: torch.from_numpy(teacher.run(inputs.contiguous().numpy()))  # noqa: E731
    tuned = distill(
        small, answer, work.train, divergence=work.divergence, steps=steps, recipe=WITH_NORM, augment=work.augment,
        generator=generator,
        checkpoint=folder / "training", on_step=lambda p: print(f"\r{p}", end="", flush=True),
    ).model  # fmt: skip
    _compiled(work, tuned, "openvino", int8=True).write(folder)
    print(f"\nuniform {ratio:g}, {steps} steps of distillation: {folder}")


def race(spec: str, store: Path) -> None:
    """Time and score every contender; write the result file."""
    work, study = workloads.load(spec), Study.load(store)
    programs = {
        "ORT fp32": _compiled(work, work.model, "onnxruntime"),
        "ORT int8": _compiled(work, work.model, "onnxruntime", int8=True),
        "OpenVINO fp32": _compiled(work, work.model, "openvino"),
        "NNCF int8 on OpenVINO": _compiled(work, work.model, "openvino", int8=True),
        "Equipoise": _picked(study, store),
    }
    for made in sorted(store.parent.glob(f"{store.name}-hand-*/model.xml")):
        name = f"Torch-Pruning {made.parent.name.rpartition('-')[2]} + NNCF"
        programs[name] = Program.read(made.parent, runtime="openvino", precision="int8", names=("model.bin", "model.xml"))
    contenders = {name: Contender(program, Target(program.runtime)) for name, program in programs.items()}
    contenders["Equipoise again"] = contenders["Equipoise"]  # A/A: how much of a ratio is noise
    timed = race_programs(contenders, work.example.numpy(), baseline="Equipoise", seconds=240)
    scores = _scores(work, programs)
    rivals = ("ORT fp32", "ORT int8", "NNCF int8 on OpenVINO")
    best = min(rivals, key=lambda name: timed.speedup(name, "Equipoise").value)
    rows = {
        name: {
            "latency": as_data(timed.latency(name)),
            "times_faster_of_equipoise": as_data(timed.speedup(name, "Equipoise")),
            "bytes": programs[name].size_bytes if name in programs else None,
            **scores.get(name, {}),
        }
        for name in contenders
    }
    result = {
        "what": f"{work.name}, batch 1, one thread, raced in fresh processes",
        "processes": timed.processes,
        "fastest_rival": best,
        "contenders": rows,
        "plan": as_data(_pick(study).plan),
        "validation": {"drop": as_data(_pick(study).drop), "met": study.met},
        "study": {"evaluations": len(study.evaluations), "time_s": study.header.time_s, "verdict": study.verdict()},
        "overhead": _overhead(store, study),
        "machine": machine.describe(),
    }
    name = Path(spec.rpartition(":")[0]).stem if spec.partition(":")[0] != "cifar10" else "resnet20"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    for name, row in rows.items():
        ratio, drop = row["times_faster_of_equipoise"], row.get("drop", {}).get("value", 0.0)
        times = f"{ratio['value']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        print(f"{name:26s} {row['latency']['value'] * 1e3:.3f} ms  ours {times}  {row['bytes'] or 0:>9,} B  drop {drop:.2f}")


def _compiled(work: Workload, model: torch.nn.Module, runtime: str, *, int8: bool = False) -> Program:
    source = Exporter().source(fold(model, work.example), work.example, topology="")
    if not int8:
        return get(runtime).compile(source)
    calibration = work.calibration.take(256).tensors()[0].numpy()
    return get(runtime).compile(source, calibration=calibration, float_layers=frozenset())


def _pick(study: Study) -> Evaluation:
    """The pick; where the budget was missed, the plan that was trained longest within the size: what came nearest by design."""
    trained = [e for e in study.evaluations if e.ok and e.fidelity == "recovered"]
    return study.best if study.met or not trained else trained[-1]


def _picked(study: Study, store: Path) -> Program:
    with Store.open(store, create=False, readonly=True) as opened:
        return Program.stored(program_ref(_pick(study)), opened.read_blob)


def _scores(work: Workload, programs: Mapping[str, Program]) -> dict[str, dict[str, Any]]:
    """Accuracy and paired drop against ORT fp32: on test and validation together, and on test alone."""
    unseen = work.test.tensors()
    seen = work.validation.tensors()
    inputs, targets = (torch.cat(pair) for pair in zip(unseen, seen, strict=True))
    answers = {}
    for name, program in programs.items():
        session = get(program.runtime).load(program, threads=os.cpu_count() or 1)
        answers[name] = np.concatenate([session.run(part.numpy()) for part in inputs.split(250)])
    base, n = answers["ORT fp32"], len(unseen[0])
    return {
        name: {
            "samples": len(targets),
            "accuracy": work.metric.score(torch.from_numpy(found), targets),
            "drop": as_data(drop_reading(work.metric, base, found, targets)),
            "drop_unseen": as_data(drop_reading(work.metric, base[:n], found[:n], targets[:n])),
        }
        for name, found in answers.items()
    }


def _overhead(store: Path, study: Study) -> dict[str, float]:
    """Seconds of all recorded steps, of those that measure or train, and the share of the rest (proposing plans)."""
    with Store.open(store, create=False, readonly=True) as opened:
        total = opened.spent()
        proposing = sum(row["seconds"] for row in opened.all("proposal"))
    return {"recorded_s": total, "proposing_s": proposing, "share": proposing / total}


if __name__ == "__main__":
    main()
