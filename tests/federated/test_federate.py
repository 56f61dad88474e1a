"""`equipoise federate` as its user runs it: written down, killed and gone on with, refused in one sentence."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from clouds import SGD, clouds
from safetensors.torch import load_file

import equipoise as eq
from equipoise.cli import main
from equipoise.errors import EquipoiseError, InputError
from equipoise.federated import Terms
from equipoise.federated.ledger import Round
from equipoise.federated.terms import Faults
from equipoise.training import Recipe

SMALL = Terms(clients=4, rounds=4, alpha=1.0)


def run(store: Path, terms: Terms = SMALL, **given: Any) -> Any:
    return eq.federate("mlp", clouds(), {"width": 16, "depth": 2}, store=store, terms=terms, recipe=SGD, **given)


def test_everything_is_written_down(tmp_path: Path) -> None:
    seen: list[Round] = []
    found = run(tmp_path / "a", test=True, central=True, on_round=seen.append)
    told = json.loads((tmp_path / "a" / "run.json").read_text())
    assert told["reached"]["quality"]["value"] == found.rounds[-1].quality == seen[-1].quality
    assert {"test_quality", "central_quality", "central_test_quality"} <= told["reached"].keys()
    assert told["privacy"] == "no privacy guarantee: there is no noise"
    assert told["rounds"][0]["shares"][0]["up_bytes"] > 0
    rows = list(csv.DictReader((tmp_path / "a" / "rounds.csv").read_text().splitlines()))
    assert [int(row["round"]) for row in rows] == [1, 2, 3, 4]
    assert all(int(row["counted"]) == 4 and int(row["up_bytes"]) > 0 for row in rows)
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in found.model.state_dict().items())
    assert "central training" in found.sentence()
    assert not (tmp_path / "a" / "noise.key").exists()


def curve(found: Any) -> list[tuple[float, float]]:
    return [(one.quality, one.validation_loss) for one in found.rounds]


@pytest.mark.parametrize("given", [{}, {"strategy": "scaffold"}, {"bits": 8}, {"strategy": "fedadam:lr=0.1"}])
def test_a_server_that_stopped_after_any_round_goes_on_to_the_same_curve(tmp_path: Path, given: dict[str, Any]) -> None:
    terms = Terms(**{"clients": 4, "rounds": 4, "alpha": 1.0, "share": 0.5, **given})
    whole = run(tmp_path / "whole", terms)

    def stop(one: Round) -> None:
        if one.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", terms, on_round=stop)
    made: list[int] = []
    again = run(tmp_path / "parts", terms, on_round=lambda one: made.append(one.number))
    assert made == [3, 4]
    assert curve(again) == curve(whole)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    assert curve(run(tmp_path / "parts", terms)) == curve(whole)  # nothing is done a third time


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(
        InputError, match=r"store must be the folder of this same run; got .* of which terms\.alpha is not the same"
    ):
        run(tmp_path, Terms(clients=4, rounds=4, alpha=2.0))


def test_without_a_quorum_every_round_before_is_kept(tmp_path: Path) -> None:
    terms = Terms(clients=4, rounds=4, quorum=1.0, faults=Faults(replay=1))  # whose first answer is a good one
    for made in (1, 2):
        with pytest.raises(EquipoiseError, match=f"round {made + 1} must have answers of 4 of 4 clients; got 3"):
            run(tmp_path, terms)
        assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 1 + made


def test_noise_is_accounted_for_and_its_key_is_the_servers(tmp_path: Path) -> None:
    terms = Terms(clients=4, rounds=3, clip=1.0, noise=1.0, share=0.5, delta=0.01)
    found = run(tmp_path, terms)
    spent = [one.epsilon for one in found.rounds]
    assert spent == sorted(spent)
    assert f"({spent[-1]:.3g}, 0.01)-differential privacy" in found.privacy
    key = tmp_path / "noise.key"
    assert key.stat().st_mode & 0o077 == 0
    assert key.read_bytes().hex() not in (tmp_path / "run.json").read_text()
    key.unlink()
    (tmp_path / "checkpoint.safetensors").unlink()
    assert curve(run(tmp_path, terms)) != curve(found)  # the seed of the run does not tell the noise


def test_what_cannot_be_used_is_told_before_any_round(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clients must be at most"):
        run(tmp_path, Terms(clients=100))
    with pytest.raises(InputError, match="family and task must be names"):
        run(tmp_path, processes=True)
    with pytest.raises(InputError, match="recipe must be plain SGD for scaffold; got 'muon"):
        eq.federate("mlp", clouds(), store=tmp_path, terms=Terms(strategy="scaffold"), recipe=Recipe(optimizer="muon"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--clients", "0"], "--clients must be a whole number of at least 1"),
        (["--strategy", "fedavgg"], "Did you mean 'fedavg'"),
        (["--noise", "1"], "--clip must be given where there is noise"),
        (["--ratios", "1,half"], "--ratios must be fractions"),
        (["--rehearse", "dye=1"], "Did you mean 'die'"),
        (["--bits", "16"], "--bits must be 8 or 32"),
        (["--clients", "500"], "--clients must be at most"),
    ],
)
def test_bad_words_end_in_one_sentence(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federate", "mlp", "digits", "--store", str(tmp_path / "s"), "--quiet", *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


def test_the_command_prints_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["federate", "mlp", "digits", "--scale", "width=16,depth=1", "--clients", "3", "--rounds", "1"]
    assert main([*words, "--store", str(tmp_path / "s")]) == 0
    said = capsys.readouterr()
    assert "on validation data after 1 round of 3 clients" in said.out
    assert "round 1: quality" in said.err
    assert main([*words, "--store", str(tmp_path / "s"), "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["terms"]["clients"] == 3
    assert said.err == ""


@pytest.mark.slow
def test_processes_do_what_one_process_does_and_a_killed_server_goes_on(tmp_path: Path) -> None:
    words = ["federate", "mlp", "digits", "--scale", "width=16,depth=1", "--clients", "3", "--rounds", "3", "--quorum", "1"]
    assert main([*words, "--store", str(tmp_path / "one"), "--quiet"]) == 0
    command = [sys.executable, "-m", "equipoise", *words, "--store", str(tmp_path / "many"), "--processes"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table, began = tmp_path / "many" / "rounds.csv", time.monotonic()
    while not table.is_file() and time.monotonic() - began < 600:
        time.sleep(0.05)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert subprocess.run(command, capture_output=True, timeout=900).returncode == 0
    here, there = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "many"))
    assert [r["validation_loss"] for r in here["rounds"]] == [r["validation_loss"] for r in there["rounds"]]
    one, many = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "many"))
    assert all(torch.equal(one[name], value) for name, value in many.items())
