"""What a model of sound hears: the logarithm of the energy in bands as wide as the ear's, computed inside the model.

So a file that ships takes plain samples. All of it looks back alone: the features of ten milliseconds need nothing that comes
after them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE = 8000
"""Samples a second."""
FRAME, HOP = 160, 80
"""Samples that a spectrum is of, and from one to the next: 20 and 10 ms."""
BANDS = 32
LOWEST = 60.0
"""Hertz; below is hum."""
FLOOR = 1e-5
"""Energy that is added before the logarithm: about what silence has in 16 bits, with a little of a room."""
MIDDLE, SPREAD = -4.0, 4.0
"""Of the logarithms of speech in -1..1, so that features lie about 0."""


def mel(hertz: float) -> float:
    """Return a frequency on the scale of the ear.

    References:
        O'Shaughnessy 1987, "Speech communication", p. 150: 2595 log10(1 + f / 700).
    """
    return 2595 * math.log10(1 + hertz / 700)


def bands(bins: int, *, count: int = BANDS, rate: int = RATE, lowest: float = LOWEST) -> Tensor:
    """Return triangles (count, bins) that are spaced evenly on the scale of the ear, each with 1 at its top.

    Args:
        bins: Frequencies of a spectrum, from 0 to half the rate, both included.
        count: Triangles.
        rate: Samples a second.
        lowest: Hertz where the first triangle begins.
    """
    low, high = mel(lowest), mel(rate / 2)
    corners = [700 * (10 ** ((low + (high - low) * place / (count + 1)) / 2595) - 1) for place in range(count + 2)]
    edges = torch.tensor(corners, dtype=torch.float64)
    hertz = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    left, top, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((hertz - left) / (top - left), (right - hertz) / (right - top)).clamp_min(0).float()


def waves(frame: int) -> Tensor:
    """Return cosines, then sines (2 (frame // 2 + 1), frame), under a Hann window: a discrete Fourier transform as filters."""
    places = torch.arange(frame, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * places / frame)
    turns = 2 * math.pi * torch.outer(torch.arange(frame // 2 + 1, dtype=torch.float64), places) / frame
    return (torch.cat((turns.cos(), turns.sin())) * window).float()


class LogBands(nn.Module):
    """Samples (N, T) in -1..1 to features (N, BANDS, T / HOP); T is a multiple of `HOP`.

    Its numbers follow from the constants above: they are no weights, and no file of weights holds them.
    """

    def __init__(self) -> None:
        super().__init__()
        bins = FRAME // 2 + 1
        self.register_buffer("waves", waves(FRAME)[:, None], persistent=False)  # (2 bins, 1, FRAME)
        self.register_buffer("bands", bands(bins).repeat(1, 2), persistent=False)  # (BANDS, 2 bins)

    def forward(self, samples: Tensor) -> Tensor:
        """Return the features of samples (N, FRAME - HOP + T), the first of which came before."""
        spectrum = F.conv1d(samples[:, None], self.get_buffer("waves"), stride=HOP)  # (N, 2 bins, T / HOP)
        energy = self.get_buffer("bands") @ spectrum.square()
        return ((energy + FLOOR).log() - MIDDLE) / SPREAD
