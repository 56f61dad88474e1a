"""Recordings, .wav in a folder or a zip: ``train/<class>/*``, ``test/<class>/*``, or ``<class>_<speaker>_<number>.wav``."""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from equipoise.errors import must_be, unknown
from equipoise.workloads.image_files import names_in, reading
from equipoise.workloads.image_layout import Member, classes, members_of

Wave = npt.NDArray[np.int16]

RATE = 8000
"""Samples a second that all recordings are brought to: a telephone's, which holds what speech needs."""
SUFFIXES = (".wav",)
FULL = 1 << 15
"""What stands for 1 in 16 bits."""
TAKE = re.compile(r"(?P<kind>[^_/]+)_(?P<speaker>[^/]+)_(?P<number>\d+)\.wav$", re.IGNORECASE)
TESTED, HELD = 5, 10
"""Of each class and speaker the takes below the first are the test split, those up to the second the validation split."""
SHOWN = 5
SHAPE = "Put .wav files under train/<class>/ and test/<class>/, or call them <class>_<speaker>_<number>.wav."
BROKEN = (OSError, ValueError, RuntimeError, LookupError, TypeError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile)
"""What readers of damaged files raise."""


@dataclass(frozen=True, eq=False)
class Take:
    """One recording: its role (``train``, ``val``, ``test``), its class and who spoke (empty where that is not told), int16."""

    role: str
    kind: str
    speaker: str
    wave: Wave


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings at `RATE` by role, classes in the order of their labels, and what was done to the files."""

    takes: tuple[Take, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def of(self, role: str) -> list[Take]:
        """Return the takes of a role."""
        return [take for take in self.takes if take.role == role]


def read_recordings(path: Path, *, speaker: str = "") -> Recordings:
    """Read every .wav of a folder or a zip; several channels are averaged, other rates brought to `RATE`.

    Args:
        path: Folder, or zip of one, in one of two layouts. By role: ``train/<class>/``, ``test/<class>/``, perhaps
            ``val/<class>/``. By name: ``<class>_<speaker>_<number>.wav``, of which takes 0-4 of each class and speaker are the
            test split and takes 5-9 the validation split.
        speaker: Of names: all takes of this one are the test split, and no other; empty leaves it at the takes.
    Raises:
        InputError: Not a folder or zip of recordings, an unknown speaker, no training or test data, one class only, or files
            that are damaged, empty or of another form (named, all in one error).
    """
    names = names_in(path, what="audio", remedy=SHAPE)
    with reading(path) as read:
        return _read(names, read, path, speaker)


def decoded(content: bytes) -> tuple[npt.NDArray[np.float64], int]:
    """Return the samples (T,) of a .wav in -1..1, its channels averaged, and how many there are a second.

    Raises:
        ValueError: It is cut short, has no sample, or is of a form that is not read.
    """
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("error", wavfile.WavFileWarning)  # a file that ends early
        warnings.filterwarnings("ignore", "Chunk", wavfile.WavFileWarning)  # a title, a tool's own notes
        try:
            rate, found = wavfile.read(io.BytesIO(content))
        except wavfile.WavFileWarning as error:
            raise ValueError(str(error)) from error
    if not found.size or rate < 1:
        raise ValueError("it has no samples")
    if found.dtype == np.uint8:
        samples = (found.astype(np.float64) - 128) / 128
    elif found.dtype.kind == "i":  # 24 bits come as the upper ones of 32
        samples = found / -float(np.iinfo(found.dtype).min)
    else:
        samples = found.astype(np.float64)
    if not np.isfinite(samples).all():
        raise ValueError("it holds NaN or infinity")
    return samples.mean(1) if samples.ndim > 1 else samples, int(rate)


def resampled(samples: npt.NDArray[np.float64], rate: int, wanted: int = RATE) -> npt.NDArray[np.float64]:
    """Return samples (T,) of one rate at another, without aliasing (a polyphase filter)."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    found: npt.NDArray[np.float64] = resample_poly(samples, wanted // common, rate // common)
    return found


def _read(names: Sequence[str], read: Callable[[str], bytes], path: Path, speaker: str) -> Recordings:
    """Read all that is laid out in one of the two ways; all that are wrong are told together."""
    by_role = [(member, "") for member in members_of(list(names), SUFFIXES)]
    members = by_role or list(_named(names, path, speaker))
    if by_role and speaker:
        raise must_be("speaker", "left out for data that are laid out by role", speaker, SHAPE)
    kinds = classes([member for member, _ in members], path, what="audio", remedy=SHAPE)
    takes, bad, rates = list[Take](), list[str](), Counter[int]()
    for (role, kind, name), who in members:
        try:
            samples, rate = decoded(read(name))
            wave = resampled(samples, rate)
        except BROKEN as error:
            lines = str(error).strip().splitlines()
            bad.append(f"{name} ({lines[0] if lines else type(error).__name__})")
            continue
        rates[rate] += 1
        takes.append(Take(role, kind, who, (wave * FULL).round().clip(-FULL, FULL - 1).astype(np.int16)))
    if bad:
        found = f"{len(bad)} broken: {'; '.join(bad[:SHOWN])}"
        raise must_be(f"audio in {path}", "readable .wav files", found, "Replace, convert or delete them.")
    return Recordings(tuple(takes), kinds, tuple(_told(rates)))


def _named(names: Iterable[str], path: Path, speaker: str) -> Iterable[tuple[Member, str]]:
    """Yield role, class and name of each take, and its speaker."""
    shown = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]
    found = [(name, take) for name in shown if (take := TAKE.search(name))]
    speakers = sorted({take["speaker"] for _, take in found})
    if speaker and speakers and speaker not in speakers:
        raise unknown(f"speaker in {path}", speaker, speakers)
    for name, take in found:
        number = int(take["number"])
        tested = take["speaker"] == speaker if speaker else number < TESTED
        held = not tested and (number < HELD - TESTED if speaker else number < HELD)
        yield ("test" if tested else "val" if held else "train", take["kind"], name), take["speaker"]


def _told(rates: Counter[int]) -> Iterable[str]:
    """Say which files were resampled."""
    others = {rate: count for rate, count in rates.items() if rate != RATE}
    if others:
        which = ", ".join(f"{count} of {rate} Hz" for rate, count in sorted(others.items()))
        yield f"audio: {which} brought to {RATE} Hz, of {sum(rates.values())} files"
