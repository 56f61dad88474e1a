"""`equipoise train` as its user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from equipoise.errors import EXIT_BAD_INPUT, EXIT_OK, InputError
from equipoise.training import Recipe
from equipoise.verbs.train import recipe_of

COMMAND = [sys.executable, "-m", "equipoise", "train"]
WORDS = ["cnn", "digits", "--scale", "width=16,depth=3", "--epochs", "6", "--test", "--price-per-hour", "0.1"]


def train(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("train") / "run"
    done = train(*WORDS, "--store", str(store), "--json")
    assert done.returncode == EXIT_OK, done.stderr[-2000:]
    (store / "stdout.json").write_text(done.stdout)
    return store


@pytest.mark.slow
def test_digits_are_learned_and_everything_is_written_down(folder) -> None:
    found = json.loads((folder / "stdout.json").read_text())
    assert found["reached"]["test_quality"]["value"] > 85
    assert found["reached"]["train_cost"]["provenance"] == "estimated"
    assert found["reached"]["train_energy_j"]["provenance"] == "unavailable"
    assert found["reached"]["train_memory_bytes"]["provenance"] == "unavailable"  # on a CPU
    assert 0 < found["reached"]["utilization"]["value"] < 1
    assert found["diagnosis"]["verdict"]
    weights = {
        k: v for k, v in load_file(folder / "model.safetensors").items() if "running_" not in k and "num_batches" not in k
    }
    assert sum(v.numel() for v in weights.values()) == found["reached"]["params"]["value"]
    assert len((folder / "curve.csv").read_text().splitlines()) > 100
    assert "<html" in (folder / "report.html").read_text()[:200]
    assert json.loads((folder / "run.json").read_text())["curve"] == found["curve"]


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(folder) -> None:
    before = (folder / "curve.csv").read_bytes()
    again = train(*WORDS, "--store", str(folder), "--json")
    assert again.returncode == EXIT_OK
    assert json.loads(again.stdout)["curve"] == json.loads((folder / "stdout.json").read_text())["curve"]
    assert (folder / "curve.csv").read_bytes() == before


@pytest.mark.slow
def test_a_folder_of_another_run_is_left_alone(folder) -> None:
    before = (folder / "model.safetensors").read_bytes()
    done = train("cnn", "digits", "--scale", "width=8,depth=3", "--epochs", "6", "--store", str(folder))
    assert done.returncode == EXIT_BAD_INPUT
    assert "another" in done.stderr.lower()
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mpl", "digits"], "mlp"),
        (["mlp", "digits", "--scale", "widht=32"], "width"),
        (["mlp", "digits", "--scale", "width"], "width=32"),
        (["mlp", "digits", "--recipe", "optimizer=sdg"], "sgd"),
        (["mlp", "digits", "--recipe", "lrr=1"], "lr"),
        (["mlp", "digits", "--time", "soon"], "--time"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, words, told) -> None:
    done = train(*words, "--store", str(tmp_path / "run"))
    assert done.returncode == EXIT_BAD_INPUT
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_loss_that_diverges_is_told_with_its_step(tmp_path) -> None:
    words = ["mlp", "digits", "--recipe", "optimizer=sgd,lr=1e12,clip=none", "--epochs", "2"]
    done = train(*words, "--store", str(tmp_path / "run"))
    assert done.returncode != EXIT_OK
    assert "step" in done.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_recipes_are_read_from_text() -> None:
    found = recipe_of("optimizer=sgd, lr=0.1,ema=0.99, clip=none, nesterov=false", Recipe())
    assert (found.optimizer, found.lr, found.ema, found.clip, found.nesterov) == ("sgd", 0.1, 0.99, None, False)
    with pytest.raises(InputError, match="name=value"):
        recipe_of("sgd", Recipe())
