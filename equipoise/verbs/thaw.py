"""Transfer in two stages: the last layer on frozen features, then the whole model, the better of the two kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise.batch import Inputs, call
from equipoise.compress.fold import pairs
from equipoise.compress.trace import record
from equipoise.errors import EquipoiseError
from equipoise.records import Reading, measured
from equipoise.study.files import write_atomic
from equipoise.training import Recipe, Trained
from equipoise.training.distribution import Distribution
from equipoise.training.frozen import Fitted, fit_head, read_fitted
from equipoise.training.progress import Progress
from equipoise.training.validation import Validation
from equipoise.workloads import Task
from equipoise.workloads.families.pretrained import head_of

THAWED = Recipe(
    lr=1e-4,
    schedule="onecycle",
    rise_share=0.1,
    weight_decay=0.01,
    second_beta=0.999,
    clip=1.0,
    batch=32,
    frozen_norm=True,
    patience=8,
)
"""For the second stage: small rates, raised over its first tenth; BatchNorm keeps the statistics that it came with, which a few
thousand images in small batches would only blur; the best weights are kept, and it ends after eight looks without better ones:
the first looks, at the highest rate, are often worse than what it began with."""
FROZEN_SHARE = 0.4
"""Most of a run's seconds that the first stage may take to read training samples."""
FILE = "frozen.safetensors"
PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights have the output channels first."""
SAME = 1e-3
"""Largest difference of answers that are the same, as a share of the largest."""


def frozen_start(
    model: nn.Module,
    task: Task,
    folder: Path,
    *,
    where: Distribution,
    seconds: float | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Fitted:
    """Return `model` with its last layer fitted to the task, from the folder of the run where that was done before.

    Args:
        model: As the family built it.
        folder: Of the run.
        where: Where to compute; rank 0 does, and writes what the others wait for.
        seconds: Of the whole run; None: as long as it takes.
        on_step: Called with the `Progress` of each batch.
    Raises:
        InputError: No linear layer gives the model's answer.
    """
    head, limit = head_of(model, task.example), None if seconds is None else FROZEN_SHARE * seconds
    found = read_fitted(model, head, folder / FILE)

    def beside_others(progress: Progress) -> None:
        where.agree(0.0)  # those that wait are told: a silent rank is taken for dead
        if on_step is not None:
            on_step(progress)

    if found is None and where.rank == 0:
        found = fit_head(
            model,
            head,
            task.train,
            task.validation,
            loss=task.loss,
            metric=task.metric.of_outputs,
            seconds=limit,
            device=where.device,
            on_step=beside_others,
        )
        write_atomic(folder / FILE, found.packed(head))
    while where.agree(1.0) < 1.0:
        pass
    found = found or read_fitted(model, head, folder / FILE)
    if found is None:
        raise EquipoiseError(f"{folder / FILE} must be there for every process; got none. Let all of them see one folder.")
    return found


def rescaled(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a copy with the same answers in evaluation mode whose BatchNorm layers have variances of 1.

    Each hands its scale to the convolution or linear layer before it. A step of AdamW moves every weight by about the rate.
    With the statistics held still, a layer of small outputs (in MobileNetV2 a quarter of the channels have deviations below
    0.024) makes of that a step forty times larger, which ruins what was learned. The tensors keep their names.

    Args:
        model: Left as it is.
        example: A batch (N, ...); it shows which layer feeds which BatchNorm, and that the answers are the same.
    """
    made = copy.deepcopy(model).eval()
    for layer, norm in pairs(made, record(made, example)):
        before: Any = made.get_submodule(layer)
        after: Any = made.get_submodule(norm)
        if type(before) not in PLAIN:
            continue
        with torch.no_grad():
            scale = (after.running_var + after.eps).rsqrt()  # (C,)
            before.weight.mul_(scale.reshape(-1, *[1] * (before.weight.ndim - 1)))
            if before.bias is not None:
                before.bias.mul_(scale)
            after.running_mean.mul_(scale)
            after.running_var.fill_(1 - after.eps)
    with torch.no_grad():
        wanted, found = (call(net, example) for net in (copy.deepcopy(model).eval(), made))
    return made if bool((found - wanted).abs().max() <= SAME * wanted.abs().max()) else model


def seconds_left(seconds: float, start: Fitted, task: Task, *, test: bool) -> float:
    """Return the seconds that the second stage has: without those of the first, and of the looks after the last step."""
    looks = 2 * len(task.validation) if not test else len(task.validation) + len(task.test)
    return max(seconds - start.point.seconds - looks * start.sample_s, 1e-3)


def better_of(done: Trained, start: Fitted, task: Task, recipe: Recipe) -> tuple[Trained, tuple[str, ...]]:
    """Return the run with the better of its model and that of the first stage, and what is to be said of it.

    Without patience a run returns its last weights, whatever the validation split says of them.
    """
    watched = Validation(task.validation, task.loss, 1, task.metric.of_outputs)
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
