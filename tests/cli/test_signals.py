"""A search that is told to end ends soon, leaves no process behind, and goes on from what was measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from equipoise.study.record import Study
from equipoise.study.store import Store

pytestmark = pytest.mark.slow
GRACE_S = 30.0


@pytest.mark.parametrize("how", [["--workers", "2"], []], ids=["two workers", "one process"])
@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)], ids=["term", "twice"]
)
def test_a_search_that_is_told_to_end(tmp_path: Path, signals: list[int], code: int, how: list[str]) -> None:
    """SIGTERM, as a scheduler gives before it kills; Ctrl-C twice, as of somebody in a hurry."""
    command = [sys.executable, "-m", "equipoise", "optimize", "digits", "--only", "width,bits", "--budget", "drop<=1"]
    command += ["--time", "300s", "--store", str(tmp_path / "study"), *how]
    marked = {**os.environ, "EQUIPOISE_TEST": str(tmp_path)}
    walker = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=marked
    )
    until = time.monotonic() + 240.0
    while time.monotonic() < until and walker.poll() is None and _recorded(tmp_path / "study") < 3:
        time.sleep(0.2)
    recorded = _recorded(tmp_path / "study")
    assert recorded >= 3
    for number in signals:
        os.killpg(walker.pid, number)  # as a terminal does
        time.sleep(0.3)
    _, said = walker.communicate(timeout=GRACE_S)
    ended = walker.returncode
    assert (ended if ended >= 0 else 128 - ended) == code, said  # as a shell tells it; the second may find Python at its end
    assert said.rstrip().endswith("what was measured is kept, the same command goes on from there")
    assert "Traceback" not in said
    until = time.monotonic() + 5.0
    while _marked(str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)
    assert _marked(str(tmp_path)) == []
    assert Study.load(tmp_path / "study").baseline.ok
    with Store.open(tmp_path / "study") as store:  # nobody holds it
        assert store.count("evaluation") >= recorded
        assert not list((tmp_path / "study" / "blobs").glob(".torn-*"))


def _marked(mark: str) -> list[int]:
    """The processes that descend from the search."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("EQUIPOISE_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _recorded(folder: Path) -> int:
    if not (folder / "study.db").is_file():
        return 0
    try:
        with Store.open(folder, create=False, readonly=True) as store:
            return store.count("evaluation")
    except ValueError:  # it has not begun
        return 0
