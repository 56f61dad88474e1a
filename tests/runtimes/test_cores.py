"""A process uses as many cores as it was given, and no more than there are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from equipoise.runtimes.cpu import SHARE, cores


@pytest.mark.parametrize(("said", "wanted"), [("1", 1), ("0", 1), ("1000000", None), ("", None), ("many", None), ("-1", None)])
def test_a_share_of_the_cores_is_kept(monkeypatch: pytest.MonkeyPatch, said: str, wanted: int | None) -> None:
    monkeypatch.delenv(SHARE, raising=False)
    there = cores()
    monkeypatch.setenv(SHARE, said)
    assert cores() == (there if wanted is None else wanted)


def test_a_child_of_two_is_given_half(tmp_path) -> None:
    code = "from equipoise.runtimes.cpu import cores; print(cores())"
    env = {**os.environ, SHARE: "1"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout == "1\n"
