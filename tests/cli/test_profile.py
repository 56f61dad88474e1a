"""``equipoise profile`` on the user's own model: the table, the document, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError
from equipoise.measure.memory import PeakMemory
from equipoise.records import measured
from equipoise.runtimes.base import RUNTIMES
from equipoise.runtimes.torch_eager import TorchEager
from equipoise.verbs import profile as profiler

OWN = """
import torch
from torch import nn
from equipoise.workloads import Workload

def make_workload():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 10, generator=g), torch.arange(120) % 3
    model = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 3))
    return Workload(name="own [mlp]", model=model, train=(x[:80], y[:80]), test=(x[80:], y[80:]))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_model.py").write_text(OWN)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(profiler, "program_memory", lambda *_: PeakMemory(measured(7e6, "B"), measured(9e7, "B")))
    return f"{tmp_path / 'own_model.py'}:make_workload"


def test_the_document_of_an_mlp_10_50_3(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["profile", own, "--target", "torch", "--batch", "4", "--seconds", "0.5", "--watts-per-core", "4..9", "--json"]
    assert main([*words, "--price-per-hour", "0.1"]) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    assert (found["schema_version"], found["complete"]) == (1, True)
    assert (found["counts"]["params"], found["counts"]["macs"]) == (703, 650)
    (target,) = found["targets"]
    assert target["size_bytes"]["value"] > 703 * 4
    assert [timing["batch"] for timing in target["timings"]] == [1, 4]
    assert target["energy_j"]["provenance"] in ("estimated", "measured")
    assert target["timings"][1]["price_per_million"]["value"] > 0


def test_the_table_explains_every_dash(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", own, "--target", "torch", "--seconds", "0.2"]) == EXIT_OK
    said = capsys.readouterr().out
    for text in ("own [mlp]: 703 params, 650 MACs", "torch:cpu", "7 MB", "no price of the machine", "side by side"):
        assert text in said
    assert "price: unavailable" in said


def test_no_usable_target_is_a_failure_that_is_told(
    own: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("the model branches on values")

    monkeypatch.setattr(TorchEager, "compile", refuse)
    assert main(["profile", own, "--target", "torch"]) == EXIT_FAILED
    said = capsys.readouterr().out
    assert "703 params" in said
    assert "torch:cpu: the model branches on values" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--watts-per-core", "9..4"], "4..9"),
        (["--watts-per-core", "much"], "4..9"),
        (["--target", "onnxruntim"], "onnxruntime"),
        (["--target", "torch", "--batch", "0"], "batch"),
        (["--target", "torch", "--price-per-hour", "-1"], "--price-per-hour"),
        (["--target", "torch", "--seconds", "0"], "seconds"),
    ],
)
def test_bad_input_is_one_error(own: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", own, *words]) == EXIT_BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err


@pytest.mark.slow
def test_the_installed_command_profiles_on_every_runtime(own: str) -> None:
    words = [sys.executable, "-m", "equipoise", "profile", own, "--seconds", "2", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=True)
    found = json.loads(done.stdout)
    assert {target["target"].split(":")[0] for target in found["targets"]} == {row for row in RUNTIMES if ":" not in row}
    for target in found["targets"]:
        assert target["reason"] == "" or "not installed" in target["reason"]
        assert target["reason"] or target["memory"]["added"]["value"] > 0
