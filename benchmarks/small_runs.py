"""What a small run learns by each optimizer: the loss after equally many samples, each at its best learning rate.

    python benchmarks/small_runs.py cifar --data CIFAR.zip    # 12 minutes on one core
    python benchmarks/small_runs.py text --data BOOK.txt      # 5 minutes on two cores

The recipe of the advisor's small runs, its optimizer and what goes with it exchanged. Rates are a factor of 2 apart and go on
while the best is at an end; the best is run again with other weights and another order of the samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from equipoise.measure import machine
from equipoise.sizing.costs import named, positions
from equipoise.sizing.small_runs import in_quick_precision, recipe_for, step_seconds
from equipoise.training import Recipe, fit
from equipoise.workloads import Task, load_task
from equipoise.workloads.families import Family, Scale, family

SETS = {
    "cifar": ("cnn", "cifar10:{}", 12_000, ({"width": 8}, {"width": 32})),
    "text": ("gpt", "text:{}?context=64", 400_000, ({"width": 32, "depth": 2}, {"width": 96, "depth": 4})),
}
WAYS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"optimizer": "adamw", "lr": 4e-3},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4},
}
SEEDS = (0, 1, 2)
RESULT = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=tuple(SETS))
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    name, spec, samples, scales = SETS[args.set]
    task, kind = load_task(spec.format(args.data)), family(name)
    usual = in_quick_precision(recipe_for(task), step_seconds(recipe_for(task), kind, task))
    rows = []
    for values in scales:
        for way, changes in WAYS.items():
            row = raced(kind, task, kind.scale(**values), replace(usual, **changes), samples)
            rows.append({"scale": values, "way": way, **row})
            told = f"{statistics.mean(row['losses']):.4f} [{min(row['losses']):.4f}, {max(row['losses']):.4f}]"
            print(
                f"{named(values)}: {way} at {row['lr']:g}: {told}, n = {len(row['losses'])}, {row['step_ms']:.1f} ms a step",
                flush=True,
            )
    found = {
        "what": "validation loss after equally many samples, each optimizer at its best rate",
        "set": args.set,
        "samples": samples,
        "batch": usual.batch,
        "precision": usual.precision,
        "rows": rows,
        "threads": torch.get_num_threads(),
        "machine": machine.describe(),
    }
    (RESULT / f"small_runs_{args.set}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def raced(kind: Family, task: Task, scale: Scale, recipe: Recipe, samples: int) -> dict[str, Any]:
    """The losses of every seed at the rate that is best on the first."""
    tried: dict[float, tuple[float, float]] = {}

    def loss(lr: float) -> float:
        if lr not in tried:
            tried[lr] = once(kind, task, scale, replace(recipe, lr=lr), samples, SEEDS[0])
        return tried[lr][0]

    best = recipe.lr
    while (found := min((best / 2, best, best * 2), key=loss)) != best:
        best = found
    again = [once(kind, task, scale, replace(recipe, lr=best), samples, seed)[0] for seed in SEEDS[1:]]
    rates = {str(lr): value for lr, (value, _) in sorted(tried.items())}
    return {"lr": best, "losses": [loss(best), *again], "rates": rates, "step_ms": 1e3 * tried[best][1]}


def once(kind: Family, task: Task, scale: Scale, recipe: Recipe, samples: int, seed: int) -> tuple[float, float]:
    """Validation loss at the end, and seconds of a step."""
    model = kind.model(scale, task, generator=torch.Generator().manual_seed(seed))
    steps = round(samples / (recipe.batch * positions(task)))
    done = fit(
        model,
        task.train,
        loss=task.loss,
        steps=steps,
        recipe=recipe,
        augment=task.augment,
        validation=task.validation,
        metric=task.metric,
        evaluate_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    )
    return done.curve[-1].validation_loss, done.seconds / steps


if __name__ == "__main__":
    main()
