"""What travels of a model, and what the server knows between two rounds.

The floating-point tensors of the state dict travel: parameters, and buffers such as BatchNorm's means and variances, which are
combined like weights. Whole numbers (BatchNorm's counter of batches) stay what they were: they are no mean of anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from equipoise.federated.messages import Expected

Tensors = dict[str, Tensor]

VARIANCES = "running_var"
"""Buffers that must not fall below 0, whatever was added to them."""


@dataclass(frozen=True)
class Server:
    """The server between two rounds.

    Attributes:
        round: Rounds made.
        weights: Tensor -> value, float32.
        memory: What the strategy remembers: moments, the control variate.
        accepted: Client -> the last round that took its update, which is what it goes on from.
    """

    round: int
    weights: Mapping[str, Tensor]
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    accepted: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What one client learned in a round.

    Attributes:
        client: Its number.
        samples: How many it trained on.
        change: Tensor -> weights after minus weights before; of a narrower model its own, smaller tensors.
        control: Parameter -> change of the client's control variate (SCAFFOLD).
        places: Tensor -> the places (int64, in the flattened tensor of the server) that it holds; empty: all of them.
    """

    client: int
    samples: int
    change: Mapping[str, Tensor]
    control: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)


def numbers(model: nn.Module) -> Tensors:
    """Return the live tensors of `model` that travel."""
    return {name: value.detach() for name, value in model.state_dict().items() if value.is_floating_point()}


def travelling(model: nn.Module) -> Tensors:
    """Return copies of the tensors of `model` that travel, as float32 on the CPU."""
    return {name: value.cpu().float().clone() for name, value in numbers(model).items()}


def expected_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Expected:
    """Return the types and shapes that an answer to `tensors` must have."""
    return {name: (dtype or value.dtype, tuple(value.shape)) for name, value in tensors.items()}


def loaded(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Give `model` these tensors, and return it."""
    state = model.state_dict()
    model.load_state_dict({**state, **{name: value.to(state[name].dtype) for name, value in weights.items()}})
    return model


def moved(weights: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> Tensors:
    """Return ``weights + step`` as float32, added in float64; variances stay at 0 or above."""
    found = {name: (value.double() + step[name]).float() for name, value in weights.items()}
    return {name: value.clamp_min(0) if name.endswith(VARIANCES) else value for name, value in found.items()}


def change(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensors:
    """Return ``after - before``."""
    return {name: after[name] - value for name, value in before.items()}


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all numbers together, summed in float64."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in tensors.values()))


def clipped(tensors: Mapping[str, Tensor], most: float | None) -> Tensors:
    """Return tensors scaled down, where need be, to a norm of at most `most`."""
    if most is None:
        return dict(tensors)
    factor = min(1.0, most / max(norm(tensors), 1e-300))
    return {name: value if factor == 1.0 else (value.double() * factor).to(value.dtype) for name, value in tensors.items()}
