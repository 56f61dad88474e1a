"""Whole nets in static int8 on ONNX Runtime: how fast, how near to float, and what each step of the rounding brings.

    python benchmarks/int8.py resnet20 --data CIFAR.zip --weights W.safetensors                       # 3 min; writes the result
    python benchmarks/int8.py mobilenet --data clothing.zip --weights mobilenet_v2.pth --head M.pth
    python benchmarks/int8.py efficientnet --data clothing.zip --weights efficientnet-lite0.pth --head E.pth

Each model is made int8 on 256 calibration inputs in steps (ONNX Runtime's own form; ranges of least squared error; equalized
channels; corrected biases; weights rounded in order; whole ranges where they are better), with weights of 8 bits and of 7,
which CPUs without VNNI need. Every file is compared with the float one on all validation and test samples: share of the same
decisions, divergence, paired drop. Then float, ONNX Runtime's own int8 and ours are raced in fresh processes, batch 1, one
thread. Of MobileNetV2 the agreement of its own head of 1,000 classes is told too: decisions as close as these are overturned by
less.
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
from equipoise.road.racing import Contender, race_programs
from equipoise.runtimes import Program, Source, Target, onnxruntime
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import FILE, OnnxRuntime
from equipoise.runtimes.qdq import Rounding
from equipoise.workloads import Workload
from equipoise.workloads.scoring import drop_reading

sys.path.insert(0, str(Path(__file__).parent))
import efficientnet
import mobilenet

CALIBRATION = 256
STEPS = {
    "ONNX Runtime's own": Rounding("minmax", equalize=False, order=False, correct=False),
    "ranges of least error": Rounding("mse", equalize=False, order=False, correct=False),
    "+ equalized channels": Rounding("mse", order=False, correct=False),
    "+ corrected biases": Rounding("mse", order=False),
    "+ rounded in order": Rounding("mse"),
    "the best ranges": Rounding(),
}
PLAIN, OURS = "ONNX Runtime's own", "the best ranges"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("resnet20", "mobilenet", "efficientnet"))
    parser.add_argument("--data", type=Path, required=True, help="zip of images")
    parser.add_argument("--weights", type=Path, required=True, help="of the model")
    parser.add_argument("--head", type=Path, help="file to keep the fitted head of a pretrained model in")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the race (%(default)s)")
    args = parser.parse_args()
    if args.subject == "resnet20":
        work = workloads.load(f"cifar10:{args.data}?weights={args.weights}&holdout=3000&shift=2")
    else:
        room = {"mobilenet": mobilenet, "efficientnet": efficientnet}[args.subject]
        work = room.workload(str(args.data), str(args.weights), head=str(args.head) if args.head else None)
    result = measured(work, args.seconds)
    if args.subject == "mobilenet":
        result["1,000 classes"] = own_head(str(args.weights), work)
    result["machine"] = machine.describe()
    (RESULTS / f"int8_{args.subject}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def measured(work: Workload, seconds: float) -> dict[str, Any]:
    """Round the model in every way, score the files, race float, ONNX Runtime's own int8 and ours."""
    content = Exporter().source(fold(work.model, work.example), work.example, topology="").onnx()
    calibration = work.calibration.take(CALIBRATION).tensors()[0].numpy()
    inputs, targets = (torch.cat(pair) for pair in zip(work.test.tensors(), work.validation.tensors(), strict=True))
    float_answers = answers(content, inputs)
    rows: dict[str, Any] = {}
    files: dict[str, bytes] = {"float": content}
    for bits in (8, 7):
        for name, how in STEPS.items():
            began = time.process_time()
            made = rounded(content, calibration, how, bits)
            spent = time.process_time() - began
            if (bits == 8) == has_exact_int8():
                files[name] = made
            found = answers(made, inputs)
            rows[f"{bits} bits, {name}"] = row = {
                **nearness(float_answers, found),
                "accuracy": work.metric.score(torch.from_numpy(found), targets),
                "drop": as_data(drop_reading(work.metric, float_answers, found, targets)),
                "compile_cpu_s": spent,
            }
            told = f"agreement {row['agreement']:.3f}  divergence {row['divergence']:.5f}  drop {row['drop']['value']:5.2f}"
            print(f"{bits} bits, {name:22s} {told}  compiled in {spent:.1f} s of CPU", flush=True)
    race = {name: Contender(program(files[name]), Target("onnxruntime")) for name in ("float", PLAIN, OURS)}
    timed = race_programs(race, work.example.numpy(), baseline="float", seconds=seconds)
    for name in race:
        ratio = timed.speedup("float", name)
        print(f"{name:22s} {timed.latency(name).value * 1e3:.3f} ms  {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]")
    return {
        "what": f"{work.name}, {len(targets)} samples, batch 1, one thread, raced in {timed.processes} fresh processes",
        "exact_int8": has_exact_int8(),
        "rounding": rows,
        "speed_up": {name: as_data(timed.speedup("float", name)) for name in race},
        "latency": {name: as_data(timed.latency(name)) for name in race},
        "bytes": {name: len(files[name]) for name in race},
    }


def own_head(weights: str, work: Workload) -> dict[str, Any]:
    """Compare decisions among ImageNet's classes, on the photographs of validation and test."""
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    content = Exporter().source(fold(model.eval(), work.example), work.example, topology="").onnx()
    calibration = work.calibration.take(CALIBRATION).tensors()[0].numpy()
    inputs = torch.cat([work.test.tensors()[0], work.validation.tensors()[0]])
    wanted, found = answers(content, inputs), dict[str, Any]()
    for bits in (8, 7):
        for name in (PLAIN, OURS):
            row = nearness(wanted, answers(rounded(content, calibration, STEPS[name], bits), inputs))
            found[f"{bits} bits, {name}"] = row
            print(
                f"1,000 classes, {bits} bits, {name:22s} agreement {row['agreement']:.3f}  divergence {row['divergence']:.5f}"
            )
    return found


def rounded(content: bytes, calibration: np.ndarray[Any, Any], how: Rounding, bits: int) -> bytes:
    """Return the file in int8, as on a CPU that computes exactly with these bits."""
    before = onnxruntime.has_exact_int8
    onnxruntime.has_exact_int8 = lambda: bits == 8  # type: ignore[attr-defined]
    try:
        made = OnnxRuntime(how).compile(Source.of_onnx(content), calibration=calibration, float_layers=frozenset())
        return made.file(FILE)
    finally:
        onnxruntime.has_exact_int8 = before  # type: ignore[attr-defined]


def program(content: bytes) -> Program:
    return Program("onnxruntime", "int8", {FILE: content})


def answers(content: bytes, inputs: torch.Tensor) -> np.ndarray[Any, Any]:
    session = OnnxRuntime().load(program(content))
    return np.concatenate([session.run(part.numpy()) for part in inputs.split(50)])


def nearness(wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return the share of equal decisions and the mean divergence (KL, nats)."""
    logs = [torch.from_numpy(part).double().log_softmax(1) for part in (wanted, found)]
    divergence = (logs[0].exp() * (logs[0] - logs[1])).sum(1).mean()
    return {"agreement": float((wanted.argmax(1) == found.argmax(1)).mean()), "divergence": float(divergence)}


if __name__ == "__main__":
    main()
