"""Policies on highway-env's highway-fast-v0, as it comes: what a teacher earns, what is left of it when it is made small.

    python benchmarks/driving.py teach --seed 0      # 0, 1 and 2; 20,000 decisions, states, 100 episodes of the test seeds
    python benchmarks/driving.py constant            # the policies that always do the same, on the same episodes
    python benchmarks/driving.py small --seed 0      # the same 100 episodes of a small net trained on a teacher's states
    python benchmarks/driving.py shrink --seed 0     # `optimize` of that teacher, then the same 100 episodes of what ships
    python benchmarks/driving.py decide --seed 0     # milliseconds of one decision, without the simulator
    python benchmarks/driving.py table               # what the result file holds

A return is the sum of the environment's own rewards over at most 30 decisions. It is read on the test seeds, which neither
training nor search sees; intervals are 95 % over episodes, and of a difference paired by seed. A policy that only brakes earns
much: crash rate, speed and the share of each action stand beside every return.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import equipoise as eq
from equipoise import runtimes
from equipoise.measure import machine
from equipoise.measure.loads import compare_loads
from equipoise.runtimes import Program
from equipoise.runtimes.export import Exporter
from equipoise.ship.artifact import Artifact
from equipoise.stats import paired_drop, quantile
from equipoise.workloads import load
from equipoise.workloads.driving import train_teacher
from equipoise.workloads.episodes import FIRST_SEEDS, Drives, Return, constant, drive
from equipoise.workloads.teacher import LEARNING, figures

RESULTS = Path(__file__).parent / "results" / "driving.json"
EPISODES = 100
STEPS = 20_000
SMALL = {"width": 32, "depth": 2}
BUDGET = "size<={bytes}B, drop<=1"
SMALLER = 4
"""Times that what ships must be smaller than the teacher's file."""
PACKAGES = ("torch", "onnxruntime", "numpy", "gymnasium", "highway-env", "stable-baselines3")


