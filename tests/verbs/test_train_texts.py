"""`train` on texts: the report by class, the notes on the data, and what is written beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from polar import write_polar

from equipoise.cli import main
from equipoise.verbs.train import train
from equipoise.workloads import Task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_polar(tmp_path_factory.mktemp("polar"), train=200, dev=40, test=40)


def test_the_report_by_class(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "bag", f"sentiment:{folder}?length=12", "--epochs", "1", "--store", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    told = found["classification"]
    assert told["split"] == "test"
    assert sum(map(sum, told["confusion"])) == told["macro"]["support"] == 40
    assert 100 * told["accuracy"] == pytest.approx(found["reached"]["test_quality"]["value"])
    assert [row["name"] for row in told["classes"]] == ["0", "1"]
    assert "kept as given" in found["notes"][0]
    tokens = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    assert tokens["model"]["type"] == "WordLevel"
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == ["0", "1"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How each class is told" in page
    assert f"{100 * told['macro']['f1']:.2f}" in page
    assert main([*words, "--test"]) == 0  # once more, in words: nothing is trained again
    assert "precision  recall      f1  support" in capsys.readouterr().out


def test_without_the_test_split_it_is_of_the_validation_split(folder: Path, tmp_path: Path) -> None:
    found = train("bag", f"sentiment:{folder}?length=12", store=tmp_path / "run", steps=3)
    assert found.classification is not None
    assert found.classification.split == "validation"
    assert found.classification.macro.support == 40


def test_values_have_no_classes(tmp_path: Path) -> None:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    task = Task.of(train=(x[:80], x[:80, :1]), test=(x[80:], x[80:, :1]), metric="mse", name="values")
    found = train("mlp", task, store=tmp_path / "run", steps=3)
    assert found.classification is None
    assert found.summary()["classification"] is None
