"""What a device can do at its best, and what a run took of it: FLOPs a second, the share of them, memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from equipoise.records import Reading, estimated, measured, unavailable
from equipoise.stats import quantile_interval

SIDE, SIDE_CPU = 8192, 1024
"""Rows and columns of the product that is timed: enough to fill the device, few enough to be quick."""


def finish(device: torch.device) -> None:
    """Wait until `device` has done what it was asked for: without that, a clock times the asking."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_flops(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    side: int | None = None,
    blocks: int = 8,
    block_s: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> Reading:
    """Return the FLOPs a second of a large square matrix product on `device`: what a model could reach at most.

    Args:
        device: Where; a CPU multiplies with the threads that torch is set to.
        dtype: Of the product. float32 is computed as torch is set to (on NVIDIA GPUs not in TF32 unless it is told).
        side: Rows and columns; None takes enough to fill the device.
        blocks: Timed repetitions; under 6 there is no interval.
        block_s: Seconds that one takes at least.
        clock: For tests.
    Limits:
        Convolutions and small products have peaks of their own, below this one.
    """
    side = side or (SIDE_CPU if device.type == "cpu" else SIDE)
    a, b = (torch.randn(side, side, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    a @ b  # warm up
    rates = []
    for _ in range(blocks):
        finish(device)
        products, began = 0, clock()
        while products == 0 or clock() - began < block_s:
            a @ b
            finish(device)
            products += 1
        rates.append(2 * side**3 * products / (clock() - began))
    return quantile_interval(rates, 0.5).reading("1/s", note=f"product of two {side} x {side} matrices in {str(dtype)[6:]}")


def utilization(flops: float, seconds: float, peak: Reading) -> Reading:
    """Return the share of `peak` at which `flops` were computed in `seconds`: the model's, recomputation not counted.

    References:
        Chowdhery et al. 2022, "PaLM", appendix B (model FLOPs utilization).
    """
    if peak.value is None:
        return unavailable("1", peak.note)
    note = f"model FLOPs over those of a {peak.note}"
    low, high = (None if bound is None else flops / seconds / bound for bound in (peak.high, peak.low))
    return estimated(flops / seconds / peak.value, "1", low=low, high=high, note=note)


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on."""
    if device.type == "cuda":
        # before it was used there is nothing to reset, and torch says that there is no such device
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> Reading:
    """Return the most bytes that torch's tensors have held on `device` at one time since `forget_peak`."""
    if device.type != "cuda":
        return unavailable("B", "read on GPUs alone: on a CPU a run shares its process with its data")
    return measured(float(torch.cuda.max_memory_allocated(device)), "B", note="held by torch's tensors, all at one time")
