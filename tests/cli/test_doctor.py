"""What doctor tells, held against the modules that act on it."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from equipoise.cli import doctor, main
from equipoise.errors import EXIT_OK
from equipoise.measure import energy
from equipoise.measure.energy import Access
from equipoise.runtimes import cpu
from equipoise.runtimes.base import RUNTIMES, get


def test_the_document_agrees_with_what_the_runtimes_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert set(found["runtimes"]) == set(RUNTIMES)
    for name, runtime in found["runtimes"].items():
        assert runtime["reason"] == get(name).unavailable()
        assert runtime["available"] == (not runtime["reason"])
        assert (name in found["int8"]) == (8 in runtime["bits"])
    assert found["machine"]["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    assert found["disk"]["free_bytes"] > 0


@pytest.mark.parametrize(("exact", "bits"), [(True, "8-bit weights"), (False, "7-bit weights")])
def test_the_scheme_is_the_one_for_this_cpu(exact: bool, bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_exact_int8", lambda: exact)
    schemes = {name: way for name, way in doctor.examine()["int8"].items() if way != doctor.XNNPACK}
    assert schemes
    assert all(bits in scheme["scheme"] for scheme in schemes.values())
    assert all(("overflow" in scheme["why"]) != exact for scheme in schemes.values())


def test_the_table_names_every_runtime_meter_and_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "rapl", lambda: Access(None, "counters for root only"))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == EXIT_OK
    said = capsys.readouterr().out
    for word in (*RUNTIMES, "RAPL", "NVML", "SQLite", "extra openvino", "counters for root only"):
        assert word in said


def test_a_missing_package_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["torch>=2", 'no-such-thing>=1; extra == "odd"', 'pytest; extra == "dev"']
    )
    odd, dev = doctor.extras()
    assert odd == {
        "extra": "odd",
        "packages": {"no-such-thing": None},
        "installed": False,
        "pip": 'pip install "equipoise[odd]"',
    }
    assert dev["installed"]


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["doctor", "--json"])
    assert list(tmp_path.iterdir()) == []
