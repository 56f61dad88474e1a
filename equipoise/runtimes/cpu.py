"""What this CPU has and likes: its cores, exact 8-bit products or none, the multiples of channels at which it is quick."""

from __future__ import annotations

import os
import platform
from pathlib import Path

X86 = ("x86_64", "amd64")


SHARE = "EQUIPOISE_CORES"
"""Environment variable with the cores that this process may use, where others are at work beside it."""


def cores() -> int:
    """Return on how many cores this process may run: under ``taskset`` or in a container fewer than there are.

    Threads that share a core wait for each other: a session of two on one core takes many times as long as one of one. So of
    several processes each is told its share, in the variable `SHARE`.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(SHARE, "")
    return max(1, min(there, int(share))) if share.isdecimal() else there


def has_exact_int8() -> bool:
    """Return whether 8-bit products are exact at full speed: VNNI or AMX on x86, any other architecture.

    Without them the usual kernels add two products in 16 bits, which overflow unless weights keep to 7 bits. Where the CPU
    cannot be asked (x86 outside Linux), the careful answer is False.
    """
    return platform.machine().lower() not in X86 or bool({"avx512_vnni", "avx_vnni", "amx_int8"} & _flags())


def liked_channels() -> int:
    """Return the multiple of channels at which kernels waste nothing: the floats in a register, 16, 8 or 4.

    With AVX-512 a 3 x 3 convolution of ONNX Runtime takes the same 48 us at 36 to 48 channels and 77 us at 52 to 64
    (docs/search.md, widths). Where the CPU cannot be asked, 8.
    """
    if platform.machine().lower() not in X86:
        return 4
    return 16 if "avx512f" in _flags() else 8


def _flags() -> set[str]:
    """What an x86 CPU says that it can do; nothing where it cannot be asked."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
