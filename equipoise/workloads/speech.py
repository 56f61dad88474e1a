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
from equipoise.workloads.ctc import WordErrors, ctc_loss
from equipoise.workloads.data import Split
from equipoise.workloads.learned import learned
from equipoise.workloads.task import Task

STEP = 320
"""Samples to a multiple of which lengths are rounded up: 40 ms, what one frame of the family ``conformer`` stands for."""
COVERED = 0.99
"""Share of the training recordings that the usual length holds whole."""
LONGEST_S = 60.0
ROOMY = 0.9
"""A row of joined recordings usually has room for so many of this quantile's length."""
GAP_S = 0.1
TRIES = 200
BLANK = "-"
"""Name of the class that says nothing."""
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


def speech_task(path: Path, *, speaker: str = "", length: float | None = None, joined: int = 1, name: str = "speech") -> Task:
    """Return the task of telling what was said, from samples (N, T) in -1..1 at `RATE`.

    Args:
        path: Folder or zip of .wav files; see `audio_files.read_recordings`.
        speaker: Whose takes are the test split, all of them and no other's.
        length: Seconds to which each is cut or filled up with silence; None holds `COVERED` of the training recordings.
        joined: How many recordings of one speaker are put in a row, silence of up to `GAP_S` before each: what was said is then
            a row of classes, the loss CTC, and quality the word error rate. 1: each alone, and its class.
        name: Of the task.
    Raises:
        InputError: The files cannot be used, or a length of no frame.
    """
    if joined < 1:
        raise must_be("joined", "a whole number of at least 1", joined, "Write for example joined=4.")
    found = read_recordings(path, speaker=speaker)
    if joined > 1:
        return _row_task(found, joined, length, name)
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


def speech_workload(
    path: Path, *, model: str, weights: Path, speaker: str = "", length: float | None = None, joined: int = 1
) -> Workload:
    """Return the workload of recordings and of a family's model with the given weights.

    Args:
        path, speaker, length, joined: As of `speech_task`.
        model: ``FAMILY``, or ``FAMILY:width=64,depth=3``.
        weights: State dict of it.
    Raises:
        InputError: The files or the weights cannot be used.
    """
    task = partial(speech_task, path, speaker=speaker, length=length, joined=joined)
    return learned(lambda family: task(), model, weights)


def _row_task(found: Recordings, joined: int, length: float | None, name: str) -> Task:
    """The task of telling a row of classes; as many rows of each role as it has recordings."""
    ready = [len(take.wave) for take in found.of("train")]
    usual = joined * float(np.quantile(ready, ROOMY)) / RATE
    samples = _samples(found.of("train"), min(usual, LONGEST_S) if length is None else length)
    splits = {ROLES[role]: _rows(found, role, joined, samples) for role in ROLES if found.of(role)}
    return Task.of(
        train=replace(splits["train"], notes=found.notes),
        validation=splits.get("validation"),
        test=splits["test"],
        augment=Varied(shift=0),
        metric=WordErrors(),
        loss=ctc_loss,
        outputs=len(found.classes) + 1,
        aligned=False,
        labels=(*found.classes, BLANK),
        name=name,
    )


def _rows(found: Recordings, role: str, joined: int, samples: int) -> Split:
    """Rows of recordings of one speaker each, drawn from a fixed seed; one that has no room is drawn again."""
    draw = np.random.default_rng(list(ROLES).index(role))
    label = {kind: number for number, kind in enumerate(found.classes)}
    takes = found.of(role)
    by_speaker = {take.speaker: [other for other in takes if other.speaker == take.speaker] for take in takes}
    waves, rows = np.zeros((len(takes), samples), np.int16), []
    for place, take in enumerate(takes):
        parts, spoken = _fitting(by_speaker[take.speaker], joined, samples, draw)
        whole = np.concatenate(parts)
        start = draw.integers(samples - len(whole) + 1)
        waves[place, start : start + len(whole)] = whole
        rows.append([label[part.kind] for part in spoken])
    return Split.of((torch.from_numpy(waves), torch.tensor(rows)), transform=Scaled())


def _fitting(takes: list[Take], joined: int, samples: int, draw: np.random.Generator) -> tuple[list[Wave], list[Take]]:
    """Draw recordings and the silence before each until they fit."""
    for _ in range(TRIES):
        spoken = [takes[number] for number in draw.integers(len(takes), size=joined)]
        gaps = draw.integers(round(GAP_S * RATE) + 1, size=joined)
        if sum(len(take.wave) for take in spoken) + int(gaps.sum()) <= samples:
            return [
                part for gap, take in zip(gaps, spoken, strict=True) for part in (np.zeros(gap, np.int16), take.wave)
            ], spoken
    seconds = f"{samples / RATE:g} s for {joined} recordings"
    raise must_be("length", f"long enough for {joined} joined recordings", seconds, "Give more seconds, or join fewer.")


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
