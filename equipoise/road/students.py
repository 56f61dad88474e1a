"""Which new models of a family are set beside those that the trained one can be cut down to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from equipoise.batch import call
from equipoise.errors import must_be
from equipoise.measure.counts import count
from equipoise.training.outputs import first_of
from equipoise.workloads import Workload
from equipoise.workloads.students import drawn, ladder, named, read_student, shape_of

SCALES = 4
"""Scales that are offered, spread over the MACs between the least of the family and those of the trained model."""


def students(text: str, work: Workload) -> dict[str, Callable[[], nn.Module]]:
    """Return name -> maker of the students that `text` names, cheaper than the model in MACs or params, the largest first.

    Args:
        text: As for `read_student`; with a scale it is the only one, however large.
    Raises:
        InputError: No family or scale, models that answer in another shape, or none that is cheaper.
    """
    with torch.no_grad():
        answers = first_of(call(work.model, work.example))
    shape, (found, scale) = shape_of(work.example, answers, work.model), read_student(text)
    names = [named(text, one) for one in (ladder(found) if scale is None else [scale])]
    counted = {}
    whole = count(work.model, work.example)
    for name in names:
        model = drawn(name, shape)
        with torch.no_grad():
            given = tuple(first_of(call(model, work.example)).shape)
        if given != tuple(answers.shape):
            wanted = f"a family that answers in the model's shape {tuple(answers.shape)}"
            raise must_be("student", wanted, f"{text}, {given}", "Choose another family.")
        counts = count(model, work.example)
        if scale is not None or counts.macs < whole.macs or counts.params < whole.params:
            counted[name] = counts.macs
    if not counted:
        raise must_be("student", "a family with a scale that is cheaper than the model", text, "Choose another family.")
    ranked = sorted(counted, key=lambda name: -counted[name])
    few = min(SCALES, len(ranked))
    spread = [ranked[round(i * (len(ranked) - 1) / max(1, few - 1))] for i in range(few)]
    return {name: partial(drawn, name, shape) for name in spread}
