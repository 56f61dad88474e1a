"""A model that training left behind, with the data that it learned: a workload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from equipoise.workloads.base import Workload
from equipoise.workloads.families import Family
from equipoise.workloads.spec import load_sized
from equipoise.workloads.task import Task
from equipoise.workloads.weights import load_weights, read_weights


def learned(task: Callable[[Family], Task], model: str, weights: Path) -> Workload:
    """Return the workload of a task and of a family's model with the given weights.

    Args:
        task: Makes the task that a family's models learned.
        model: ``FAMILY``, or ``FAMILY:width=16,depth=8``.
        weights: State dict of it.
    Raises:
        InputError: The weights cannot be read or are not of this model, or there is no such family or scale.
    """
    tensors = read_weights(weights)  # first: it is quick
    family, scale = load_sized(model)
    made = family.prepared(task(family))
    built = family.model(scale or {}, made, generator=torch.Generator())
    load_weights(built, tensors, name=f"weights {weights}", remedy=f"Give what training {model} wrote: model.safetensors.")
    return made.workload(built)
