"""What does a user take next? A made-up shop, a model of two towers trained in seconds, and the workload of both.

    equipoise optimize examples/recommend.py:make_workload --budget "drop<=1" --time 60s

Real data are a file of the same form: ``equipoise train twotower recommend:FILE`` (docs/recommend.md).
"""

import tempfile
from pathlib import Path

import torch

import equipoise as eq
from equipoise.generated import shop
from equipoise.training import Recipe, fit
from equipoise.workloads import load_family, load_task


def make_workload() -> eq.Workload:
    with tempfile.TemporaryDirectory() as folder:
        task = load_task(f"recommend:{shop.write(Path(folder))}?length=16")
    model = load_family("twotower").model({"width": 32}, task, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(lr=1e-2, batch=64, weight_decay=0.01)
    model = fit(model, task.train, loss=task.loss, epochs=6, recipe=recipe, augment=task.augment).model
    return task.workload(model)
