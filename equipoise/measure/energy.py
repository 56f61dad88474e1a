"""Energy from counters where the machine has them; an estimate only on request, and labelled.

A counter belongs to a whole socket or board, not to our process. So busy windows alternate with idle ones, and what is
reported is the energy above idle. On a machine without a readable counter the answer is ``unavailable(reason)``, never 0.

References:
    Linux kernel, ``Documentation/power/powercap``: ``energy_uj`` wraps at ``max_energy_range_uj``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from equipoise.errors import must_be
from equipoise.records import Reading, estimated, unavailable
from equipoise.stats import quantile_interval

POWERCAP = Path("/sys/class/powercap")
PARTS = ("package", "dram")
"""Zones that are added up: core and uncore lie inside the package, psys holds everything again."""


class Meter(Protocol):
    """A cumulative energy counter."""

    @property
    def name(self) -> str:
        """What is counted, for the note on the figure."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Return joules by part, each since some unknown start."""
        ...

    def between(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """Return the joules spent between two calls of `counters`."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """A meter, or why there is none."""

    meter: Meter | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RaplMeter:
    """Intel's and AMD's running average power limit counters.

    Attributes:
        ranges: Zone folder -> joules at which its counter starts again at 0.
    """

    ranges: Mapping[Path, float]
    name: str = "RAPL"

    def counters(self) -> dict[str, float]:
        """Return joules by zone."""
        return {str(zone): int((zone / "energy_uj").read_text()) / 1e6 for zone in self.ranges}

    def between(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """Return joules over all zones; a counter that went backwards has wrapped around once."""
        spent = 0.0
        for zone, span in self.ranges.items():
            change = after[str(zone)] - before[str(zone)]
            spent += change if change >= 0 else change + span
        return spent


@dataclass(frozen=True, slots=True)
class NvmlMeter:
    """NVIDIA's total-energy counters of all boards in this machine."""

    nvml: Any
    name: str = "NVML"

    def counters(self) -> dict[str, float]:
        """Return joules by board."""
        boards = [self.nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self.nvml.nvmlDeviceGetCount())]
        return {str(i): self.nvml.nvmlDeviceGetTotalEnergyConsumption(board) / 1e3 for i, board in enumerate(boards)}

    def between(self, before: Mapping[str, float], after: Mapping[str, float]) -> float:
        """Return joules over all boards."""
        return sum(after[board] - before[board] for board in before)


def rapl(root: Path = POWERCAP) -> Access:
    """Look for readable RAPL counters under `root`; of a machine that has none, say why."""
    ranges: dict[Path, float] = {}
    for zone in sorted(root.glob("intel-rapl:*")):  # the -mmio twin counts the same package again
        try:
            part = (zone / "name").read_text().strip()
            if part.startswith(PARTS):
                int((zone / "energy_uj").read_text())
                ranges[zone] = int((zone / "max_energy_range_uj").read_text()) / 1e6
        except PermissionError:
            return Access(None, f"RAPL counters in {root} are readable by root only: run as root or grant read access")
        except (OSError, ValueError) as error:
            return Access(None, f"RAPL counters in {root} cannot be read: {error}")
    if not ranges:
        return Access(None, f"no RAPL counter in {root} (virtual machine, or the driver is not loaded)")
    return Access(RaplMeter(ranges))


def nvml() -> Access:
    """Look for NVIDIA boards that count their energy; of a machine that has none, say why."""
    try:
        import pynvml
    except ImportError:
        return Access(None, 'no NVML: pip install "equipoise[gpu]"')
    try:
        pynvml.nvmlInit()
        meter = NvmlMeter(pynvml)
        if not meter.counters():
            return Access(None, "no NVIDIA board")
    except pynvml.NVMLError as error:
        return Access(None, f"no NVIDIA board that counts energy: {error}")
    return Access(meter)


def access(device: str) -> Access:
    """Return the meter of where a target computes: the processor's for ``cpu``, else the boards'."""
    return rapl() if device == "cpu" else nvml()


def read(
    call: Callable[[], object],
    access: Access,
    *,
    windows: int = 10,
    window_s: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Reading:
    """Return the joules that one `call` costs above idle.

    Each round is an idle window and a busy one of equal length; the figure is the median of the rounds.

    Args:
        call: Callable of no arguments.
        access: From `rapl` or `nvml`.
        windows: Rounds; under 6 there is no interval.
        window_s: Seconds of a window; counters update about every millisecond, so stay far above it.
        clock, sleep: For tests.
    Returns:
        Measured joules a call, or unavailable: no meter, or no difference from idle that could be told.
    """
    meter = access.meter
    if meter is None:
        return unavailable("J", access.reason)
    if windows < 1 or not window_s > 0:
        raise must_be("energy.read(windows, window_s)", "positive", (windows, window_s), "Use 10 windows of 2 s.")
    spent = []
    for _ in range(windows):
        idle, idle_s, _calls = _window(meter, lambda: sleep(window_s), 0.0, clock)
        busy, busy_s, calls = _window(meter, call, window_s, clock)
        spent.append((busy - idle / idle_s * busy_s) / calls)
    found = quantile_interval(spent, 0.5)
    if found.value <= 0 or (found.bounded and found.low <= 0):
        return unavailable("J", f"{meter.name} could not tell the work from an idle machine: use longer windows")
    note = f"{meter.name}, above idle, {windows} windows of {window_s:g} s; other work on the machine counts too"
    return found.reading("J", note=note)


def cpu_seconds(call: Callable[[], object], *, blocks: int = 8, block_s: float = 0.05) -> Reading:
    """Return the CPU seconds of one `call`, over all threads of this process."""
    call()
    found = []
    for _ in range(blocks):
        calls, began, cpu = 0, time.perf_counter(), time.process_time()
        while calls == 0 or time.perf_counter() - began < block_s:
            call()
            calls += 1
        found.append((time.process_time() - cpu) / calls)
    return quantile_interval(found, 0.5).reading("s", note=f"CPU time, {blocks} blocks")


def estimate(cpu: Reading, watts_per_core: float | tuple[float, float]) -> Reading:
    """Return an estimate of the joules of one call: CPU seconds × watts of a busy core.

    Args:
        cpu: From `cpu_seconds`.
        watts_per_core: Watts, or (low, high) when it is not known better; the middle is the value.
    Raises:
        InputError: Watts that are not positive, or low above high.
    Limits:
        Knows nothing of memory, cooling or frequency: do not rank two models by it whose intervals overlap.
    """
    low, high = watts_per_core if isinstance(watts_per_core, tuple) else (watts_per_core, watts_per_core)
    if not 0 < low <= high < float("inf"):
        raise must_be("watts_per_core", "positive watts, or (low, high)", watts_per_core, "Write for example 6, or (4, 9).")
    if cpu.value is None:
        return unavailable("J", cpu.note)
    watts = (low + high) / 2
    said = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return estimated(
        cpu.value * watts,
        "J",
        low=None if cpu.low is None else cpu.low * low,
        high=None if cpu.high is None else cpu.high * high,
        n=cpu.n,
        note=f"CPU seconds × {said} W a core, as given; not measured",
    )


def _window(meter: Meter, call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> tuple[float, float, int]:
    """Repeat `call` for `seconds` (at least once); return joules, seconds and calls."""
    before, began, calls = meter.counters(), clock(), 0
    while calls == 0 or clock() - began < seconds:
        call()
        calls += 1
    after, ended = meter.counters(), clock()
    return meter.between(before, after), ended - began, calls
