"""Ranks start, fail and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import rank_program
import torch
from rank_program import Case, go

from equipoise.errors import EquipoiseError, InputError
from equipoise.training.distribution import OneProcess
from equipoise.training.distribution.launch import connect, launch
from equipoise.training.distribution.ranks import LOST_TOUCH

SOON_S = 600.0
"""Long enough on a busy machine, and nothing like for ever: what never ends is what these tests look for."""


def program(folder: Path, *words: str) -> list[str]:
    return [sys.executable, rank_program.__file__, str(folder), *words]


def gone(folder: Path, within_s: float) -> bool:
    """Return whether both ranks have ended by then."""
    pids = [int((folder / f"pid{rank}").read_text()) for rank in range(2)]
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


def started(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until both ranks have made a few steps."""
    until = time.monotonic() + SOON_S
    while not all(
        (folder / f"step{rank}").exists() and int((folder / f"step{rank}").read_text() or 0) > 3 for rank in range(2)
    ):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)


def test_exit_codes_come_through() -> None:
    assert launch([sys.executable, "-c", "pass"], 2) == 0
    assert launch([sys.executable, "-c", "raise SystemExit(2)"], 2) == 2


def test_a_rank_that_fails_alone_is_named_and_ends_the_others() -> None:
    stuck = "import os, sys, time; os.environ['RANK'] == '1' and sys.exit('no room'); time.sleep(36000)"
    began = time.monotonic()
    with pytest.raises(EquipoiseError, match=r"rank 1 ended with exit code 1 \(no room\)"):
        launch([sys.executable, "-c", stuck], 3, grace_s=0.2)
    assert time.monotonic() - began < SOON_S


def test_what_cannot_be_joined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(connect(), OneProcess)
    with pytest.raises(InputError, match="torchrun --standalone"):
        connect("ddp")
    with pytest.raises(InputError, match="Did you mean 'fsdp'"):
        connect("fdsp")
    with pytest.raises(InputError, match="optimizer can be offloaded in single and ddp"):
        connect("fsdp", offload=["optimizer"])
    with pytest.raises(InputError, match="ranks must be at least 1"):
        launch([sys.executable], 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="ddp, fsdp or pipeline"):
        connect("single")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "pipeline"])
def test_a_killed_rank_ends_all_and_the_run_goes_on_from_its_checkpoint(tmp_path: Path, kind: str) -> None:
    with pytest.raises(EquipoiseError, match="rank 1 was killed by SIGKILL"):
        launch(program(tmp_path, "endless", kind, "5"), 2)
    assert gone(tmp_path, SOON_S)
    assert time.time() - (tmp_path / "step1").stat().st_mtime < SOON_S  # written just before the kill
    assert 3 < int((tmp_path / "step0").read_text()) < rank_program.STEPS
    (tmp_path / "finish").touch()
    assert launch(program(tmp_path, "endless", kind), 2) == 0
    expected = go(Case(OneProcess), tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "done.pt")["log"].tolist(), list(expected.log), rtol=1e-5, atol=0)


def test_a_rank_says_that_its_launcher_is_gone_while_torch_writes_its_traceback_elsewhere() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = os.environ | place | {"EQUIPOISE_LAUNCHER": str(gone.pid)}
    swapped = (  # as torch's hook for uncaught errors does
        "import io, sys, time; from equipoise.training.distribution.launch import connect; "
        "sys.stderr = io.StringIO(); connect('ddp'); time.sleep(3600)"
    )
    done = subprocess.run([sys.executable, "-c", swapped], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert "launcher of this rank is gone" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["launcher killed", "rank silent"])
def test_ranks_end_when_the_launcher_is_killed_or_a_rank_is_silent(tmp_path: Path, broken: str) -> None:
    start = "import sys; from equipoise.training.distribution.launch import launch; sys.exit(launch(sys.argv[1:], 2))"
    command = [sys.executable, "-c", start, *program(tmp_path, "endless", "ddp")]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "SILENCE_S": "12"})
    try:
        started(tmp_path, launcher)
        if broken == "launcher killed":
            launcher.kill()
        else:
            os.kill(int((tmp_path / "pid1").read_text()), signal.SIGSTOP)
        assert gone(tmp_path, SOON_S)
        _, said = launcher.communicate(timeout=SOON_S)
        first = "launcher of this rank is gone" if broken == "launcher killed" else LOST_TOUCH
        assert first in said or LOST_TOUCH in said  # rank 1 may have been first to notice
        assert launcher.returncode != 0
    finally:
        launcher.kill()
