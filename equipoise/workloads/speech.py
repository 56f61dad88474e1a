"""Spoken words: which of some classes a recording is, or what was said in a row of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.workloads.audio_files import FULL, RATE, Recordings, Take, Wave, read_recordings
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.learned import learned
from equipoise.workloads.task import Task

STEP = 320
"""Samples to a multiple of which lengths are rounded up: 40 ms, what one frame of the family ``conformer`` stands for."""
COVERED = 0.99
"""Share of the training recordings that the usual length holds whole."""
LONGEST_S = 60.0
ROLES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Scaled:
    """16-bit samples (N, T) to floats in -1..1."""

    def __call__(self, waves: Tensor) -> Tensor:
        """Return the samples as floats."""
        return waves.float() / FULL


@dataclass(frozen=True)
class Varied:
    """Moves each recording in time, changes how loud it is, and adds a little noise.

    Attributes:
        shift: Samples by which it is moved at most, either way; silence comes in.
        gain_db: By how much it becomes louder or softer at most.
        noise: Largest deviation of the noise, whose level is drawn for each recording, even in decibels over a hundredfold.
    """

    shift: int = RATE // 10
    gain_db: float = 6.0
    noise: float = 0.01

    def __call__(self, waves: Tensor, generator: torch.Generator) -> Tensor:
        """Return waves (N, T) changed; the draws are made on the CPU."""
        n, length = waves.shape
        by = torch.randint(-self.shift, self.shift + 1, (n, 1), generator=generator)
        gain = 10 ** (self.gain_db * (2 * torch.rand(n, 1, generator=generator) - 1) / 20)
        level = self.noise * 10 ** (-2 * torch.rand(n, 1, generator=generator))
        noise = level * torch.randn(n, length, generator=generator)
        places = torch.arange(length) - by  # (N, T)
        inside = (places >= 0) & (places < length)
        moved = waves.gather(1, places.clamp(0, length - 1).to(waves.device))
        return torch.where(inside.to(waves.device), moved, 0.0) * gain.to(waves.device) + noise.to(waves.device)


def speech_task(path: Path, *, speaker: str = "", length: float | None = None, name: str = "speech") -> Task:
    """Return the task of telling which class a recording belongs to, from its samples (N, T) in -1..1 at `RATE`.

    Args:
        path: Folder or zip of .wav files; see `audio_files.read_recordings`.
        speaker: Whose takes are the test split, all of them and no other's.
        length: Seconds to which each is cut or filled up with silence; None holds `COVERED` of the training recordings.
        name: Of the task.
    Raises:
        InputError: The files cannot be used, or a length of no frame.
    """
    found = read_recordings(path, speaker=speaker)
    samples = _samples(found.of("train"), length)
    splits = {ROLES[role]: _split(found, found.of(role), samples) for role in ROLES if role != "val" or found.of(role)}
    cut = sum(len(take.wave) > samples for take in found.takes)
    notes = (
        *found.notes,
        *(
            (f"audio: {cut} of {len(found.takes)} recordings are cut to {samples / RATE:g} s; ?length= changes that",)
            if cut
            else ()
        ),
    )
    return Task.of(
        train=replace(splits["train"], notes=notes),
        validation=splits.get("validation"),
        test=splits["test"],
        augment=Varied(),
        outputs=len(found.classes),
        labels=found.classes,
        name=name,
    )


def speech_workload(path: Path, *, model: str, weights: Path, speaker: str = "", length: float | None = None) -> Workload:
    """Return the workload of recordings and of a family's model with the given weights.

    Args:
        path, speaker, length: As of `speech_task`.
        model: ``FAMILY``, or ``FAMILY:width=64,depth=3``.
        weights: State dict of it.
    Raises:
        InputError: The files or the weights cannot be used.
    """
    task = partial(speech_task, path, speaker=speaker, length=length)
    return learned(lambda family: task(), model, weights)


def _samples(train: list[Take], length: float | None) -> int:
    """Return how many samples a recording is brought to, a multiple of `STEP`."""
    if length is None:
        seconds = float(np.quantile([len(take.wave) for take in train], COVERED)) / RATE
    elif not (math.isfinite(length) and 0 < length <= LONGEST_S):
        raise must_be("length", f"seconds above 0, {LONGEST_S:g} at most", length, "Write for example length=1.")
    else:
        seconds = length
    return STEP * max(1, math.ceil(seconds * RATE / STEP - 1e-6))


def _split(found: Recordings, takes: list[Take], samples: int) -> Split:
    label = {kind: number for number, kind in enumerate(found.classes)}
    waves = torch.from_numpy(np.stack([fitted(take.wave, samples) for take in takes]))
    return Split.of((waves, torch.tensor([label[take.kind] for take in takes])), transform=Scaled())


def fitted(wave: Wave, samples: int) -> Wave:
    """Return a recording cut, or filled up with silence, to so many samples."""
    out = np.zeros(samples, np.int16)
    out[: len(wave)] = wave[:samples]
    return out
