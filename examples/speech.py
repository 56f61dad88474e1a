"""Which of three sounds is it? Samples in, three logits out: chirps that are made here, in place of a data set of speech.

    equipoise optimize examples/speech.py:make_workload --budget "drop<=1"

Making and learning them takes some ten seconds on one core; the accuracy is above 90 %. Recordings of your own:
``equipoise train conformer speech:FOLDER`` (docs/speech.md).
"""

import tempfile
from pathlib import Path

import torch

import equipoise as eq
from equipoise.generated import sounds
from equipoise.training import fit
from equipoise.verbs.train import usual_recipe
from equipoise.workloads import family, load_task


def make_workload(epochs: float = 12) -> eq.Workload:
    with tempfile.TemporaryDirectory() as folder:
        task = load_task(f"speech:{sounds.write(Path(folder))}")
    model = family("conformer").model({"width": 32, "depth": 1}, task, generator=torch.Generator().manual_seed(0))
    recipe = usual_recipe(task)
    return task.workload(fit(model, task.train, loss=task.loss, epochs=epochs, recipe=recipe, augment=task.augment).model)