def teach(folder: Path, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = train_teacher(folder / "teacher", steps=STEPS, seed=seed)
    return {
        **told(Return(episodes=EPISODES).drives(found.model, "test")),
        "steps": STEPS,
        "learning": dict(LEARNING),
        "params": sum(value.numel() for value in found.model.parameters()),
        "seconds": time.perf_counter() - began,
        "on_validation": [
            found.drives.sentence(),
            *(f"always {name}: {one.sentence()}" for name, one in found.constants.items()),
        ],
    }


def always(folder: Path, seed: int) -> dict[str, Any]:
    seeds = range(FIRST_SEEDS["test"], FIRST_SEEDS["test"] + EPISODES)
    names = drive(constant(0), seeds[:1]).names
    return {name: told(drive(constant(number), seeds)) for number, name in enumerate(names)}


def small(folder: Path, seed: int) -> dict[str, Any]:
    done = eq.train("mlp", f"driving:{folder / 'teacher'}", SMALL, store=folder / "small", seed=seed)
    assert done.classification is not None
    return {
        **told(Return(episodes=EPISODES).drives(done.model, "test")),
        "scale": SMALL,
        "params": done.reached["params"].get(),
        "agreement": done.classification.accuracy,
    }


def shrink(folder: Path, seed: int, minutes: float) -> dict[str, Any]:
    spec = f"driving:{folder / 'teacher'}"
    work = load(spec)
    size = programs(folder)["teacher"].size_bytes
    study = eq.optimize(
        work,
        budget=BUDGET.format(bytes=size // SMALLER),
        time=60 * minutes,
        store=folder / "study",
        seed=seed,
        spec=spec,
    )
    study.export("best", out=folder / "artifact")
    kept = programs(folder)
    before, after = (Return(episodes=EPISODES).drives(answering(kept[name]), "test") for name in ("teacher", "shrunk"))
    drop = paired_drop((before.returns / 100).tolist(), (after.returns / 100).tolist())
    return {
        **told(after),
        "drop": [drop.value, drop.low, drop.high],
        "bytes": {name: program.size_bytes for name, program in kept.items()},
        "times_smaller": kept["teacher"].size_bytes / kept["shrunk"].size_bytes,
        "evaluations": len(study.evaluations),
        "minutes": minutes,
        "pick": {name: choice for name, choice in study.best.plan.choices.items() if choice},
    }


def decide(folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """One decision of each program: a state in, five numbers out; loads of all of them in shuffled rounds, one thread."""
    row = load(f"driving:{folder / 'teacher'}").example[:1].numpy()
    before = os.getloadavg()[0]
    timed = compare_loads({name: loads(program, row) for name, program in programs(folder).items()}, seconds=seconds, calls=200)
    found: dict[str, Any] = {"loads": timed.loads, "load_before_and_after": [before, os.getloadavg()[0]]}
    for name, rounds in timed.blocks.items():
        calls = [call for one in rounds for block in one for call in block]
        found[name] = {
            "p50_s": quantile(calls, 0.5),
            "p99_s": quantile(calls, 0.99),
            "worst_p99_of_a_load_s": max(quantile([call for block in one for call in block], 0.99) for one in rounds),
            "calls": len(calls),
            "wait": timed.wait[name],
        }
    return found


def loads(program: Program, row: np.ndarray[Any, Any]) -> Any:
    def fresh() -> Any:
        session, own = runtimes.get(program.runtime).load(program), row.copy()
        return lambda: session.run(own)

    return fresh


def programs(folder: Path) -> dict[str, Program]:
    """The teacher as ONNX Runtime's file, the small net and what was exported, as far as they are there."""
    spec, exporter, runtime = f"driving:{folder / 'teacher'}", Exporter(), runtimes.get("onnxruntime")
    models = {"teacher": load(spec).model}
    if (weights := folder / "small" / "model.safetensors").is_file():
        scale = ",".join(f"{name}={value}" for name, value in SMALL.items())
        models["small"] = load(f"{spec}?model=mlp:{scale}&weights={weights}").model
    example = load(spec).example
    assert isinstance(example, torch.Tensor)
    found = {name: runtime.compile(exporter.source(model, example, topology=name)) for name, model in models.items()}
    if (folder / "artifact").is_dir():
        found["shrunk"] = Artifact.load(folder / "artifact").program
    return found


def answering(program: Program) -> Any:
    session = runtimes.get(program.runtime).load(program)
    return lambda rows: torch.as_tensor(np.asarray(session.run(rows.numpy())))


def told(drives: Drives) -> dict[str, Any]:
    return {**figures(drives), "returns": [round(value, 6) for value in drives.returns.tolist()]}


def keep(what: str, seed: int, row: dict[str, Any]) -> None:
    """Put a result into the file, in place of an earlier one of the same seed."""
    held = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    held.setdefault(what, {})[str(seed)] = row | {
        "threads": torch.get_num_threads(),
        "machine": {k: v for k, v in machine.describe().items() if k in ("cpu", "cores", "flags", "memory_bytes")},
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
    }
    RESULTS.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


def table() -> None:
    held = json.loads(RESULTS.read_text())
    for what, rows in held.items():
        for seed, row in rows.items():
            policies = {n: r for n, r in row.items() if isinstance(r, dict) and "sentence" in r} or {"": row}
            for name, found in policies.items():
                reading = found.get("return", {})
                interval = f" [{reading['low']:.2f}, {reading['high']:.2f}]" if reading.get("low") is not None else ""
                print(f"{what} {seed} {name}: {found.get('sentence', json.dumps(found))}{interval}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("teach", "constant", "small", "shrink", "decide", "table"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("runs/driving"))
    parser.add_argument("--minutes", type=float, default=15.0, help="of the search")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the timing")
    given = parser.parse_args()
    if given.what == "table":
        table()
    else:
        torch.set_num_threads(1)
        place = given.store / str(given.seed)
        if given.what == "shrink":
            result = shrink(place, given.seed, given.minutes)
        elif given.what == "decide":
            result = decide(place, given.seed, given.seconds)
        else:
            result = {"teach": teach, "constant": always, "small": small}[given.what](place, given.seed)
        keep(given.what, given.seed, result)
        print(json.dumps({name: value for name, value in result.items() if name != "returns"}, indent=1))
