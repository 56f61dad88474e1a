"""Is somebody speaking? silero-vad, which carries a state from chunk to chunk, as a workload of two inputs by name.

    pip download --no-deps silero-vad && unzip silero_vad-*.whl        # MIT; silero_vad/data/silero_vad_16k.safetensors
    export SILERO=silero_vad/data/silero_vad_16k.safetensors EQUIPOISE_DATA=DATA
    equipoise optimize examples/silero.py:make_workload --budget "drop<=0.5" --time 10min

EQUIPOISE_DATA holds ``spoken-digits.zip``. Takes are joined with silences between them and a little noise; a chunk of 32 ms
counts as speech where it lies in a take, as silence where it lies in none, and is left out where it lies in both.

The net is the one of silero_vad/tinygrad_model.py. A row of outputs is the probability and the state that is handed back with
the next chunk, so that the file that ships can go on; quality is read off the probability, and the loss keeps the state too.
"""

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.signal import resample_poly
from torch import Tensor, nn

import equipoise as eq
from equipoise.errors import must_be
from equipoise.workloads.audio_files import FULL, Take, read_recordings

RATE, CHUNK, BEFORE, WIDTH = 16000, 512, 64, 128
"""Samples a second, of a chunk and handed in from before it; units of the state."""
GAP_S, NOISE = (0.2, 0.8), 0.0005
ROLES = ("train", "val", "test")


class Spectrum(nn.Module):
    """The Fourier transform: filters that nobody learned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(258, 1, 256))

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = F.conv1d(x, self.get_buffer("weight"), stride=128).chunk(2, 1)
        return (real**2 + imaginary**2).sqrt()


class Silero(nn.Module):
    """``forward(chunk (N, 576), state (N, 2, 128)) -> (N, 257)``: the probability of speech, and the next state."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = Spectrum()
        self.conv1, self.conv2 = nn.Conv1d(129, 128, 3, padding=1), nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.Conv1d(64, WIDTH, 3, padding=1)
        self.lstm_cell, self.final_conv = nn.LSTMCell(WIDTH, WIDTH), nn.Conv1d(WIDTH, 1, 1)

    def forward(self, chunk: Tensor, state: Tensor) -> Tensor:
        x = self.stft_conv(F.pad(chunk[:, None], (0, 64), "reflect"))  # (N, 129, 4)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        hidden, cell = self.lstm_cell(x.squeeze(2), (state[:, 0], state[:, 1]))
        said = self.final_conv(hidden.relu()[:, :, None]).sigmoid().flatten(1)
        return torch.cat((said, hidden, cell), 1)


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the chunks that are told right."""
    return ((outputs[:, 0] > 0.5) == (targets[:, 0] > 0.5)).float().mean()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    said = outputs[:, 0].clamp(1e-6, 1 - 1e-6)
    return F.binary_cross_entropy(said, targets[:, 0]) + F.mse_loss(outputs[:, 1:], targets[:, 1:])


def stream(takes: list[Take], draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Join takes with silences; return samples (T,) at 16 kHz and whether each belongs to a take."""
    parts, spoken = [], []
    for take in takes:
        wave = resample_poly(take.wave / FULL, 2, 1)
        gap = np.zeros(round(draw.uniform(*GAP_S) * RATE))
        parts += [gap, wave]
        spoken += [np.zeros(len(gap)), np.ones(len(wave))]
    samples = np.concatenate(parts)
    samples = samples + NOISE * draw.standard_normal(len(samples))
    return torch.from_numpy(samples).float(), torch.from_numpy(np.concatenate(spoken))


def chunks(model: Silero, takes: list[Take], seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return chunks with the states before them, and what is to be answered: the label and the state after."""
    samples, spoken = stream(takes, np.random.default_rng(seed))
    state, rows = torch.zeros(1, 2, WIDTH), []
    with torch.inference_mode():
        for start in range(BEFORE, len(samples) - CHUNK, CHUNK):
            chunk = samples[None, start - BEFORE : start + CHUNK]
            out = model(chunk, state)
            share = float(spoken[start : start + CHUNK].mean())
            if share in (0.0, 1.0):
                rows.append((chunk, state, torch.cat((torch.tensor([[share]]), out[:, 1:]), 1)))
            state = out[:, 1:].unflatten(1, (2, WIDTH))
    chunk_rows, states, targets = (torch.cat(column) for column in zip(*rows, strict=True))
    return {"chunk": chunk_rows, "state": states}, targets


def make_workload(limit: int = 300) -> eq.Workload:
    """Return the workload; `limit` takes for each split."""
    weights = Path(os.environ.get("SILERO", "silero_vad_16k.safetensors"))
    if not weights.is_file():
        raise must_be("SILERO", "the path of silero_vad_16k.safetensors", str(weights), "See the head of examples/silero.py.")
    model = Silero().eval()
    model.load_state_dict(load_file(weights))
    found = read_recordings(Path(os.environ.get("EQUIPOISE_DATA", "data")) / "spoken-digits.zip")
    splits = {
        role: chunks(model, found.of(role)[:: max(1, len(found.of(role)) // limit)], seed) for seed, role in enumerate(ROLES)
    }
    return eq.Workload(
        model=model,
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        metric=right,
        loss=loss,
        name="silero-vad",
    )
