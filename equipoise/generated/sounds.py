"""Sounds in place of words: each class a chirp of its own, by two "speakers" of unlike pitch, laid out as recordings are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.io import wavfile

RATE = 8000
"""Samples a second."""
SPEAKERS = ("ann", "bob")


def chirp(kind: int, *, seconds: float, pitch: float, rate: int = RATE) -> npt.NDArray[np.float64]:
    """Return a tone (T,) in -0.3..0.3 that rises or falls from a note of the class; `pitch` is the speaker's."""
    time = np.arange(round(seconds * rate)) / rate
    start, slope = pitch * (300 + 350 * kind), (-400.0, 0.0, 700.0)[kind % 3]
    sound: npt.NDArray[np.float64] = 0.3 * np.hanning(len(time)) * np.sin(2 * np.pi * (start * time + slope * time**2 / 2))
    return sound


def write(folder: Path) -> Path:
    """Write three classes of them, and return the folder."""
    return write_takes(folder)


def write_takes(folder: Path, *, classes: int = 3, takes: int = 14, seed: int = 0) -> Path:
    """Write ``<class>_<speaker>_<number>.wav`` of 0.2 to 0.35 s, with a little noise, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for kind in range(classes):
        for who, name in enumerate(SPEAKERS):
            for number in range(takes):
                sound = chirp(kind, seconds=draw.uniform(0.2, 0.35), pitch=draw.uniform(0.95, 1.05) * (1 + 0.15 * who))
                sound = sound * draw.uniform(0.3, 1.0) + 0.003 * draw.standard_normal(len(sound))
                wavfile.write(folder / f"{kind}_{name}_{number}.wav", RATE, (sound * 32767).astype(np.int16))
    return folder
