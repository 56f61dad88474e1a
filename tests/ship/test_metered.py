"""What was measured because a budget names it is promised, shown, and read again: kept, broken, or not to be told from here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_verify import as_fast as as_fast  # finds the promised speed, without racing
from test_verify import forge

from equipoise.cli import main
from equipoise.measure import energy
from equipoise.meters import JOULES_PER_KWH, Meters
from equipoise.records import measured, unavailable
from equipoise.road import consumption
from equipoise.runtimes import Target
from equipoise.ship.agreement import contradictions
from equipoise.ship.artifact import Artifact, pack
from equipoise.ship.manifest import ManifestError, checked
from equipoise.ship.metered import figure
from equipoise.ship.verify import Verification, verify
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.workloads import Workload

BUDGET = "drop<=60, memory<=1GB, throughput>=1/s, price<=1000$"
MEMORY = measured(20e6, "B", low=19.7e6, high=20.3e6)


@pytest.mark.parametrize(
    ("value", "low", "high", "smaller", "at_home", "state"),
    [
        (20.2e6, 19.9e6, 20.5e6, True, True, "kept"),
        (15e6, 14.8e6, 15.2e6, True, True, "kept"),  # less than promised
        (20.5e6, 20.2e6, 20.8e6, True, True, "cannot tell"),  # the intervals meet
        (40e6, 39.6e6, 40.4e6, True, True, "broken"),  # promised at half
        (40e6, 39.6e6, 40.4e6, True, False, "cannot tell"),  # of another machine
        (20e6, None, None, True, True, "kept"),
        (40e6, None, None, True, True, "broken"),
        (15e6, 14.8e6, 15.2e6, False, True, "broken"),  # where more is better
        (40e6, 39.6e6, 40.4e6, False, True, "kept"),
    ],
)
def test_a_figure_is_held_to_another_reading(
    value: float, low: float | None, high: float | None, smaller: bool, at_home: bool, state: str
) -> None:
    found = measured(value, "B", low=low, high=high, note="a fresh process")
    check = figure("peak memory", MEMORY, found, smaller=smaller, at_home=at_home)
    assert (check.state, "a fresh process" in check.note) == (state, True)


def test_a_wide_interval_or_many_readings_buy_a_figure_nothing() -> None:
    found = measured(40e6, "B", low=39.6e6, high=40.4e6)
    wide = measured(20e6, "B", low=1.0, high=1e12)
    assert figure("peak memory", wide, found, smaller=True, at_home=True).state == "cannot tell"
    often = measured(40e6, "B", low=39.6e6, high=40.4e6, n=12)
    assert figure("peak memory", often, found, smaller=True, at_home=True).state == "broken"


def test_what_cannot_be_read_here_breaks_nothing() -> None:
    check = figure("energy", measured(1.0, "J"), unavailable("J", "no counter"), smaller=True, at_home=True)
    assert (check.state, check.note) == ("cannot tell", "no counter")


# ---- on files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(make_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A narrower model of a study whose budget names memory, throughput and price."""
    folder, meters = tmp_path_factory.mktemp("metered"), Meters(1, price_per_hour=3.6)
    study = make_study(folder / "study", Target("onnxruntime"), budget=BUDGET, meters=meters)
    with Store.open(study, readonly=True) as store:
        return pack(Study.read(store).evaluations[1], store, folder / "a")


@pytest.fixture
def copied(original: Artifact, tmp_path: Path) -> Artifact:
    return Artifact.load(shutil.copytree(original.path, tmp_path / "a"))


def states(found: Verification) -> dict[str, str]:
    return {check.name: check.state for check in found.checks if check.name.startswith(("budget", "peak", "energy", "agrees"))}


@pytest.mark.slow
def test_a_budget_of_memory_throughput_and_price_is_kept_to_the_end(
    original: Artifact, copied: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (original.manifest["bounds"], original.manifest["bounds_missed"]) == (BUDGET, "")
    card = (copied.path / "README.md").read_text()
    assert f"Promised: `{BUDGET}`." in card
    assert "Told, not measured: price_per_hour 3.6." in card
    assert all(f"| {label} |  | " in card for label in ("Peak memory", "Throughput", "Price per million"))
    assert main(["verify", str(copied.path), "--seconds", "2"]) == 0
    capsys.readouterr()
    found = {check["name"]: check for check in json.loads((copied.path / "verify.json").read_text())["checks"]}
    kept = ("peak memory", *(f"budget {word}" for word in ("memory", "throughput", "price")))
    assert {found[name]["state"] for name in kept} == {"kept"}
    assert "another differs by up to" in found["peak memory"]["note"]


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [True, False])
def test_memory_promised_at_half_is_broken(copied: Artifact, work: Workload, as_fast: None, trusted: bool) -> None:
    def halved(m: dict[str, Any]) -> None:
        figure = m["promise"]["peak_memory_bytes"]
        figure.update({end: figure[end] / 2 for end in ("value", "low", "high")})

    forge(copied, halved)
    if trusted:
        found = verify(copied.path, workload=work, seconds=0.1)
        assert [check.name for check in found.broken] == ["peak memory"]
    else:
        assert main(["verify", str(copied.path), "--seconds", "0.5", "--trust-nothing"]) == 4


