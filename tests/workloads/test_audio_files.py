"""Recordings: right values at any width and rate, the right split, and every fault named."""

from __future__ import annotations

import io
import struct
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from equipoise.errors import InputError
from equipoise.generated.sounds import RATE, SPEAKERS, chirp, write_takes
from equipoise.workloads.audio_files import FULL, decoded, read_recordings, resampled

SOUND = chirp(1, seconds=0.25, pitch=1.0)


def pcm(samples: np.ndarray, *, width: int, rate: int = RATE) -> bytes:
    """Write a .wav by the standard library, which is not what reads it; samples (T,) or (T, channels) in -1..1."""
    out, full = io.BytesIO(), 1 << (8 * width - 1)
    whole = (samples * full).round().clip(-full, full - 1).astype(np.int64)
    with wave.open(out, "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim > 1 else 1)
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            file.writeframes((whole + 128).astype(np.uint8).tobytes())
        else:
            file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=True) for v in whole.reshape(-1)))
    return out.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_gives_the_same_sound(width: int) -> None:
    found, rate = decoded(pcm(SOUND, width=width))
    assert rate == RATE
    assert np.abs(found - SOUND).max() <= 1 / (1 << (8 * width - 1))
    assert np.abs(found + SOUND).max() > 0.1  # a sign that is wrong would be seen


def test_floats_and_channels() -> None:
    file = io.BytesIO()
    wavfile.write(file, RATE, SOUND.astype(np.float32))
    assert np.allclose(decoded(file.getvalue())[0], SOUND, atol=1e-6)
    both = np.stack((SOUND, -SOUND / 2), 1)
    assert np.allclose(decoded(pcm(both, width=2))[0], SOUND / 4, atol=1e-4)


def test_another_rate_keeps_the_sound() -> None:
    """A tone sampled twice as often, and one of 11025 Hz, become what they are at 8000; one above half the rate goes."""
    for rate in (16000, 11025, 44100):
        found = resampled(chirp(1, seconds=0.25, pitch=1.0, rate=rate), rate)
        assert len(found) == pytest.approx(len(SOUND), abs=2)
        middle = slice(200, 1800)
        assert np.abs(found[middle] - SOUND[middle]).max() < 0.01
    high = np.sin(2 * np.pi * 6000 * np.arange(4000) / 16000)
    assert np.abs(resampled(high, 16000)[100:-100]).max() < 0.02
    assert np.abs(high[::2]).max() > 0.9  # every second sample alone would hear it as a tone of 2000 Hz


def test_takes_are_shared_out_by_number_or_by_speaker(tmp_path: Path) -> None:
    folder = write_takes(tmp_path / "takes")
    found = read_recordings(folder)
    assert found.classes == ("0", "1", "2")
    assert {role: len(found.of(role)) for role in ("train", "val", "test")} == {"train": 24, "val": 30, "test": 30}
    left = read_recordings(folder, speaker="bob")
    assert {take.speaker for take in left.of("test")} == {"bob"}
    assert {take.speaker for role in ("train", "val") for take in left.of(role)} == {"ann"}
    assert {role: len(left.of(role)) for role in ("train", "val", "test")} == {"train": 27, "val": 15, "test": 42}
    first = next(take for take in found.takes if (take.role, take.kind, take.speaker) == ("test", "1", "ann"))
    rate, raw = wavfile.read(folder / "1_ann_0.wav")
    assert rate == RATE
    assert np.array_equal(first.wave, raw)


def test_a_folder_by_role_and_a_zip_of_it(tmp_path: Path) -> None:
    takes = write_takes(tmp_path / "takes", takes=6)
    root = tmp_path / "set"
    for file in sorted(takes.iterdir()):
        kind, who, number = file.stem.split("_")
        place = root / ("test" if number == "0" else "train") / kind
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{who}{number}.WAV").write_bytes(file.read_bytes())
    (root / "train" / "0" / ".hidden.wav").write_text("x")
    (root / "train" / "0" / "notes.txt").write_text("x")
    zipped = tmp_path / "set.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, Path("top") / file.relative_to(root))
    for path in (root, zipped):
        found = read_recordings(path)
        assert (len(found.of("train")), len(found.of("test"))) == (30, 6)
        assert found.classes == ("0", "1", "2")
        assert not found.notes
    with pytest.raises(InputError, match="speaker must be left out for data that are laid out by role"):
        read_recordings(root, speaker=SPEAKERS[0])


def test_other_rates_are_told(tmp_path: Path) -> None:
    folder = write_takes(tmp_path / "takes")
    (folder / "0_ann_12.wav").write_bytes(pcm(chirp(0, seconds=0.25, pitch=1.0, rate=16000), width=2, rate=16000))
    found = read_recordings(folder)
    assert found.notes == ("audio: 1 of 16000 Hz brought to 8000 Hz, of 84 files",)
    assert max(len(take.wave) for take in found.takes) < 0.36 * RATE
    assert max(np.abs(take.wave.astype(int)).max() for take in found.takes) < FULL / 2


def test_what_is_wrong_is_told_together(tmp_path: Path) -> None:
    folder = write_takes(tmp_path / "takes")
    good = (folder / "1_ann_1.wav").read_bytes()
    (folder / "0_ann_0.wav").write_bytes(b"no sound")
    (folder / "0_ann_1.wav").write_bytes(good[: len(good) // 2])
    (folder / "0_ann_2.wav").write_bytes(b"")
    (folder / "0_ann_3.wav").write_bytes(pcm(np.zeros(0), width=2))
    law = bytearray(good)
    struct.pack_into("<H", law, 20, 7)  # mu-law, which a telephone writes
    (folder / "0_ann_4.wav").write_bytes(bytes(law))
    with pytest.raises(InputError, match=r"5 broken: .*0_ann_0.wav") as caught:
        read_recordings(folder)
    for number in range(5):
        assert f"0_ann_{number}.wav" in str(caught.value)
    assert "has no samples" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "none", "an existing folder or zip"),
        (lambda root: _file(root / "a.zip", b"PK no zip"), "a readable zip"),
        (lambda root: root, "some under train/<class>/"),
        (lambda root: write_takes(root / "t", classes=1), "at least two"),
        (lambda root: write_takes(root / "t", takes=5), "some under train/<class>/"),
    ],
)
def test_wrong_folders(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=message):
        read_recordings(make(tmp_path))


def test_an_unknown_speaker_is_told_the_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'ann'"):
        read_recordings(write_takes(tmp_path / "takes"), speaker="anna")


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
