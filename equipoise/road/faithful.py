"""Whether the program that would ship computes what the model computes: the same real inputs through both, before any work.

Everything else is measured against the untouched model's program. Where that one is wrong, every drop is a drop from the wrong
thing, and nothing later would notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from equipoise.batch import Inputs, call, parts
from equipoise.errors import EquipoiseError
from equipoise.workloads.running import at_once

if TYPE_CHECKING:
    from equipoise.workloads import Metric

SAME = 1e-3
"""Largest difference by rounding between a runtime's and torch's outputs, as a fraction of the largest output."""

ORIGINAL_SAMPLES, CANDIDATE_SAMPLES = 512, 32
"""Validation samples on which the untouched model's program, and that of each float candidate, is compared with torch."""

BATCH = 64


def answers(model: torch.nn.Module, inputs: Inputs) -> np.ndarray[Any, Any]:
    """Return what `model`, in evaluation mode, answers to `inputs` (N, ...)."""
    with torch.inference_mode():
        found = [call(model, few) for few in parts(inputs, at_once(inputs, BATCH))]
    return np.asarray(torch.cat(found).numpy())


def gap(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Return the largest difference as a fraction of the largest value; infinite where shapes or unreadable places differ.

    Example:
        >>> gap(np.array([1.0, 2.0]), np.array([1.0, 2.5])), gap(np.array([np.nan]), np.array([1.0]))
        (0.2, inf)
    """
    if found.shape != wanted.shape or not np.array_equal(np.isfinite(found), np.isfinite(wanted)):
        return float("inf")
    steady = np.isfinite(wanted)
    if not steady.any():
        return 0.0
    old, new = wanted[steady].astype(np.float64), found[steady].astype(np.float64)
    return float(np.abs(new - old).max() / max(np.abs(old).max(), np.abs(new).max(), 1e-12))


def hold(
    outputs: np.ndarray[Any, Any],
    model: torch.nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    metric: Metric,
    *,
    what: str,
) -> None:
    """Raise unless a float program's `outputs` are what `model` answers to `inputs` in torch.

    Args:
        outputs: The program's, for the samples of `inputs` at least.
        targets, metric: For the two qualities that the message quotes.
        what: Which program it is, for the message.
    Raises:
        EquipoiseError: They differ by more than rounding.
    """
    wanted = answers(model, inputs)
    apart = gap(outputs[: len(wanted)], wanted)
    if apart <= SAME:
        return
    told = ""
    if metric.ask is None:
        found, there = (metric.score(torch.from_numpy(np.array(some[: len(wanted)])), targets) for some in (outputs, wanted))
        told = f", and {metric.name} {found:.2f} where torch has {there:.2f}"
    raise EquipoiseError(
        f"{what} must answer as the model does in torch; got outputs that differ by {100 * apart:.3g} % of the largest{told} "
        f"({len(wanted)} samples). Nothing measured on it would "
        "hold: check that the model's forward depends on its inputs alone and has no branches on values."
    )
