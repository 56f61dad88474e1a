"""Digits shared out over ten clients: beside central training, with dying and lying clients, with clients of different scale.

    python benchmarks/federated.py digits --seeds 3     # all of it, about an hour of one core; --only mixed for a part
    python benchmarks/federated.py cifar --data CIFAR   # the speed family, 20 rounds; 45 minutes of one core (--central: 90)

The partition is Dirichlet(0.5) over the labels. The test split is read once, at the end of each run; points of accuracy.
Flower publishes for CIFAR-10, 10 clients, 20 rounds: FedAvg 63.4, SCAFFOLD 68.0, of another model and partition.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from equipoise.federated import Terms
from equipoise.federated.federate import federate, usual
from equipoise.federated.terms import Faults
from equipoise.measure import machine
from equipoise.verbs.train import recipe_of
from equipoise.workloads import load_family, load_task

RESULTS = Path(__file__).parent / "results"
DIGITS = {"width": 16, "depth": 3}
SPEED = {"width": 16}
RECIPE = "schedule=cosine, lr=0.05, batch=16"
BASE: dict[str, Any] = {"clients": 10, "alpha": 0.5, "rounds": 30, "epochs": 3.0}
RATIOS = (1.0, 0.5, 0.25)
RUNS: dict[str, dict[str, Any]] = {
    "fedavg": {"central": True},
    "dying": {"faults": Faults(die=0.3)},
    "poisoned fedavg": {"faults": Faults(sign=2)},
    "poisoned median": {"strategy": "median", "faults": Faults(sign=2)},
    "poisoned trimmed": {"strategy": "trimmed:share=0.2", "faults": Faults(sign=2)},
    "poisoned centered": {"strategy": "centered", "faults": Faults(sign=2)},
    "centered": {"strategy": "centered"},
    "eight bits": {"bits": 8},
    "mixed": {"scales": RATIOS},
    "alone 1": {"scales": (1.0, 0.0, 0.0)},
    "alone 0.5": {"scales": (0.5, 0.5, 0.0)},
    "alone 0.25": {"scales": (0.25,)},
}
"""What is changed in the base; alone at a scale are all clients that can hold it."""


def digits(seeds: int, only: str, store: Path) -> None:
    family, task = load_family("cnn"), load_task("digits")
    for name, given in RUNS.items():
        for seed in range(seeds if only in name else 0):
            terms = Terms(**{**BASE, **{k: v for k, v in given.items() if k != "central"}, "seed": seed})
            recipe = recipe_of(RECIPE, usual(task, family, terms))
            folder = store / f"{name.replace(' ', '-')}-{seed}"
            central = bool(given.get("central"))
            found = federate(family, task, DIGITS, store=folder, terms=terms, recipe=recipe, central=central, test=True)
            row = {"seed": seed, **{key: reading.get() for key, reading in found.reached.items()}}
            row["counted"] = mean(len(one.counted) for one in found.rounds)
            keep("federated.json", name, row)
            print(name, seed, {key: round(value, 2) for key, value in row.items() if "quality" in key}, flush=True)


def cifar(data: str, store: Path, strategy: str, central: bool) -> None:
    family, task = load_family("speed"), load_task(f"cifar10:{data}")
    terms = Terms(clients=10, alpha=0.5, rounds=20, epochs=1.0, strategy=strategy)
    found = federate(family, task, SPEED, store=store / f"cifar-{strategy}", terms=terms, central=central, test=True)
    keep("federated_cifar.json", strategy, {"seed": 0, **{key: reading.get() for key, reading in found.reached.items()}})
    print(found)


def keep(file: str, name: str, row: dict[str, float]) -> None:
    """Put a run into the result file, in place of an earlier one of the same seed."""
    path = RESULTS / file
    held = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    rows = [r for r in held["runs"].get(name, []) if r["seed"] != row["seed"]]
    held["runs"][name] = sorted([*rows, row], key=lambda r: r["seed"])
    held["terms"] = {**BASE, "recipe": RECIPE, "scale": DIGITS} if file == "federated.json" else {"scale": SPEED}
    held["machine"] = {k: v for k, v in machine.describe().items() if k in ("cpu", "cores", "flags", "memory_bytes")}
    held["threads"] = torch.get_num_threads()
    held["versions"] = {p: version(p) for p in ("torch", "numpy")} | {"python": platform.python_version()}
    path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "cifar"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="runs whose name has this")
    parser.add_argument("--data", default="")
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--central", action="store_true", help="CIFAR-10: train on all of it in one place as well")
    parser.add_argument("--store", type=Path, default=Path("runs/federated"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "digits":
        digits(asked.seeds, asked.only, asked.store)
    else:
        cifar(asked.data, asked.store, asked.strategy, asked.central)
