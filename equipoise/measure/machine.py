"""The machine a figure was measured on: without it a latency is an anecdote."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "bf16"),
)
"""Instruction sets that change which kernel runs, as the kernel names them."""
INT8_DOT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Flags of an exact 8-bit dot product: without one of them u8·s8 saturates on x86."""
PACKAGES = (
    *("equipoise", "torch", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "torch-pruning"),
    *("executorch", "torchao", "ai-edge-litert", "safetensors", "psutil", "optuna", "nvidia-ml-py"),
)


def describe(*, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return CPU, instruction sets, cores, memory, load and versions as plain JSON data, in a few milliseconds.

    ``has_vnni`` is True where the CPU has an exact 8-bit dot product (VNNI, AMX or Arm's dot product). ``threads`` are the
    hardware threads that this process may use. ``load`` is the one-minute load average, None where there is none.
    Nothing is imported to learn a version, so a package's presence is no proof that it works.
    """
    fields = _cpuinfo(cpuinfo)
    words = set((fields.get("flags") or fields.get("Features") or "").split())
    flags = [flag for flag in FLAGS if flag in words]
    return {
        "cpu": fields.get("model name") or _brand(),
        "architecture": platform.machine(),
        "flags": flags,
        "has_vnni": bool(INT8_DOT & words),
        "virtual": "hypervisor" in words,
        "cores": os.cpu_count() or 1,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": _memory(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "versions": versions(),
    }


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return distribution -> version of those `packages` that are installed, read from their metadata."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo(path: Path) -> dict[str, str]:
    """Fields of the first processor; empty where the system has no such file."""
    try:
        lines = path.read_text(errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _brand() -> str:
    """Name of the CPU where /proc/cpuinfo does not tell it."""
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or platform.processor()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Physical memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
