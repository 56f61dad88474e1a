"""An early exit on real models: how many inputs leave at half a point, and what that gains in the mean latency over them.

    python benchmarks/early_exit.py "cifar10:CIFAR.zip?weights=W.safetensors&holdout=3000" --after layer2.2 layer3.0 layer3.1
    HF_HUB_OFFLINE=1 python benchmarks/early_exit.py "sentiment:SST2?model=FOLDER&length=32" --after encoder.encoder.layer.3

The exit is fitted on --data inputs of the training split, its threshold chosen on half of validation; accuracy is then read on
the other half, which nothing before has seen (with the standard error of the paired difference), and so are 200 inputs to be
timed: ONNX Runtime, fp32, batch 1, CPU time of one thread; an input counts by the lower quartile of five visits, in each of
five loads. Result: results/early_exit.json. Some minutes a part.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import photographs
import torch

import equipoise as eq
from equipoise.batch import size, take
from equipoise.measure import machine
from equipoise.workloads import load

RESULTS = Path(__file__).parent / "results" / "early_exit.json"
TIMED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a workload of class scores")
    parser.add_argument("--after", nargs="+", required=True, help="names of parts")
    parser.add_argument("--data", type=int, default=1000, help="inputs of train (%(default)s)")
    parser.add_argument("--samples", type=int, default=2000, help="of validation, half of them each (%(default)s)")
    parser.add_argument("--drop", type=float, default=0.5, help="points on the half that it is chosen on (%(default)s)")
    args = parser.parse_args()
    photographs.declare_operators()
    torch.set_num_threads(1)
    work = load(args.spec)
    data = work.train.take(args.data).tensors()[0]
    inputs, targets = work.validation.take(args.samples).tensors()
    half = size(targets) // 2
    dev, unseen = (take(inputs, slice(half)), targets[:half]), take(inputs, slice(half, None))
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for after in args.after:
        early = eq.early_exit(work.model, data, dev=dev, after=after, drop=args.drop)
        both = torch.cat(
            [early.model(part) if isinstance(part, torch.Tensor) else early.model(**part) for part in _parts(unseen)]
        )
        whole, own = both.detach().chunk(2, 1)
        leave = own.softmax(1).amax(1) >= early.threshold
        right = [(scores.argmax(1) == targets[half:]).numpy() for scores in (whole, torch.where(leave[:, None], own, whole))]
        lost = 100.0 * (right[0].astype(float) - right[1])
        slow, quick, faster = early.pace(take(unseen, slice(TIMED)), clock=time.thread_time)
        row = {
            "leaves": float(leave.float().mean()),
            "leaves_of_timed": float(leave[:TIMED].float().mean()),
            "accuracy": 100 * float(right[0].mean()),
            "drop": float(lost.mean()),
            "drop_standard_error": float(lost.std() / np.sqrt(len(lost))),
            "dev": {"leaves": early.leaves, "drop": early.drop},
            "n": len(lost),
            "mean_s": [slow.mean.get(), quick.mean.get()],
            "p99_s": [slow.p99.get(), quick.p99.get()],
            "mean_times_faster": [faster.value, faster.low, faster.high],
            "bytes": early.program.size_bytes,
            "machine": machine.describe(),
            "versions": {package: version(package) for package in ("torch", "onnxruntime")},
        }
        print(after, json.dumps({key: value for key, value in row.items() if key not in ("machine", "versions")}), flush=True)
        results.setdefault(work.name, {})[after] = row
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _parts(inputs: object) -> list[object]:
    return [take(inputs, slice(begin, begin + 100)) for begin in range(0, size(inputs), 100)]


if __name__ == "__main__":
    main()
