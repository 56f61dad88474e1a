"""Peak memory of real work, read in a fresh child process that does nothing else.

The child imports what it needs, notes its resident memory, then does the work and reads the peak. Two figures come back: what
the work added (the model's own appetite: weights, buffers, the runtime's arenas) and what the whole process peaked at (what
a container's limit sees). Nothing is pickled: payload and options travel as files.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.errors import must_be
from equipoise.measure.child import ChildFailed, children
from equipoise.records import Reading, measured, unavailable
from equipoise.units import show


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Peak resident memory in bytes.

    Attributes:
        added: Peak during the work minus what was resident just before it (interpreter and imports).
        process: Peak of the whole process.
    """

    added: Reading
    process: Reading


def peak_memory(
    entry: str,
    payload: Mapping[str, bytes] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    timeout_s: float = 120.0,
) -> PeakMemory:
    """Run `entry` in a fresh child process and return its peak memory.

    `entry` is a generator function ``(folder: Path, options: dict)``. What it does before its only ``yield`` (imports) is the
    baseline; what it does after (load the model, run it) is measured.

    Args:
        entry: ``package.module:function``, importable by the child.
        payload: File name -> content; written to `folder`.
        options: Plain JSON data.
        timeout_s: Seconds after which the child is stopped.
    Returns:
        Readings in bytes; unavailable, with the child's last words, when it fails.
    Raises:
        InputError: `entry` is not ``module:function``.
    Limits:
        Resident pages, so what the system swapped out is not seen, and pages of shared libraries first touched by the work are.
    """
    if entry.count(":") != 1:
        raise must_be("memory.peak_memory(entry)", "module:function", entry, "Name a function that a fresh process can import.")
    order = {"entry": entry, "options": dict(options or {})}
    try:
        with children(payload or {}) as fresh:
            found = fresh.run("equipoise.measure.memory:watched", order, timeout_s=timeout_s)
    except ChildFailed as failure:
        return PeakMemory(unavailable("B", str(failure)), unavailable("B", str(failure)))
    baseline, peak = found["baseline"], found["peak"]
    return PeakMemory(
        added=measured(max(0, peak - baseline), "B", note=f"above {show(baseline, 'B')} after imports; fresh process"),
        process=measured(peak, "B", note="whole process, fresh"),
    )


def watched(folder: Path, order: Mapping[str, Any]) -> dict[str, int]:
    """Do the ordered work and return the resident bytes before it and at its peak: the child's side of `peak_memory`."""
    work: Iterator[None] = pkgutil.resolve_name(order["entry"])(folder, order["options"])
    next(work)
    baseline = _settle()
    for _ in work:
        pass
    return {"baseline": baseline, "peak": _peak()}


def _settle() -> int:
    """Give back free memory, forget the peak so far where the system allows it, and return the resident bytes."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        with contextlib.suppress(OSError):  # where it is refused, a higher peak of the imports counts too
            Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    """Peak resident bytes of this process.

    On Linux not from ``getrusage``: its figure survives exec, so that a child would report its parent's peak.
    """
    if sys.platform == "linux":
        return _status("VmHWM")
    import psutil  # type: ignore[import-untyped,unused-ignore]

    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _status(field: str) -> int:
    """One field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
