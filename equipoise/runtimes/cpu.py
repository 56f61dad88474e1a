"""What this CPU makes of 8-bit products, which decides the range of quantized weights."""

from __future__ import annotations

import platform
from pathlib import Path


def has_exact_int8() -> bool:
    """Return whether 8-bit products are exact at full speed: VNNI or AMX on x86, any other architecture.

    Without them the usual kernels add two products in 16 bits, which overflow unless weights keep to 7 bits. Where the CPU
    cannot be asked (x86 outside Linux), the careful answer is False.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags))
