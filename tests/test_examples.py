"""The examples are what users copy: they must run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from equipoise.errors import InputError
from equipoise.generated.sounds import write_takes
from equipoise.workloads import check, load
from equipoise.workloads.audio_files import read_recordings
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


@pytest.mark.slow
def test_sounds_are_told_apart(checkout: Path) -> None:
    work = load(f"{checkout / 'examples' / 'speech.py'}:make_workload")
    check(work)
    assert work.quality() > 90
    assert work.labels == ("0", "1", "2")


def test_a_state_goes_from_chunk_to_chunk(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkout / "examples" / "silero.py"
    with _beside(path):
        module = _imported(path)
    monkeypatch.setenv("SILERO", str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match=r"SILERO must be the path of silero_vad_16k\.safetensors"):
        module.make_workload()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = module.Silero().eval()
        model.stft_conv.weight.normal_(0, 0.1)
    inputs, targets = module.chunks(model, read_recordings(write_takes(tmp_path / "takes", takes=14)).of("val"), 0)
    assert inputs["chunk"].shape[1:] == (576,)
    assert set(targets[:, 0].tolist()) == {0.0, 1.0}
    after = targets[:-1, 1:].unflatten(1, (2, 128))
    assert float((after == inputs["state"][1:]).flatten(1).all(1).float().mean()) > 0.5  # but where a chunk was left out
    with torch.no_grad():
        again = model(**inputs)
        forgetful = model(inputs["chunk"], torch.zeros_like(inputs["state"]))
    assert torch.allclose(again[:, 1:], targets[:, 1:], atol=1e-5)
    assert not torch.allclose(forgetful[:, 1:], targets[:, 1:], atol=1e-2)


@pytest.mark.slow
@pytest.mark.data
def test_silero_tells_speech_from_silence(checkout: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Path(os.environ.get("SILERO", "silero_vad_16k.safetensors"))
    if not weights.is_file():
        pytest.skip(f"no weights {weights}; set SILERO")
    monkeypatch.setenv("EQUIPOISE_DATA", str(data_folder))
    path = checkout / "examples" / "silero.py"
    with _beside(path):
        work = _imported(path).make_workload(limit=40)
    check(work)
    assert sum(p.numel() for p in work.model.parameters()) + 258 * 256 == 309_633
    assert work.quality() > 80


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


@pytest.mark.slow
def test_ten_genes_beat_their_random_start(checkout: Path) -> None:
    example = _imported(checkout / "examples" / "evolve.py")
    found = example.main(evaluations=60)
    assert example.volume(found.objectives) > 1.01 * example.volume(found.objectives[: found.history[0][0]])
    assert found.objectives[list(found.front), 0].max() > 95
