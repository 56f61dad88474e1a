"""What `equipoise optimize` delivers of a real model within its time, beside the best that hand use of one tool gives.

    python benchmarks/headline.py resnet20 run     --workload "$W" --store runs/r20              # 45 min on 2 cores
    python benchmarks/headline.py resnet20 uniform --workload "$W" --store runs/r20 --ratio 0.5  # as many steps as the pick
    python benchmarks/headline.py resnet20 race    --workload "$W" --store runs/r20              # 6 min; writes the result

    resnet20       W="cifar10:CIFAR.zip?weights=resnet20.safetensors&holdout=3000&shift=2"       # drop<=1, 45 min
    efficientnet   W=benchmarks/efficientnet.py:make_workload                                    # drop<=1, 60 min
    mobilenet      W=benchmarks/mobilenet.py:make_workload                                       # drop<=1, 60 min
    minilm         W="sentiment:SST2?model=FOLDER&length=32"                                     # drop<=1, 60 min

*run* optimizes on all targets of the subject within its budget; a file may have a quarter of the float one's bytes where it is
for photographs, a fifth for MiniLM. *uniform* prunes every inner width by one ratio with Torch-Pruning's groups and L2 norms,
trains by the same distillation for as many steps as the pick was trained, and makes it int8 by NNCF. *race* times the pick and
all of them and what one tool makes of the untouched model, in fresh processes, one thread, batch 1; it scores every file on
validation and test together, paired, and on test alone, which nothing saw. Each seed is a study of its own; the file holds all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
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
from equipoise.road.training import recipe_for
from equipoise.road.walk import optimize
from equipoise.runtimes import Program, Target, get
from equipoise.runtimes.export import Exporter
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.training.recover import distill
from equipoise.workloads import Workload
from equipoise.workloads.scoring import drop_reading

RESULTS = Path(__file__).parent / "results"
OURS, AGAIN = "Equipoise", "Equipoise again"
FLOAT = "ONNX Runtime fp32"


@dataclass(frozen=True)
class Subject:
    """What is asked for of a model.

    Attributes:
        part: Largest share of the bytes of ONNX Runtime's float file; None: no bound.
    """

    time: str
    part: float | None = None
    target: str = "openvino:cpu,onnxruntime:cpu"
    drop: float = 1.0


SUBJECTS = {
    "resnet20": Subject("45min", target="openvino:cpu"),
    "efficientnet": Subject("60min", 1 / 4),
    "mobilenet": Subject("60min", 1 / 4),
    "minilm": Subject("60min", 1 / 5),
}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import photographs

    photographs.declare_operators()  # transformers and timm import torchvision
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("stage", choices=("run", "uniform", "race"))
    parser.add_argument("--workload", required=True, help="as of equipoise optimize")
    parser.add_argument("--store", type=Path, required=True, help="folder of the study")
    parser.add_argument("--seed", type=int, default=0, help="of *run*; names the row of the result file")
    parser.add_argument("--time", default="", help="of *run*; else that of the subject")
    parser.add_argument("--steps", type=int, default=0, help="of *uniform*; 0 takes what the pick was trained for")
    parser.add_argument("--ratio", type=float, default=0.5, help="of *uniform*: share of channels pruned (%(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="of *race* (%(default)s)")
    args = parser.parse_args()
    subject, work = SUBJECTS[args.subject], workloads.load(args.workload)
    if args.stage == "run":
        run(subject, work, args.workload, args.store, args.seed, args.time)
    elif args.stage == "uniform":
        uniform(work, args.store, args.steps, args.ratio)
    else:
        race(args.subject, work, args.store, args.seed, args.seconds)


def run(subject: Subject, work: Workload, spec: str, store: Path, seed: int, time: str) -> None:
    """Optimize and say what came out."""
    budget = f"drop<={subject.drop:g}"
    if subject.part is not None:
        budget += f", size<={subject.part * _compiled(work, work.model, 'onnxruntime').size_bytes / 1e3:.0f}KB"
    time = time or subject.time
    study = optimize(
        work, target=subject.target, budget=budget, time=time, store=store, spec=spec, seed=seed,
        listen=lambda event: print(f"[{event.spent_s:6.0f} s] {event.stage:9s}{event.text}", flush=True),
    )  # fmt: skip
    print(study.verdict(), study.sentence(study.best), sep="\n")


def uniform(work: Workload, store: Path, steps: int, ratio: float) -> None:
    """Prune uniformly, train for as many steps as the pick, quantize; keep the program beside the study."""
    study, folder = Study.load(store), store.with_name(f"{store.name}-uniform-{ratio:g}")
    legs = [e for e in study.evaluations if e.fidelity == "recovered" and e.plan == _pick(study).plan]
    steps = steps or int(sum(e.training.steps for e in legs if e.training))
    small = prune(work.model, work.example, ratio=ratio, criterion="l2")
    teacher = get("openvino").load(_compiled(work, work.model, "openvino"), threads=os.cpu_count() or 1)

    def answers(inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(teacher.run(inputs.contiguous().numpy()))

    with torch.no_grad():
        pairs = [(small(inputs), answers(inputs)) for inputs, _ in work.validation.batches(50)]
        lost = work.divergence.loss(*map(torch.cat, zip(*pairs, strict=True)))
    tuned = distill(
        small,
        answers,
        work.train,
        divergence=work.divergence,
        steps=steps,
        recipe=recipe_for(work.model, work.example, new=False, lost=float(lost)),
        augment=work.augment,
        generator=torch.Generator().manual_seed(0),
        checkpoint=folder / "training",
        on_step=lambda p: print(f"\r{p}", end="", flush=True),
    ).model
    _compiled(work, tuned, "openvino", int8=True).write(folder)
    print(f"\nuniform {ratio:g}, {steps} steps of distillation: {folder}")


def race(name: str, work: Workload, store: Path, seed: int, seconds: float) -> None:
    """Time and score every contender; write the seed's row of the result file."""
    study = Study.load(store)
    programs = {
        FLOAT: _compiled(work, work.model, "onnxruntime"),
        "ONNX Runtime int8": _compiled(work, work.model, "onnxruntime", int8=True),
        "OpenVINO fp32": _compiled(work, work.model, "openvino"),
        "NNCF int8 on OpenVINO": _compiled(work, work.model, "openvino", int8=True),
    }
    if name == "minilm":
        programs["ONNX Runtime dynamic int8"] = _dynamic(programs[FLOAT])
    rivals = tuple(programs)
    for made in sorted(store.parent.glob(f"{store.name}-uniform-*/model.xml")):
        told = f"Torch-Pruning {made.parent.name.rpartition('-')[2]} + NNCF"
        programs[told] = Program.read(made.parent, runtime="openvino", precision="int8", names=("model.bin", "model.xml"))
    programs[OURS] = _picked(study, store)
    contenders = {told: Contender(program, Target(program.runtime)) for told, program in programs.items()}
    contenders[AGAIN] = contenders[OURS]  # A/A: how much of a ratio is noise
    timed = race_programs(contenders, work.example.numpy(), baseline=OURS, seconds=seconds)
    scores = _scores(work, programs)
    able = [told for told in rivals if scores[told]["drop"]["value"] <= SUBJECTS[name].drop]
    best = min(able, key=lambda told: timed.speedup(told, OURS).value)
    rows = {
        told: {
            "latency": as_data(timed.latency(told)),
            "times_faster_of_equipoise": as_data(timed.speedup(told, OURS)),
            "bytes": programs[told].size_bytes if told in programs else None,
            **scores.get(told, {}),
        }
        for told in contenders
    }
    result = {
        "what": f"{work.name}, batch 1, one thread, raced in {timed.processes} fresh processes",
        "best_rival_at_the_drop": best,
        "contenders": rows,
        "part_of_float_bytes": programs[OURS].size_bytes / programs[FLOAT].size_bytes,
        "plan": as_data(_pick(study).plan),
        "validation": {"drop": as_data(_pick(study).drop), "met": study.met},
        "study": {
            "budget": study.header.budget,
            "evaluations": len(study.evaluations),
            "time_s": study.header.time_s,
            "verdict": study.verdict(),
        },
        "overhead": _overhead(store, study),
        "machine": machine.describe(),
    }
    file = RESULTS / f"headline_{name}.json"
    seeds = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**seeds, f"seed {seed}": result}, indent=1, sort_keys=True) + "\n")
    for told, row in rows.items():
        ratio, drop = row["times_faster_of_equipoise"], row.get("drop", {}).get("value", 0.0)
        times = f"{ratio['value']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        print(f"{told:26s} {row['latency']['value'] * 1e3:.3f} ms  ours {times}  {row['bytes'] or 0:>11,} B  drop {drop:.2f}")
    print(f"best rival at the drop: {best}; {result['part_of_float_bytes']:.3f} of the float bytes")


def _compiled(work: Workload, model: torch.nn.Module, runtime: str, *, int8: bool = False) -> Program:
    source = Exporter().source(fold(model, work.example), work.example, topology="")
    if not int8:
        return get(runtime).compile(source)
    calibration = work.calibration.take(256).tensors()[0].numpy()
    return get(runtime).compile(source, calibration=calibration, float_layers=frozenset())


def _dynamic(program: Program) -> Program:
    """What ONNX Runtime's own `quantize_dynamic` makes of a file."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.onnx"
        quantize_dynamic(onnx.load_from_string(program.file("model.onnx")), made, per_channel=True, weight_type=QuantType.QInt8)
        return Program("onnxruntime", "int8", {"model.onnx": made.read_bytes()})


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
        at_once = 1 if "dynamic" in name else 50  # its ranges are those of a request
        answers[name] = np.concatenate([session.run(part.numpy()) for part in inputs.split(at_once)])
    base, n = answers[FLOAT], len(unseen[0])
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
