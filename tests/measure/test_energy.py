"""Energy from a recorded counter tree, so that wrap-around, permission and idle load are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from equipoise.errors import InputError, UnavailableError
from equipoise.measure import energy, money
from equipoise.measure.energy import Access
from equipoise.records import Reading, measured, unavailable

RANGE_UJ = 262_143_328_850


@dataclass
class Socket:
    """A recorded machine: `idle_w` always, `call_j` more for each call; time moves only here."""

    root: Path
    idle_w: float = 10.0
    call_j: float = 0.25
    start_uj: int = 1_000_000
    now: float = 0.0
    spent_uj: float = 0.0
    calls: int = field(default=0)

    def __post_init__(self) -> None:
        for zone, name in {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "psys",
            "intel-rapl-mmio:0": "package-0",
        }.items():
            folder = self.root / zone
            folder.mkdir(parents=True)
            (folder / "name").write_text(name + "\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            (folder / "energy_uj").write_text("7\n")
        self.write()

    def write(self) -> None:
        counter = self.root / "intel-rapl:0" / "energy_uj"
        counter.write_text(f"{int(self.start_uj + self.spent_uj) % RANGE_UJ}\n")

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.spent_uj += seconds * self.idle_w * 1e6
        self.write()

    def call(self) -> None:
        self.calls += 1
        self.spent_uj += self.call_j * 1e6
        self.sleep(0.01)

    def read(self, access: Access) -> Reading:
        return energy.read(self.call, access, window_s=0.2, clock=lambda: self.now, sleep=self.sleep)


def test_energy_is_what_a_call_costs_above_idle(tmp_path: Path) -> None:
    socket = Socket(tmp_path)
    found = socket.read(energy.rapl(tmp_path))
    assert found.value == pytest.approx(0.25, rel=1e-4)
    assert found.provenance == "measured"
    assert (found.low, found.high, found.n) == (pytest.approx(0.25, rel=1e-3), pytest.approx(0.25, rel=1e-3), 10)
    assert "RAPL" in found.note


def test_without_subtracting_idle_it_would_be_wrong(tmp_path: Path) -> None:
    """Negative control: at 10 W idle a call of 10 ms carries 0.1 J that is not its own."""
    socket = Socket(tmp_path)
    before = socket.spent_uj
    for _ in range(10):
        socket.call()
    assert (socket.spent_uj - before) / 10 / 1e6 == pytest.approx(0.35)


def test_a_counter_that_wraps_around_is_read_through(tmp_path: Path) -> None:
    socket = Socket(tmp_path, start_uj=RANGE_UJ - 30_000_000)  # wraps 30 J on, of about 90
    assert socket.read(energy.rapl(tmp_path)).value == pytest.approx(0.25, rel=1e-4)
    assert int((tmp_path / "intel-rapl:0" / "energy_uj").read_text()) < RANGE_UJ - 30_000_000, "it did wrap"


def test_only_zones_that_do_not_hold_each_other_are_added(tmp_path: Path) -> None:
    Socket(tmp_path)
    meter = energy.rapl(tmp_path).meter
    assert meter is not None
    assert [Path(zone).name for zone in meter.counters()] == ["intel-rapl:0", "intel-rapl:0:1"]


def test_work_that_costs_nothing_cannot_be_told_from_idle(tmp_path: Path) -> None:
    found = Socket(tmp_path, call_j=0.0).read(energy.rapl(tmp_path))
    assert not found.known
    assert "idle" in found.note


def _empty(root: Path) -> None:
    root.mkdir()


def _garbage(root: Path) -> None:
    Socket(root)
    (root / "intel-rapl:0" / "energy_uj").write_text("none")


@pytest.mark.parametrize(("make", "told"), [(lambda root: None, "no RAPL"), (_empty, "no RAPL"), (_garbage, "cannot be read")])
def test_no_counter_is_unavailable_and_never_zero(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    make(tmp_path / "powercap")
    access = energy.rapl(tmp_path / "powercap")
    found = energy.read(int, access)
    assert access.meter is None
    assert told in found.note
    with pytest.raises(UnavailableError):
        found.get()


def test_a_counter_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Socket(tmp_path)
    real = Path.read_text

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "root" in energy.rapl(tmp_path).reason


class _Nvml:
    """Stands in for pynvml: two boards, millijoules."""

    def __init__(self) -> None:
        self.spent = [0, 0]

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self.spent[handle]


def test_nvml_counts_millijoules_of_all_boards() -> None:
    nvml = _Nvml()
    meter = energy.NvmlMeter(nvml)
    before = meter.counters()
    nvml.spent = [1500, 500]
    assert meter.between(before, meter.counters()) == pytest.approx(2.0)


def test_an_estimate_is_labelled_and_spans_what_is_not_known() -> None:
    cpu = measured(0.010, "s", low=0.009, high=0.012, n=8)
    found = energy.estimate(cpu, (4.0, 8.0))
    assert found.provenance == "estimated"
    assert (found.value, found.low, found.high) == pytest.approx((0.06, 0.036, 0.096))
    assert str(found).endswith("(estimate)")
    assert energy.estimate(cpu, 5.0).value == pytest.approx(0.05)
    assert not energy.estimate(unavailable("s", "no clock"), 5.0).known
    for watts in (0.0, -1.0, (5.0, 4.0), float("inf")):
        with pytest.raises(InputError, match="watts"):
            energy.estimate(cpu, watts)


def test_cpu_seconds_count_work_and_not_sleep() -> None:
    import time

    slept = energy.cpu_seconds(lambda: time.sleep(0.02), blocks=6)
    worked = energy.cpu_seconds(lambda: sum(range(200_000)), blocks=6)
    assert slept.get() < 0.01
    assert worked.get() > slept.get()
    assert worked.low is not None


def test_price_of_a_million_by_hand() -> None:
    latency = measured(0.0036, "s", low=0.0018, high=0.0072, n=12)
    found = money.price_per_million(latency, 1.0)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.5, 2.0))  # 3,600 s at $1/h
    assert (found.unit, found.provenance) == ("$", "estimated")
    assert money.price_per_million(latency, 1.0, batch=4, streams=2).value == pytest.approx(1 / 8)
    assert not money.price_per_million(unavailable("s", "no"), 1.0).known
    for price in (-1.0, float("nan")):
        with pytest.raises(InputError, match="price_per_hour"):
            money.price_per_million(latency, price)


def test_flops_per_joule_keeps_the_provenance_of_the_energy() -> None:
    found = money.flops_per_joule(500, measured(2.0, "J", low=1.0, high=4.0, n=10))
    assert (found.value, found.low, found.high, found.provenance) == (500.0, 250.0, 1000.0, "measured")
    assert money.flops_per_joule(500, energy.estimate(measured(1.0, "s"), 2.0)).provenance == "estimated"
    assert money.flops_per_joule(500, unavailable("J", "no meter")).note == "no meter"