@pytest.mark.slow
def test_a_bound_within_what_two_readings_differ_by_is_not_broken_by_noise(
    copied: Artifact, work: Workload, as_fast: None
) -> None:
    value = copied.promise["peak_memory_bytes"].get()
    asked = f"memory<={value + 1:.0f}B"
    forge(copied, lambda m: (m["study"].update(budget=asked), m.update(bounds=asked)))  # type: ignore[arg-type]
    assert states(verify(copied.path, workload=work, seconds=0.1)) == {
        "agrees with itself": "kept",
        "peak memory": "kept",
        "budget memory": "cannot tell",
    }


def with_energy(joules: float) -> Callable[[dict[str, Any]], None]:
    """Promise so much energy and the carbon that follows from it, as a machine with a counter would."""

    def edit(m: dict[str, Any]) -> None:
        asked = "energy<=1J, carbon<=1g"
        one = {"value": joules, "unit": "J", "provenance": "measured", "low": None, "high": None, "n": 10}
        m["promise"] |= {"energy_j": one, "carbon_g": {**one, "value": joules * 360 / JOULES_PER_KWH, "unit": "g"}}
        m["study"].update(budget=asked, told={**m["study"]["told"], "grid": 360.0})
        m.update(bounds=asked)

    return edit


@pytest.mark.slow
def test_energy_is_read_again_where_there_is_a_counter(
    copied: Artifact, work: Workload, as_fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(copied, with_energy(1e-12))
    monkeypatch.setattr(energy, "rapl", lambda: energy.Access(None, "no counter here"))
    found = verify(copied.path, workload=work, seconds=0.1)
    told = {"agrees with itself": "kept", "peak memory": "kept", "energy": "cannot tell"}
    assert states(found) == {**told, "budget energy": "cannot tell", "budget carbon": "cannot tell"}
    assert all("no counter here" in check.note for check in found.untold)

    reading = measured(1e-3, "J", low=0.9e-3, high=1.1e-3, n=10)
    monkeypatch.setattr(consumption.Consumption, "missing", lambda _: "")
    monkeypatch.setattr(consumption.Consumption, "read", lambda *_: reading)
    found = verify(copied.path, workload=work, seconds=0.1)
    assert states(found) == {**told, "energy": "broken", "budget energy": "kept", "budget carbon": "kept"}
    forge(copied, with_energy(1e-3))
    assert verify(copied.path, workload=work, seconds=0.1).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["study"].update(told={}), "price_per_hour, by which promised figures follow"),
        (lambda m: m["study"].update(told={"price_per_hour": 0.0}), "told.price_per_hour must be positive"),
        (lambda m: m["study"]["told"].update(grid=360.0), "price_per_hour, by which"),
        (lambda m: m["study"]["told"].update(batch=2), "price_per_hour, by which"),
        (lambda m: m["promise"]["peak_memory_bytes"].update(unit="J"), "unit must be B"),
        (lambda m: m["promise"]["peak_memory_bytes"].update(value=0), "positive"),
        (lambda m: m["promise"]["peak_memory_bytes"].update(low=None), "or none"),
        (lambda m: m["promise"]["peak_memory_bytes"].update(value=1), "holds its value"),
        (lambda m: m["promise"]["peak_memory_bytes"].update(n=0), "between 1 and"),
        (lambda m: m["promise"].update(carbon_g={**m["promise"]["price_per_million"], "unit": "g"}), "the energy that carbon"),
    ],
)
def test_what_cannot_be_is_refused(original: Artifact, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    manifest = json.loads(json.dumps(original.manifest))
    edit(manifest)
    with pytest.raises(ManifestError, match=message):
        checked(manifest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["study"]["told"].update(price_per_hour=1.8), "price_per_million.value does not follow from the latency"),
        (lambda m: m["promise"]["price_per_million"].update(low=None, high=None), "price_per_million.low"),
        (lambda m: m["promise"]["throughput_per_s"].update(n=3), "different samples"),
        (lambda m: m["promise"]["throughput_per_s"].update(high=1e12), "throughput_per_s.high"),
        (lambda m: m["promise"].pop("peak_memory_bytes"), "the figures hold"),
    ],
)
def test_what_does_not_follow_is_told(original: Artifact, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    manifest = json.loads(json.dumps(original.manifest))
    edit(manifest)
    assert any(message in fault for fault in contradictions(manifest))
    assert list(contradictions(original.manifest)) == []


def test_a_meter_that_stops_when_it_is_sure_may_take_fewer_readings() -> None:
    promised, found = (measured(5e-3, "s", low=4.9e-3, high=5.1e-3, n=n) for n in (12, 6))
    assert figure("prefill", promised, found, smaller=True, at_home=True).state == "kept"
    assert figure("prefill", replace(promised, n=60), found, smaller=True, at_home=True).state == "broken"
