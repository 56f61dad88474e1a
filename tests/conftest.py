"""What every room's tests share: one thread per math library, the data folder, a headless browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import databases
import pytest
from hypothesis import HealthCheck, settings

from equipoise.records import Knob
from equipoise.study.header import Header, Offered

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
settings.load_profile("steady")

for _pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before anything imports them
    os.environ.setdefault(_pool, "1")

SLOW_EXAMPLES = ("equipoise.verbs.profile.profile", "equipoise.runtimes.export.Exporter")
"""Docstrings whose example exports or times a model."""
LONG = ("test_tutorials.py", "test_wheel.py", "test_readme.py", "test_notebooks.py")
"""Files that take minutes with few tests."""
CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow examples; put long files and those with many slow tests first: no process is left with them at the end."""
    for item in items:
        if item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name not in LONG, -slow[item.path]))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree."""
    return CHECKOUT


@pytest.fixture(scope="session")
def server() -> Iterator[databases.Server]:
    """Give a PostgreSQL server of the tests' own; the test is skipped where PostgreSQL is not installed."""
    if databases.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with databases.served() as running:
        yield running


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets, from EQUIPOISE_DATA; the test is skipped where there is none."""
    folder = Path(os.environ.get("EQUIPOISE_DATA") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}; set EQUIPOISE_DATA")
    return folder


@pytest.fixture(scope="session")
def header() -> Callable[..., Header]:
    """Make the header of a study from its fields, and from the untouched plan as `space`."""

    def make(*, space: Mapping[str, int | str] | None = None, **fields: Any) -> Header:
        knobs = tuple(Offered(Knob(name, (choice,)), (name.partition(".")[2],)) for name, choice in (space or {}).items())
        given = {
            "workload": "digits",
            "name": "digits",
            "target": "onnxruntime:cpu?threads=1&batch=1",
            "budget": "",
            "time_s": 60.0,
            "seed": 0,
            "baseline": "",
            "metric": {"name": "accuracy", "unit": "points", "maximize": True},
            "space": knobs,
        }
        return Header(**{**given, **fields})

    return make


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call headless Chromium on an address; stdout is the page's DOM after its script ran, stderr its console."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("no chromium on this machine")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    common = [f"--{flag}" for flag in (*flags.split(), "disable-sync", "enable-logging=stderr", "log-level=0", "dump-dom")]
    runs = iter(range(1_000_000))

    def visit(address: str, *more: str) -> subprocess.CompletedProcess[str]:
        profile = tmp_path / f"profile{next(runs)}"
        command = [binary, *common, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", *more, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)

    return visit
