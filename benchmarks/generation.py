"""A character GPT trained by `equipoise train`, its weights in fewer bits: bits per character, bytes, prefill and decode.

    python benchmarks/generation.py train small --text TEXT.txt     # large; 5 and 9 minutes of one core
    python benchmarks/generation.py race small --text TEXT.txt      # 2 minutes; ends in the result file

The text may be any of some hundred kilobytes; ``pydoc_data/topics.py`` of Python's own library (465 KB) was taken. Every
product and table of a contender is held in one scheme (a table has no dynamic form: "8-weights" beside it), rounded with the
second moments of 128 windows of the training split. Bits per character are of the whole validation split, read from ONNX
Runtime's outputs, request by request where inputs are rounded in the range of a request. Prefill is a whole window, decode one
token after all others but one, batch 1, one thread; the loads of the contenders are visited in shuffled rounds, and each ratio
is to floats in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from equipoise import runtimes
from equipoise.compress.rounding import on_grid
from equipoise.measure import machine
from equipoise.measure.loads import compare_loads
from equipoise.road.generation import Prompt
from equipoise.runtimes import Program, Target, requested
from equipoise.runtimes.cpu import has_exact_int8
from equipoise.runtimes.export import Exporter
from equipoise.stats import Interval
from equipoise.verbs.train import train
from equipoise.workloads import Task, load_task, predict
from equipoise.workloads.families.transformer import GPT

RESULTS = Path(__file__).parent / "results" / "generation.json"
CONTEXT = 128
SIZES = {"small": ({"width": 128, "depth": 5, "heads": 4}, 300.0), "large": ({"width": 256, "depth": 6, "heads": 8}, 540.0)}
"""Scale, and seconds of training."""
SCHEMES = ("8-weights", "4-weights", "8-dynamic")
CALIBRATION = 128


def task_of(text: Path) -> Task:
    return load_task(f"text:{text}?context={CONTEXT}")


def programs(model: torch.nn.Module, task: Task) -> dict[str, Program]:
    """The model in floats and in each scheme."""
    inputs = task.train.take(CALIBRATION).tensors()[0]
    assert isinstance(inputs, torch.Tensor)
    exporter, runtime = Exporter(), runtimes.get("onnxruntime")
    found = {"fp32": runtime.compile(exporter.source(model, inputs[:4], topology="gpt"))}
    products = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    for scheme in SCHEMES:
        table = "8-weights" if scheme == "8-dynamic" else scheme
        held = {"embed.token": table, **dict.fromkeys(products, scheme)}
        rounded = on_grid(model, held, exact=has_exact_int8(), calibration=inputs)
        found[scheme] = runtime.compile(exporter.source(rounded, inputs[:4], topology="gpt"), schemes=held)
    return found


def score(program: Program, task: Task) -> float:
    """Bits per character of the validation split."""
    session = runtimes.get("onnxruntime").load(program)
    batch = requested(program, 1, 16)
    outputs, targets = predict(lambda few: session.run(few.numpy()), task.validation, batch=batch)
    return task.metric.score(outputs, targets)


def race(name: str, text: Path, store: Path, *, seconds: float) -> dict[str, Any]:
    task = task_of(text)
    model = GPT.model(GPT.scale(**SIZES[name][0]), task, generator=torch.Generator().manual_seed(0)).eval()
    model.load_state_dict(safetensors.torch.load_file(store / name / "model.safetensors"))
    contenders = programs(model, task)
    rows = task.validation.take(1).tensors()[0].numpy()
    target, before = Target("onnxruntime"), os.getloadavg()[0]
    found: dict[str, Any] = {
        key: {"size_bytes": p.size_bytes, "bits_per_character": score(p, task)} for key, p in contenders.items()
    }
    for word, read in (("prefill", 0), ("decode", CONTEXT - 1)):
        loads = {key: Prompt(program, target, rows, read).load for key, program in contenders.items()}
        timed = compare_loads(loads, seconds=seconds)
        for key, row in found.items():
            row[f"{word}_s"] = timed.latency(key).get()
            row[f"{word}_times_faster"] = told(timed.speedup("fp32", key))
    for row in found.values():
        row["decode_per_s"] = 1 / row["decode_s"]
        row["share_of_bytes"] = row["size_bytes"] / found["fp32"]["size_bytes"]
        row["more_bits"] = row["bits_per_character"] - found["fp32"]["bits_per_character"]
    return {
        "params": sum(weight.numel() for weight in model.parameters()),
        "scale": SIZES[name][0],
        "characters": text.stat().st_size,
        "context": CONTEXT,
        "contenders": found,
        "load_before_and_after": [before, os.getloadavg()[0]],
        "machine": machine.describe(),
        "versions": {package: version(package) for package in ("torch", "onnxruntime")} | {"python": platform.python_version()},
    }


def told(ratio: Interval) -> list[float]:
    return [ratio.value, ratio.low, ratio.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "race"))
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("runs/generation"))
    parser.add_argument("--seconds", type=float, default=30.0)
    args = parser.parse_args()
    if args.what == "train":
        scale, seconds = SIZES[args.size]
        print(train("gpt", task_of(args.text), scale, store=args.store / args.size, seconds=seconds).sentence())
        return
    row = race(args.size, args.text, args.store, seconds=args.seconds)
    for name, found in row["contenders"].items():
        print(name, found)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, args.size: row}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
