"""Whether a changed model still computes what it did: both are run on the same inputs, and every number is compared.

A rewrite that is right on paper is wrong on a model whose forward does more than its type says. So each one is run beside
the original on real inputs, and undone where they differ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.trace import RUN_ERRORS, tensors

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference by rounding, as a fraction of the largest value, of results in half precision."""

CLOSE = 1e-4
"""The same for float32 and float64."""

SAMPLES = 16
"""Inputs that models are compared on."""


def answers(model: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return all tensors that a copy of `model` gives in evaluation mode, chance (if it has any) starting from one seed."""
    subject = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tuple(tensors(call(subject, inputs)))


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """Return how two results differ beyond rounding, in words; empty where they agree.

    Example:
        >>> difference([torch.ones(2)], [torch.ones(2)]), difference([torch.ones(2)], [torch.zeros(2)])
        ('', 'its outputs differ by 100 % of the largest')
    """
    if [tuple(value.shape) for value in found] != [tuple(value.shape) for value in wanted]:
        return "its outputs have another shape"
    worst = 0.0
    for new, old in zip(found, wanted, strict=True):
        if not old.is_floating_point():
            worst = max(worst, float((new != old).any()))
            continue
        gap, scale = _apart(new, old)
        if not gap < float("inf"):  # something is not finite: where, and how far apart are the rest?
            steady = torch.isfinite(old)
            if not torch.equal(steady, torch.isfinite(new)):
                return "its outputs are not finite in other places"
            gap, scale = _apart(new[steady], old[steady]) if steady.any() else (0.0, 0.0)
        if gap > TOLERANCE.get(old.dtype, CLOSE) * scale + 1e-12:
            worst = max(worst, gap / scale)
    return f"its outputs differ by {100 * worst:.3g} % of the largest" if worst else ""


def _apart(new: Tensor, old: Tensor) -> tuple[float, float]:
    """Return the largest difference of two tensors, and their largest value."""
    if not old.numel():
        return 0.0, 0.0
    return float((new - old).abs().max()), max(float(old.abs().max()), float(new.abs().max()))


def changed(model: nn.Module, original: nn.Module, inputs: Iterable[Inputs]) -> str:
    """Return how `model` answers otherwise than `original` on some of the `inputs`; empty where it does not.

    What the changed model raises counts as a difference; what the original raises is raised.
    """
    for batch in inputs:
        wanted = answers(original, batch)
        try:
            found = answers(model, batch)
        except RUN_ERRORS as error:
            return f"it no longer runs: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
        if why := difference(found, wanted):
            return why
    return ""


def own(module: Any, name: str) -> Tensor | None:
    """Return the module's own parameter or buffer of that name, None where it has none or computes it."""
    value: Tensor | None = module._parameters.get(name)
    return module._buffers.get(name) if value is None else value
