"""Changes in 8 bits: whole multiples of a step for each tensor, rounded at random so that the mean of many is right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise.federated.state import Tensors

LEVELS = 127


def rounded(tensors: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensors, dict[str, float]]:
    """Return (int8 tensors, step of each); ``step * integer`` is the tensor in expectation, and within a step of it.

    References:
        Alistarh et al. 2017, "QSGD: communication-efficient SGD via gradient quantization and encoding", section 3.1, with the
        largest number of a tensor in place of its norm.
    """
    found, steps = {}, {}
    for name, value in tensors.items():
        most = float(value.abs().max()) if value.numel() else 0.0
        steps[name] = step = most / LEVELS if most / LEVELS > 0 else 1.0
        up = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        found[name] = (value.double() / step + up).floor().clamp(-LEVELS, LEVELS).to(torch.int8)
    return found, steps


def restored(tensors: Mapping[str, Tensor], steps: Mapping[str, float]) -> Tensors:
    """Return the float32 tensors that `rounded` was given, as far as they were kept."""
    return {name: (value.double() * steps[name]).float() for name, value in tensors.items()}
