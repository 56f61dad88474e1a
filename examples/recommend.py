"""What does a user take next? A generated shop, a model of two towers trained in seconds, and the workload of both.

    python examples/recommend.py shop.csv                        # writes the shop
    equipoise optimize examples/recommend.py:make_workload --budget "drop<=1" --time 60s

Real data are a file of the same form: ``equipoise train twotower recommend:FILE`` (docs/recommend.md).
"""

import random
import sys
import tempfile
from pathlib import Path

import torch

import equipoise as eq
from equipoise.training import Recipe, fit
from equipoise.workloads import load_family, load_task

TASTES, EACH = 5, 8


def write_shop(file: Path, users: int = 400) -> Path:
    """Users of five tastes; each takes 5 to 9 things, nine in ten of the own taste and the first of it most often."""
    draw, lines = random.Random(0), ["user,item,time"]
    for user in range(users):
        own, taken = draw.randrange(TASTES), []
        for day in range(draw.randint(5, 9)):
            taste = own if draw.random() < 0.9 else draw.randrange(TASTES)
            left = [f"{taste}-{n}" for n in range(EACH) if f"{taste}-{n}" not in taken]
            if left:
                taken.append(draw.choices(left, [1 / (n + 1) for n in range(len(left))])[0])
                lines.append(f"u{user},{taken[-1]},{86_400 * day + user}")
    file.write_text("\n".join(lines) + "\n")
    return file


def make_workload() -> eq.Workload:
    with tempfile.TemporaryDirectory() as folder:
        task = load_task(f"recommend:{write_shop(Path(folder) / 'shop.csv')}?length=16")
    model = load_family("twotower").model({"width": 32}, task, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(lr=1e-2, batch=64, weight_decay=0.01)
    model = fit(model, task.train, loss=task.loss, epochs=6, recipe=recipe, augment=task.augment).model
    return task.workload(model)


if __name__ == "__main__":
    write_shop(Path(sys.argv[1]))
