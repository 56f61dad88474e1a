"""What can be read here, and what follows from it."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from equipoise.axes import AXES, Axis
from equipoise.budget import parse_budget
from equipoise.errors import InputError
from equipoise.measure import energy
from equipoise.meters import Meters
from equipoise.records import Reading, measured, unavailable

COST = {
    "latency_s": measured(2e-3, "s", low=1e-3, high=4e-3, n=12),
    "energy_j": measured(0.36, "J", low=0.18, high=0.72, n=5),
}


@pytest.fixture(params=[True, False])
def counter(request, monkeypatch) -> bool:
    """A machine with an energy counter, and one without."""
    meter = energy.RaplMeter({}) if request.param else None
    monkeypatch.setattr(energy, "rapl", lambda: energy.Access(meter, "" if meter else "no counter can be read"))
    return request.param


def bounds_of(reading: Reading) -> tuple[float | None, float | None, float | None]:
    return reading.value, reading.low, reading.high


def test_what_follows_from_another_axis_keeps_its_interval() -> None:
    meters = Meters(4, price_per_hour=3.6, grid=500.0)
    assert bounds_of(meters.follows("throughput", COST)) == pytest.approx((2000.0, 1000.0, 4000.0))  # turned round
    assert bounds_of(meters.follows("price", COST)) == pytest.approx((0.5, 0.25, 1.0))  # 0.001 $/s, 0.5 ms a sample
    assert bounds_of(meters.follows("carbon", COST)) == pytest.approx((5e-5, 2.5e-5, 1e-4))
    for word in ("throughput", "price", "carbon"):
        found = meters.follows(word, COST)
        assert (found.unit, found.provenance) == (AXES[word].unit, "measured")
        assert AXES[word].of in found.note


def test_an_open_interval_stays_open_and_an_unknown_stays_unknown() -> None:
    meters = Meters(1, price_per_hour=1.0)
    assert bounds_of(meters.follows("throughput", {"latency_s": measured(2.0, "s")})) == (0.5, None, None)
    unknown = meters.follows("price", {"latency_s": unavailable("s", "no clock")})
    assert (unknown.value, unknown.unit, unknown.note) == (None, "$", "no clock")


@pytest.mark.parametrize(
    ("word", "bound"), [("throughput", 100.0), ("price", 0.5), ("carbon", 1e-4), ("latency", 1e-3), ("size", 9.0)]
)
def test_a_bound_on_what_follows_holds_exactly_where_the_one_on_its_base_does(word, bound) -> None:
    meters = Meters(4, price_per_hour=3.6, grid=500.0)
    base, most = meters.on_base(word, bound)
    assert base == (AXES[word].of or word)
    if AXES[word].of:
        reached = meters.follows(word, {AXES[base].key: measured(most, AXES[base].unit)})
        assert reached.get() == pytest.approx(bound)
    else:
        assert most == bound


def test_each_axis_that_cannot_be_read_here_says_why_and_how_to_go_on(counter) -> None:
    bare, told = Meters(), Meters(1, price_per_hour=1.0, grid=300.0)
    assert "--price-per-hour" in bare.unavailable("price")
    assert told.unavailable("price") == ""
    assert (bare.unavailable("energy") == "") == counter
    assert (told.unavailable("carbon") == "") == counter
    assert ("--grid" if counter else "no counter can be read") in bare.unavailable("carbon")
    assert all(bare.unavailable(word) == "" for word in AXES if word not in ("price", "energy", "carbon"))


def test_what_was_told_is_named_by_what_follows_by_it() -> None:
    meters = Meters(2, price_per_hour=0.5)
    assert meters.told(AXES) == {"price_per_hour": 0.5, "grid": None}
    assert meters.told(["throughput", "price"]) == {"price_per_hour": 0.5}
    assert meters.untold("price") == meters.untold("energy") == ""
    assert "--grid" in meters.untold("carbon")


@pytest.mark.parametrize("why", ["", "no clock. Buy one."])
def test_an_axis_is_read_by_the_meter_of_its_row_and_what_follows_by_what_was_read(why, monkeypatch) -> None:
    class Hours:
        def missing(self) -> str:
            return why

        def read(self, program: str, target: str, rows: object) -> Reading:
            assert not why
            return measured(len(program + target), "s", low=1.0, high=9.0)

    monkeypatch.setitem(sys.modules, "clock", cast(ModuleType, SimpleNamespace(Hours=Hours)))
    monkeypatch.setitem(AXES, "start", Axis("start_s", "s", "Cold start", meter="clock:Hours"))
    monkeypatch.setitem(AXES, "starts", Axis("starts", "g", "Starts", of="start"))
    monkeypatch.setattr(Meters, "factor", lambda *_: 2.0)
    assert Meters().unavailable("start") == Meters().unavailable("starts") == why
    found = Meters().read(("start", "starts"), {"size_bytes": measured(9.0, "B")}, "ab", "c", {})
    assert list(found) == ["size_bytes", "start_s", "starts"]
    if why:
        assert found["start_s"].note == found["starts"].note == why
    else:
        assert (found["start_s"].get(), bounds_of(found["starts"])) == (3.0, (6.0, 2.0, 18.0))


def test_every_bound_that_cannot_be_read_is_refused_at_once(counter) -> None:
    budget = parse_budget("price<=1$, carbon<=1g, latency<=1ms, memory<=10MB")
    with pytest.raises(InputError) as refused:
        Meters().check(budget)
    lines = str(refused.value).splitlines()
    assert [line.partition(" must")[0] for line in lines] == ["budget price", "budget carbon"]
    Meters(1, price_per_hour=1.0).check(parse_budget("price<=1$, memory<=10MB, throughput>=1/s"))


def test_only_what_the_budget_names_is_measured_beside_the_rest_each_after_its_base() -> None:
    def extra(text: str) -> tuple[str, ...]:
        return Meters().extra(parse_budget(text))

    assert extra("latency<=1ms, drop<=1, params<=1M") == ()
    assert extra("carbon<=1g, memory<=1MB, energy<=1J") == ("energy", "carbon", "memory")
    assert extra("throughput>=1/s") == ("throughput",)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "2"])
@pytest.mark.parametrize("name", ["price_per_hour", "grid"])
def test_what_is_told_of_the_machine_is_a_number_above_0(name, value) -> None:
    with pytest.raises(InputError, match=f"{name} must be a finite number above 0"):
        Meters(**{name: value})


def test_what_does_not_follow_by_a_factor_is_an_error() -> None:
    with pytest.raises(InputError, match="size does not follow"):
        Meters().factor("size")
