"""The examples are what users copy: they must run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from equipoise.workloads import check, load
from equipoise.workloads.spec import _beside, _imported


def test_tabular_model_trains_and_checks(checkout: Path) -> None:
    work = load(f"{checkout / 'examples' / 'tabular.py'}:make_workload")
    check(work)
    assert work.quality() > 90
    assert work.example.shape == (2, 30)


def test_recommender_trains_and_checks(checkout: Path) -> None:
    work = load(f"{checkout / 'examples' / 'recommend.py'}:make_workload")
    check(work)
    assert work.metric.name == "HR@10"
    assert work.quality() > 75  # ten of forty items, guessed: 25


@pytest.mark.data
def test_text_model_in_small(checkout: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(data_folder))
    path = checkout / "examples" / "sentiment.py"
    with _beside(path):
        work = _imported(path).make_workload(limit=600, epochs=2)
    check(work)
    assert work.example.dtype == torch.int64
    assert len(work.test) == 600
    assert work.quality() > 50


@pytest.mark.slow
@pytest.mark.data
def test_text_model_reaches_its_accuracy(checkout: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(data_folder))
    work = load(f"{checkout / 'examples' / 'sentiment.py'}:make_workload")
    check(work)
    assert work.quality() > 76
