"""What is put before a model's own class: a copy takes its inputs otherwise, and all names in it stay what they were."""

from __future__ import annotations

import copy
import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.batch import call
from equipoise.compress.subject import Subject
from equipoise.compress.trace import RUN_ERRORS


def behind(model: nn.Module, front: type[nn.Module], **values: Any) -> nn.Module:
    """Return a copy of `model` whose class has `front` before its own, with `values` for what `front` wants to know.

    Args:
        front: Its forward changes what it is given and hands it to the forward of the next class (``super()``).
        values: Under names that no model has for itself. They stand in the name of the class, too: by its classes a model is
            told from others whose graph may serve for it (`runtimes.kin`).
    """
    changed, kind = copy.deepcopy(model), type(model)
    known = re.sub(r"\W+", "_", "_".join(map(str, values.values())))
    name = f"{front.__name__}{known}{kind.__name__}"
    changed.__class__ = cast(type[nn.Module], type(name, (front, kind), values))
    return changed


def answers_alike(subject: Subject, changed: nn.Module) -> bool:
    """Whether `changed` answers the example with finite numbers in the shape of the subject's own answers."""
    try:
        with torch.no_grad():
            wanted, found = (call(model, subject.example) for model in (subject.model, changed))
    except RUN_ERRORS:
        return False
    return isinstance(found, Tensor) and found.shape == wanted.shape and bool(found.isfinite().all())
