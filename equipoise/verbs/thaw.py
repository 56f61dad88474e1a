"""Transfer in two stages: the last layer on frozen features, then the whole model, the better of the two kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from equipoise.records import Reading, measured
from equipoise.study.store import write_atomic
from equipoise.training import Recipe, Trained
from equipoise.training.frozen import Fitted, fit_head, read_fitted
from equipoise.training.progress import Progress
from equipoise.training.validation import Validation
from equipoise.workloads import Task
from equipoise.workloads.families.pretrained import head_of

THAWED = Recipe(
    lr=3e-4,
    schedule="onecycle",
    rise_share=0.1,
    weight_decay=0.01,
    second_beta=0.999,
    clip=1.0,
    batch=32,
    frozen_norm=True,
    patience=4,
)
"""For the second stage: small rates, raised over its first tenth; BatchNorm keeps the statistics that it came with, which a few
thousand images in small batches would only blur; it ends after four looks without a better one."""
FROZEN_SHARE = 0.4
"""Most of a run's seconds that the first stage may take to read training samples."""
FILE = "frozen.safetensors"


def frozen_start(
    model: nn.Module,
    task: Task,
    folder: Path,
    *,
    seconds: float | None,
    device: torch.device,
    writes: bool,
    on_step: Callable[[Progress], None] | None,
) -> Fitted:
    """Return `model` with its last layer fitted to the task, from the folder of the run where that was done before.

    Args:
        model: As the family built it.
        folder: Of the run.
        seconds: Of the whole run; None: as long as it takes.
        device: Where to compute.
        writes: Whether this process writes to the folder.
        on_step: Called with the `Progress` of each batch.
    Raises:
        InputError: No linear layer gives the model's answer.
    """
    head = head_of(model, task.example)
    if (found := read_fitted(model, head, folder / FILE)) is not None:
        return found
    found = fit_head(
        model,
        head,
        task.train,
        task.validation,
        loss=task.loss,
        metric=task.metric,
        seconds=None if seconds is None else FROZEN_SHARE * seconds,
        device=device,
        on_step=on_step,
    )
    if writes:
        write_atomic(folder / FILE, found.packed(head))
    return found


def seconds_left(seconds: float, start: Fitted, task: Task, *, test: bool) -> float:
    """Return the seconds that the second stage has: without those of the first, and of the looks after the last step."""
    looks = 2 * len(task.validation) if not test else len(task.validation) + len(task.test)
    return max(seconds - start.point.seconds - looks * start.sample_s, 1e-3)


def better_of(done: Trained, start: Fitted, task: Task, recipe: Recipe) -> tuple[Trained, tuple[str, ...]]:
    """Return the run with the better of its model and that of the first stage, and what is to be said of it.

    Without patience a run returns its last weights, whatever the validation split says of them.
    """
    watched = Validation(task.validation, task.loss, 1, task.metric)
    if recipe.patience is None or done.best is None or watched.better(done.best, start.point):
        return done, ()
    note = "training all layers brought no more on validation data than the last layer alone, whose model is kept"
    return replace(done, model=start.model, best=start.point), (note,)


def reached_frozen(start: Fitted, task: Task) -> dict[str, Reading]:
    """Return what the first stage reached and took, by name."""
    note = f"{task.metric.name}, validation split; the last layer alone, fitted on {start.samples} samples"
    found = {"frozen_s": measured(start.point.seconds, "s", note="features once, then the last layer")}
    if start.point.validation_metric is not None:
        value = start.point.validation_metric
        found["frozen_quality"] = measured(value, task.metric.unit, n=len(task.validation), note=note)
    return found
