"""Whole nets as phones and boards run them: ExecuTorch and LiteRT beside ONNX Runtime and OpenVINO, float and int8.

    python benchmarks/edge.py resnet20 --data CIFAR.zip --weights W.safetensors                       # 5 min; writes the result
    python benchmarks/edge.py mobilenet --data clothing.zip --weights mobilenet_v2.pth --head M.pth   # 8 min

Each runtime that is installed compiles the model as it is and in int8, on 256 calibration inputs of which the edge runtimes
read 128. A float program must answer as torch does: largest difference at most 1e-4 of the largest output. One in int8 is
compared on all validation and test samples: share of the same decisions, divergence, paired drop. Then all are raced in fresh
processes, batch 1, one thread. Memory is what loading and running a program adds to its process. Everything is run on this
machine: nothing here says how fast a phone is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise import workloads
from equipoise.compress.fold import fold
from equipoise.measure import machine
from equipoise.records import as_data
from equipoise.road.appetite import program_memory
from equipoise.road.racing import Contender, race_programs
from equipoise.runtimes import Program, Target, get
from equipoise.runtimes.export import Exporter
from equipoise.testing.runtimes import FLOAT_BOUND, error_of
from equipoise.workloads import Workload
from equipoise.workloads.scoring import drop_reading

sys.path.insert(0, str(Path(__file__).parent))
import mobilenet
from int8 import CALIBRATION, RESULTS, nearness

RUNTIMES = ("onnxruntime", "openvino", "executorch", "litert")
FIRST = "onnxruntime fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("resnet20", "mobilenet"))
    parser.add_argument("--data", type=Path, required=True, help="zip of images")
    parser.add_argument("--weights", type=Path, required=True, help="of the model")
    parser.add_argument("--head", type=Path, help="file to keep the fitted head of a pretrained model in")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the race (%(default)s)")
    parser.add_argument("--out", type=Path, help="file of the result (default: its place among the results)")
    args = parser.parse_args()
    if args.subject == "resnet20":
        work = workloads.load(f"cifar10:{args.data}?weights={args.weights}&holdout=3000&shift=2")
    else:
        work = mobilenet.workload(str(args.data), str(args.weights), head=str(args.head) if args.head else None)
    result = {**measured(work, args.seconds), "machine": machine.describe()}
    (args.out or RESULTS / f"edge_{args.subject}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def measured(work: Workload, seconds: float) -> dict[str, Any]:
    """Compile the model for every runtime, score the programs, race them."""
    model = fold(work.model, work.example)
    source = Exporter().source(model, work.example, topology="")
    calibration = work.calibration.take(CALIBRATION).tensors()[0].numpy()
    inputs, targets = (torch.cat(pair) for pair in zip(work.test.tensors(), work.validation.tensors(), strict=True))
    with torch.inference_mode():
        wanted = np.concatenate([model(part).numpy() for part in inputs.split(50)])
    rows: dict[str, Any] = {}
    programs: dict[str, Program] = {}
    for runtime in map(get, RUNTIMES):
        if reason := runtime.unavailable():
            print(f"{runtime.name}: {reason}", flush=True)
            continue
        for precision in ("fp32", "int8"):
            began = time.perf_counter()
            how: dict[str, Any] = {"calibration": calibration, "float_layers": frozenset()} if precision == "int8" else {}
            program = runtime.compile(source, **how)
            spent = time.perf_counter() - began
            session = runtime.load(program)
            found = np.concatenate([session.run(part.numpy()) for part in inputs.split(50)])
            if precision == "fp32" and error_of(found, wanted) > FLOAT_BOUND:
                raise SystemExit(
                    f"{runtime.name} in float is {error_of(found, wanted):.2g} from torch, more than {FLOAT_BOUND}"
                )
            memory = program_memory(Target(runtime.name), program, inputs[:1].numpy()).added
            name = f"{runtime.name} {precision}"
            programs[name] = program
            rows[name] = row = {
                **nearness(wanted, found),
                "difference": error_of(found, wanted),
                "accuracy": work.metric.score(torch.from_numpy(found), targets),
                "drop": as_data(drop_reading(work.metric, wanted, found, targets)),
                "bytes": program.size_bytes,
                "memory": as_data(memory),
                "compile_s": spent,
                "left": dict(program.left),
            }
            told = f"agreement {row['agreement']:.4f}  divergence {row['divergence']:.5f}  drop {row['drop']['value']:5.2f}"
            print(f"{name:18s} {told}  {program.size_bytes:,} B  {memory}  made in {spent:.1f} s", flush=True)
    race = {name: Contender(program, Target(program.runtime)) for name, program in programs.items()}
    timed = race_programs(race, work.example.numpy(), baseline=FIRST, seconds=seconds)
    for name in race:
        ratio = timed.speedup(FIRST, name)
        print(f"{name:18s} {timed.latency(name).value * 1e3:.3f} ms  {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]")
    return {
        "what": f"{work.name}, {len(targets)} samples, batch 1, one thread, raced in {timed.processes} fresh processes",
        "programs": rows,
        "speed_up": {name: as_data(timed.speedup(FIRST, name)) for name in race},
        "latency": {name: as_data(timed.latency(name)) for name in race},
    }


if __name__ == "__main__":
    main()
