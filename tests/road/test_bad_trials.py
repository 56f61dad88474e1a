"""What a trial may do to the process that it is made in: it fails with its reason, nothing of it stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dead_ends import MODULE

from equipoise import workloads
from equipoise.records import Plan, as_data
from equipoise.road import isolated as room
from equipoise.road.bench import Workbench
from equipoise.road.jobs import Job
from equipoise.runtimes import parse_targets
from equipoise.study.store import Store

pytestmark = pytest.mark.slow  # a process that loads torch for each that ends

FINE = "pass"
FLOOD = """
import sys
for _ in range(1000):
    sys.stdout.buffer.write(b"x" * (1 << 20))
print("the last words")
sys.stdout.flush()
os._exit(3)
"""
NOT_TEXT = 'os.write(1, bytes(range(128, 256)) + b" the last words"); os._exit(3)'
STUCK_LOADER = """
class Stuck:
    def __len__(self):
        return 8
    def __getitem__(self, row):
        Path(__file__).with_name(f"began-{os.getpid()}").touch()
        time.sleep(600)
list(torch.utils.data.DataLoader(Stuck(), num_workers=2))
"""
LEFT_BEHIND = """
import subprocess
left = subprocess.Popen(["sleep", "600"])
Path(__file__).with_name(f"began-{left.pid}").touch()
os._exit(3)
"""
FORKS = """
for _ in range(60):
    if os.fork() == 0:
        time.sleep(600)
    Path(__file__).with_name(f"began-{os.getpid()}").touch()
time.sleep(600)
"""
WORDLESS = """
import threading
class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no words")
    __repr__ = __reduce__ = __str__
raise Odd(threading.Lock(), lambda: 0)
"""
UNUSUAL = r'raise ValueError("caf\udce9 \x00 \u2028 end")'
STRICT = 'import warnings; warnings.simplefilter("error"); warnings.warn("odd")'
LOOSE = 'import warnings; warnings.warn("odd")'


class Victim:
    """A child, and the code that its model runs where its first layer was cut to 8."""

    def __init__(self, child: room.Child, code: Path, knob: str) -> None:
        self.child, self.knob, self._code = child, knob, code

    def tried(self, code: str) -> dict[str, Any]:
        """The answer to the evaluation that runs it."""
        self._code.write_text(code)
        args = {"plan": as_data(Plan({self.knob: 8})), "fidelity": "one-shot", "leg": 0, "predicted": {}}
        return dict(self.child.answer(Job("evaluation", "planted", args)))

    def began(self) -> list[int]:
        """The processes that the code noted."""
        return [int(file.name.partition("-")[2]) for file in self._code.parent.glob("began-*")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Victim, Store]]:
    folder = tmp_path_factory.mktemp("victim")
    file = folder / "work.py"
    file.write_text(MODULE.format(width=8))
    file.with_suffix(".end").write_text(FINE)
    with Store.open(folder / "store") as store:
        bench = Workbench(workloads.load(f"{file}:make"), parse_targets("onnxruntime"), store.blob)
        with room.isolated(bench, store.files, spec=f"{file}:make", seed=0, tell=lambda *_: None) as (child,):
            (knob,) = (k.name for k in child.facts().space.knobs if k.kind == "width" and k.name.endswith("a"))
            yield Victim(child, file.with_suffix(".end"), knob), store


@pytest.fixture
def victim(made: tuple[Victim, Store]) -> Iterator[Victim]:
    yield made[0]
    for file in made[0]._code.parent.glob("began-*"):
        file.unlink()


def lives(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int]) -> bool:
    until = time.monotonic() + 5.0
    while any(map(lives, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(lives, pids))


@pytest.mark.parametrize("code", [FLOOD, NOT_TEXT], ids=["a gigabyte", "no text"])
def test_whatever_is_printed_the_last_words_are_told_and_little_is_kept(victim: Victim, code: str) -> None:
    bad = victim.tried(code)
    assert "ended itself with exit code 3" in bad["died"]
    assert len(bad["died"]) < 2 * room.WORDS
    assert victim.child._printed.strip().endswith(b"the last words")
    assert len(victim.child._printed) <= room.KEPT
    assert "evaluation" in victim.tried(FINE)


@pytest.mark.parametrize("code", [STUCK_LOADER, LEFT_BEHIND], ids=["loaders that are stuck", "one left behind"])
def test_what_a_trial_started_ends_with_it(victim: Victim, code: str) -> None:
    over = threading.Event()

    def stop_the_stuck() -> None:
        while not victim.began() and not over.wait(0.05):
            pass
        if code == STUCK_LOADER:
            victim.child.stop()

    waiting = threading.Thread(target=stop_the_stuck)
    waiting.start()
    bad = victim.tried(code)
    over.set()
    waiting.join()
    assert ("SIGKILL" if code == STUCK_LOADER else "exit code 3") in bad["died"]
    assert victim.began()
    assert all_gone(victim.began())
    assert "evaluation" in victim.tried(FINE)


def test_a_trial_that_starts_processes_without_end_is_stopped_with_all_of_them(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim.child._ready()
    monkeypatch.setattr(room, "MOST_PROCESSES", 20)
    bad = victim.tried(FORKS)
    assert "started more than 20 others" in bad["died"]
    assert victim.began()
    assert all_gone(victim.began())


def test_what_a_trial_started_ends_with_the_parent_too(victim: Victim) -> None:
    process = victim.child._ready()
    held = os.getpgid(process.pid)
    assert held == process.pid != os.getpgrp()  # neither Ctrl-C at a terminal nor its end reaches one without the other
    assert process.stdin is not None
    process.stdin.close()  # as when the parent was killed
    assert all_gone([process.pid])


@pytest.mark.parametrize("code", [WORDLESS, UNUSUAL], ids=["without words", "unusual words"])
def test_whatever_is_raised_is_recorded_and_its_process_goes_on(victim: Victim, made: tuple[Victim, Store], code: str) -> None:
    pid = victim.child._ready().pid
    bad = victim.tried(code)
    name = "Odd" if code == WORDLESS else "ValueError"
    assert name in bad["failed"]
    assert made[1].put("planted", name, bad, seconds=0.0) == bad
    assert "evaluation" in victim.tried(FINE)
    assert victim.child._ready().pid == pid


def test_a_trial_that_makes_errors_of_warnings_makes_them_of_its_own(victim: Victim) -> None:
    pid = victim.child._ready().pid
    assert "UserWarning: odd" in victim.tried(STRICT)["failed"]
    assert "evaluation" in victim.tried(LOOSE)
    assert victim.child._ready().pid == pid
