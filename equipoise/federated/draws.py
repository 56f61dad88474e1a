"""Random draws of a federation, each from a seed of its own: who is asked, who dies, how a client's data are shuffled."""

from __future__ import annotations

import torch

from equipoise.records import digest


def generator(seed: int, what: str, *numbers: int) -> torch.Generator:
    """Return the generator of one draw; a resumed run draws the same, whatever was drawn before."""
    return torch.Generator().manual_seed(int(digest([seed, what, *numbers]), 16) % 2**63)


def chance(seed: int, what: str, *numbers: int) -> float:
    """Return one number from 0 to below 1."""
    return float(torch.rand((), generator=generator(seed, what, *numbers), dtype=torch.float64))
