"""Spoken words as a task: lengths, what training changes, what the command line says, what is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from equipoise.errors import InputError
from equipoise.generated.sounds import RATE, write_takes
from equipoise.workloads import check, family, load, load_task
from equipoise.workloads.speech import STEP, Scaled, Varied, speech_task
from equipoise.workloads.weights import packed


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_takes(tmp_path_factory.mktemp("speech") / "takes")


def test_samples_are_those_of_the_files(takes: Path) -> None:
    task = load_task(f"speech:{takes}")
    assert task.labels == ("0", "1", "2")
    assert task.sample == (9 * STEP,)  # 0.35 s at most
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 30, 30)
    inputs, targets = task.test.tensors()
    assert inputs.dtype == torch.float32
    raw = {file.name: wavfile.read(file)[1] for file in takes.glob("*.wav")}
    for place in range(5):
        whole = (inputs[place] * 32768).round().short().numpy()
        found = [
            name for name, wave in raw.items() if np.array_equal(whole[: len(wave)], wave) and not whole[len(wave) :].any()
        ]
        assert [name[0] for name in found] == [str(int(targets[place]))]
    assert not task.train.notes


def test_length_cuts_and_fills_and_says_so(takes: Path) -> None:
    short, long = speech_task(takes, length=0.2), speech_task(takes, length=1.0)
    assert (short.sample, long.sample) == ((5 * STEP,), (25 * STEP,))
    (note,) = short.train.notes
    assert "recordings are cut to 0.2 s; ?length= changes that" in note
    assert not long.train.notes
    assert not long.test.tensors()[0][:, 9 * STEP :].any()


def test_a_speaker_is_left_out(takes: Path) -> None:
    task = load_task(f"speech:{takes}?speaker=ann&length=0.3")
    assert (len(task.train), len(task.validation), len(task.test)) == (27, 15, 42)
    assert task.fingerprint != load_task(f"speech:{takes}?speaker=bob&length=0.3").fingerprint


def test_training_moves_scales_and_adds_noise() -> None:
    waves = torch.zeros(64, 2000)
    waves[:, 1000] = 0.5
    quiet = Varied(shift=100, gain_db=6.0, noise=0.0)(waves, torch.Generator().manual_seed(0))
    places, sizes = quiet.argmax(1), quiet.amax(1)
    assert (places.min() >= 900) & (places.max() <= 1100)
    assert len(places.unique()) > 30
    assert torch.equal((quiet != 0).sum(1), torch.ones(64, dtype=torch.long))  # what leaves on one side does not come back
    assert 0.5 / 10**0.3 - 1e-6 <= float(sizes.min()) < 0.3 < 0.8 < float(sizes.max()) <= 0.5 * 10**0.3 + 1e-6
    edge = torch.zeros(32, 50)
    edge[:, 0] = 1.0
    gone = Varied(shift=40, gain_db=0.0, noise=0.0)(edge, torch.Generator().manual_seed(1))
    assert set(gone.sum(1).tolist()) == {0.0, 1.0}
    noisy = Varied(shift=1, gain_db=0.0, noise=0.01)(torch.zeros(400, 2000), torch.Generator().manual_seed(0))
    deviations = noisy.std(1)
    assert 0.00009 < float(deviations.min()) < 0.0002
    assert 0.008 < float(deviations.max()) < 0.0102
    again, other = (Varied()(waves, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert torch.equal(again, Varied()(waves, torch.Generator().manual_seed(3)))
    assert not torch.equal(again, other)
    assert torch.equal(waves[:, 1000], torch.full((64,), 0.5))  # what was given is left as it is


def test_scaled_is_exact() -> None:
    whole = torch.tensor([[-32768, 0, 16384, 32767]], dtype=torch.int16)
    assert Scaled()(whole).tolist() == [[-1.0, 0.0, 0.5, 32767 / 32768]]


def test_what_was_trained_is_a_workload(takes: Path, tmp_path: Path) -> None:
    task = load_task(f"speech:{takes}")
    model = family("conformer").model({"width": 32, "depth": 1}, task, generator=torch.Generator().manual_seed(0))
    (tmp_path / "model.safetensors").write_bytes(packed(model))
    work = load(f"speech:{takes}?model=conformer:width=32,depth=1&weights={tmp_path / 'model.safetensors'}")
    check(work)
    inputs, _ = task.test.take(4).tensors()
    assert torch.equal(work.model(inputs), model.eval()(inputs))
    assert work.labels == ("0", "1", "2")
    with pytest.raises(InputError, match="weights"):
        load(f"speech:{takes}?model=conformer:width=48,depth=1&weights={tmp_path / 'model.safetensors'}")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("length=0", "seconds above 0"),
        ("length=nan", "seconds above 0"),
        ("length=900", "60 at most"),
        ("length=long", "a whole number"),
        ("speaker=carl", "speaker of"),
        ("rate=16000", "option of speech"),
    ],
)
def test_options_that_are_none(takes: Path, option: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("speaker of", "speaker in")):
        load_task(f"speech:{takes}?{option}")


def test_other_rates_are_told_by_the_task(tmp_path: Path) -> None:
    folder = write_takes(tmp_path / "takes")
    for number in range(14):
        rate, wave = wavfile.read(folder / f"0_ann_{number}.wav")
        assert rate == RATE
        wavfile.write(folder / f"0_ann_{number}.wav", 2 * RATE, np.repeat(wave, 2))
    task = speech_task(folder)
    assert task.train.notes == ("audio: 14 of 16000 Hz brought to 8000 Hz, of 84 files",)
    assert task.sample[0] == STEP * math.ceil(max(len(w) for _, w in map(wavfile.read, folder.glob("1_*.wav"))) / STEP)


@pytest.mark.data
def test_the_real_digits(data_folder: Path) -> None:
    path = data_folder / "spoken-digits.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    task = load_task(f"speech:{path}")
    assert (len(task.train), len(task.validation), len(task.test)) == (2400, 300, 300)
    assert task.labels == tuple("0123456789")
    assert task.test.targets().bincount().tolist() == [30] * 10
