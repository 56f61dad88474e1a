"""What a call may be given in place of a workload, a family or a task: its name, or what it is made of."""

from __future__ import annotations

from typing import Any

from torch import nn

from equipoise.errors import must_be
from equipoise.workloads.base import Workload
from equipoise.workloads.families import Family
from equipoise.workloads.families.pretrained import pretrained
from equipoise.workloads.spec import load, load_family, load_task
from equipoise.workloads.task import Task, task_of


def as_family(given: Any) -> Family:
    """Return a family as it is, by its name, or made of a function of a scale or of a trained model.

    Raises:
        InputError: Nothing of these.

    Example:
        >>> as_family("mlp").name, as_family(as_family("mlp")).name
        ('mlp', 'mlp')
    """
    if isinstance(given, Family):
        return given
    if isinstance(given, str):
        return load_family(given)
    if isinstance(given, nn.Module):
        return pretrained(given)
    if callable(given) and not isinstance(given, type):
        return Family.of(given)
    remedy = "Write for example 'mlp', or eq.family('mlp')."
    wanted = "a Family, its name, a function of a scale, or a trained model"
    raise must_be("family", wanted, type(given).__name__, remedy)


def as_task(given: Any, family: Family | None = None) -> Task:
    """Return a task as it is, by its name (then as `family` reads it), or that of a workload.

    Raises:
        InputError: Nothing of these.
    """
    if isinstance(given, Task):
        return given
    if isinstance(given, str):
        return load_task(given, family=family)
    if isinstance(given, Workload):
        return task_of(given)
    raise must_be(
        "task", "a Task, a Workload, or a name", type(given).__name__, "Write for example 'digits', or eq.Task.of(...)."
    )


def as_workload(given: Any) -> Workload:
    """Return a workload as it is, or by its name.

    Raises:
        InputError: Nothing of these.
    """
    if isinstance(given, Workload):
        return given
    if isinstance(given, str):
        return load(given)
    remedy = "Write eq.Workload(model=..., train=..., test=..., metric=...), or a name such as 'digits'."
    raise must_be("work", "a Workload, or its name", type(given).__name__, remedy)
