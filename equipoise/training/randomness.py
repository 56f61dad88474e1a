"""Randomness that is counted, not carried: each draw has a seed of its own, so a resumed run needs no generator's state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GOLDEN = 0x9E3779B97F4A7C15
"""Odd 64-bit constant that spreads counters over all seeds (splitmix64)."""

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
"""Without it set, cuBLAS gives other bits each time, and torch refuses it to a deterministic run."""


def mixed(seed: int, count: int) -> int:
    """Return the seed of the `count`-th draw."""
    return (seed + count * GOLDEN) % 2**63


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the global generators that dropout draws from; call it inside `private`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def private(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Ask torch for algorithms that give the same bits twice if `wanted`, and put the global switches back.

    cuBLAS is asked through the environment, and looks there once in a process: at its first product.
    """
    if not wanted:
        yield
        return
    kept = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(CUBLAS)
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[CUBLAS]
