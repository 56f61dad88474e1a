"""A teacher learns to drive by trial and error; a model of a tenth of its size learns from it, and is judged by what it earns.

    python examples/driving.py

The made-up road of `equipoise.generated.two_lanes` is learned from 1,000 decisions; highway-env's takes 20,000
(docs/driving.md). Takes about fifteen seconds; needs ``pip install "equipoise[driving]"``.
"""

import json

import equipoise as eq
from equipoise.workloads.driving import small_teacher
from equipoise.workloads.teacher import ABOUT


def main() -> None:
    folder = small_teacher("runs/driving/teacher")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    for action, drives in about["constant"].items():
        print(f"always {action}: {drives['sentence']}")
    print(f"teacher: {about['teacher']['sentence']}")
    small = eq.train("mlp", f"driving:{folder}", {"width": 16}, epochs=30, store="runs/driving/small")
    print(f"{small.reached['params'].get():.0f} weights: return {small.reached['quality'].get():.2f}")


if __name__ == "__main__":
    main()
