"""What the user should know about a usable workload before relying on its figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped, parts
from equipoise.built_in import WORKLOADS
from equipoise.errors import InputError
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.outputs import Chosen, part
from equipoise.workloads.overlap import duplicates
from equipoise.workloads.running import at_once, one_thread
from equipoise.workloads.sources import attempt

SAMPLE, BATCH = 512, 64
"""Samples of each split on which the untouched model is read, and how many at a time."""

SECONDS = 1.5
"""Time for one such reading."""

PERFECT_SCORE, PERFECT_SAMPLES = 99.9, 200
"""Points of accuracy, on at least so many samples, that a model hardly reaches on data which it has not seen."""

OTHER = "Pass validation=... that the model never saw, or validation=0.3, which takes that share of the test split"


def cautions(work: Workload) -> tuple[str, ...]:
    """Return what to tell about `work`, a sentence each: what was converted or chosen, doubtful splits, memorised validation.

    Takes seconds at most; only validation and training data go through the model. In-memory test inputs are compared with
    those, their targets are not looked at.
    """
    with one_thread():
        found = [*work.notes, *_precision(work), *duplicates(work.train, work.validation, work.test), *_memorised(work)]
    return tuple(dict.fromkeys(found))


def _precision(work: Workload) -> Iterator[str]:
    """Compare the model in its own precision with the float32 copy that is worked on."""
    if work.original is None:
        return
    dtype = next(p.dtype for p in work.original.state_dict().values() if p.is_floating_point() and p.dtype != torch.float32)
    kind = str(dtype).removeprefix("torch.")
    own, converted = (
        _quality(work, _in_own_precision(work, dtype), work.validation),
        _quality(work, work.model, work.validation),
    )
    if own is None or converted is None:
        yield f"model: it could not be run in {kind} here, so its float32 copy is the reference"
        return
    yield f"model: quality on {own[1]} validation samples {own[0]:.2f} in {kind}, {converted[0]:.2f} as the float32 copy"


def _in_own_precision(work: Workload, dtype: torch.dtype) -> Callable[[Inputs], Any]:
    original: Any = work.original

    def run(inputs: Inputs) -> Tensor:
        answer = call(original, mapped(inputs, lambda value: value.to(dtype) if value.is_floating_point() else value))
        chosen: Tensor = part(answer, work.model.output) if isinstance(work.model, Chosen) else answer
        return chosen.float()

    return run


def _memorised(work: Workload) -> Iterator[str]:
    """Say where validation data are, or seem to be, what the model was trained on."""
    if work.validation_from == "test":
        return
    held, trained = (_quality(work, work.model, split) for split in (work.validation, work.train))
    if held is None or trained is None:
        return
    name = work.metric.name
    if work.validation_from == "train":
        yield (
            f"validation was carved from the training data (untouched model: {name} {held[0]:.2f} on it, {trained[0]:.2f} on "
            f"the rest). If the model was trained on them, drops measured there are worth little. {_other(work)}"
        )
    elif (
        work.metric.labels and min(held[0], trained[0]) >= PERFECT_SCORE and held[1] >= PERFECT_SAMPLES and work.metric.maximize
    ):
        yield (
            f"the untouched model has {name} {held[0]:.2f} on validation, as on its training data. If it was trained on the "
            f"validation data, drops measured there are worth little. {_other(work)}"
        )


def _other(work: Workload) -> str:
    """The way out, in the words of where the workload was named."""
    row = WORKLOADS.get(work.name)
    return "Add holdout=N to take N test images for it" if row and "holdout" in row.options else OTHER


def _quality(work: Workload, run: nn.Module | Callable[[Inputs], Any], split: Split) -> tuple[float, int] | None:
    """Return the metric on the first samples of a split and how many they were; None where it cannot be read."""
    if work.metric.ask is not None:  # it may take minutes, and nothing here is worth them
        return None
    outputs, targets, until = [], [], time.perf_counter() + SECONDS
    answer = partial(call, run) if isinstance(run, nn.Module) else run
    try:
        with torch.inference_mode():
            for inputs, wanted in split.take(SAMPLE).batches(BATCH):
                for few in parts(inputs, at_once(inputs, BATCH)):
                    outputs.append(attempt("model", partial(answer, few), "Look at its forward."))
                targets.append(wanted)
                if time.perf_counter() > until:
                    break
        together = torch.cat(outputs).clone(), torch.cat(targets)
        score = attempt("metric", lambda: work.metric.score(*together), "It is called with (outputs, targets).")
    except InputError:  # told by `check`, or, of a half-precision model, not needed
        return None
    return score, len(together[1])
