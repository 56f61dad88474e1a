"""Driving as a task: the states that a trained policy meets, its actions as labels, the return of whole episodes as quality.

A teacher learns by trial and error, once (`train_teacher`). What it met and did is a task like any other: families of every
scale learn its actions, and the search shrinks it. How good they are is not how often they agree with it but what they earn
when they drive themselves; see `episodes.Return`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from equipoise.errors import InputError, must_be
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.episodes import EPISODES, Return
from equipoise.workloads.learned import learned
from equipoise.workloads.models import mlp
from equipoise.workloads.task import Task
from equipoise.workloads.teacher import ABOUT, FORMAT, STATES, WEIGHTS, Taught, train_teacher
from equipoise.workloads.weights import load_weights, read_weights

__all__ = ["Taught", "driving_task", "driving_workload", "small_teacher", "train_teacher"]

AGAIN = "Write it by equipoise.workloads.driving.train_teacher (docs/driving.md)."


def driving_task(path: Path, *, episodes: int = EPISODES, name: str = "driving") -> Task:
    """Return the task of driving as a teacher does: observations (N, D), its actions (N,) as labels, the return as quality.

    Args:
        path: Folder that `train_teacher` wrote.
        episodes: By whose mean return a model is judged, on either of validation and test. One of highway-env takes a second.
        name: Of the task.
    Raises:
        InputError: The folder does not hold states and actions of one kind.
    """
    if episodes < 2:
        raise must_be("episodes", "at least 2", episodes, f"Write for example driving:FOLDER?episodes={EPISODES}.")
    about, tensors = _about(path), read_weights(path / STATES)
    splits = {role: _split(role, tensors, about, path) for role in ("train", "validation", "test")}
    size, labels = splits["train"].tensors()[0].shape[1], tuple(about["actions"])
    return Task.of(
        train=replace(splits["train"], notes=_notes(about)),
        validation=splits["validation"],
        test=splits["test"],
        metric=Return(about["environment"], episodes, size),
        outputs=len(labels),
        labels=labels,
        files={ABOUT: (path / ABOUT).read_bytes()},
        name=name,
    )


def driving_workload(
    path: Path, *, episodes: int = EPISODES, model: str = "", weights: Path | None = None, name: str = "driving"
) -> Workload:
    """Return the workload of a folder's teacher, or of a model that learned from it.

    Args:
        path, episodes, name: As of `driving_task`.
        model: ``FAMILY``, or ``FAMILY:width=16,depth=2``, of which `weights` are; empty is the teacher.
        weights: State dict of that model.
    Raises:
        InputError: The folder or the weights cannot be used.
    """
    if bool(model) != (weights is not None):
        raise must_be("model and weights", "given together", (model, weights), "Leave both out for the teacher itself.")
    task = partial(driving_task, path, episodes=episodes, name=name)
    if weights is not None:
        return learned(lambda family: task(), model, weights)
    made = task()
    net = mlp(*made.sample, *_about(path)["hidden"], made.outputs)
    load_weights(net, read_weights(path / WEIGHTS), name=f"weights {path / WEIGHTS}", remedy=AGAIN)
    return made.workload(net)


def _about(path: Path) -> dict[str, Any]:
    """Read what the folder says of itself."""
    file = path / ABOUT
    if not file.is_file():
        raise must_be("driving", f"a folder with {STATES} and {ABOUT}", str(path), AGAIN)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        told = found["format"], found["environment"], found["actions"], found["hidden"], found["teacher"], found["constant"]
    except (ValueError, LookupError, TypeError) as error:
        raise must_be(str(file), "as train_teacher writes it", f"{type(error).__name__}: {error}", AGAIN) from error
    if told[0] != FORMAT:
        raise must_be(f"{file} format", str(FORMAT), told[0], AGAIN)
    return dict(found)


def _split(role: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> Split:
    states, actions = (tensors.get(f"{role}.{what}") for what in ("states", "actions"))
    if states is None or actions is None or states.ndim != 2 or actions.shape != states.shape[:1]:
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(tensors.items()))
        raise must_be(str(path / STATES), f"states (N, D) and actions (N,) for {role}", found, AGAIN)
    if len(actions) and not 0 <= int(actions.min()) <= int(actions.max()) < len(about["actions"]):
        raise InputError(
            f"{path / STATES} {role}.actions must be numbers of the {len(about['actions'])} actions; "
            f"got {int(actions.min())} to {int(actions.max())}. {AGAIN}"
        )
    return Split.of((states, actions), name=role)


def _notes(about: Mapping[str, Any]) -> tuple[str, ...]:
    """What a report tells beside the return: a policy that only brakes earns much too, and is to be seen as such."""
    teacher, others = about["teacher"], about["constant"]
    earned = [f"{name} {found['return']['value']:.2f}{_crashed(found)}" for name, found in others.items()]
    where = f"{about['environment']}, {teacher['return']['n']} episodes of the validation seeds"
    return (f"{where}: the teacher: {teacher['sentence']}. Policies that always do the same: {', '.join(earned)}",)


def _crashed(found: Mapping[str, Any]) -> str:
    share = found["crash_rate"]["value"]
    return "" if share is None else f" ({100 * share:.0f} % crash)"


def small_teacher(folder: str | Path) -> Path:
    """Teach a policy on a made-up road of two lanes, in some seconds, and return the folder with what it met and did.

    What was taught before is kept.
    """
    folder = Path(folder)
    learning = {"learning_starts": 100, "exploration_fraction": 0.6, "learning_rate": 2e-3, "target_update_interval": 50}
    road = "equipoise.generated.two_lanes:TwoLanes-v0"
    if not (folder / ABOUT).is_file():
        train_teacher(folder, environment=road, steps=1000, states=600, held=100, hidden=(64, 64), learning=learning)
    return folder
