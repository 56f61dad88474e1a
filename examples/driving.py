"""A teacher learns to drive by trial and error; a model of a tenth of its size learns from it, and is judged by what it earns.

    python examples/driving.py

The road is `two_lanes.py` beside this file, of which 1,000 decisions are enough; highway-env's takes 20,000 (docs/driving.md).
Takes about fifteen seconds; needs ``pip install "equipoise[driving]"``.
"""

from pathlib import Path

import equipoise as eq
from equipoise.workloads.driving import train_teacher
from equipoise.workloads.teacher import Taught

LEARNING = {"learning_starts": 100, "exploration_fraction": 0.6, "learning_rate": 2e-3, "target_update_interval": 50}


def teach(folder: str | Path = "runs/driving/teacher") -> Taught:
    return train_teacher(
        folder,
        environment="two_lanes:TwoLanes-v0",
        steps=1000,
        states=600,
        held=100,
        hidden=(64, 64),
        learning=LEARNING,
    )


def main() -> None:
    taught = teach()
    for action, drives in taught.constants.items():
        print(f"always {action}: {drives.sentence()}")
    print(f"teacher: {taught.drives.sentence()}")
    small = eq.train("mlp", f"driving:{taught.folder}", {"width": 16}, epochs=30, store="runs/driving/small")
    params = sum(value.numel() for value in taught.model.parameters())
    print(f"{small.reached['params'].get():.0f} of {params} weights: return {small.reached['quality'].get():.2f}")


if __name__ == "__main__":
    main()
