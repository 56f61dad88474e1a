"""What a model of sound hears, against torch's Fourier transform, a slow sum and closed forms."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.workloads.families.sound import BANDS, FLOOR, FRAME, HOP, MIDDLE, RATE, SPREAD, LogBands, bands, mel, waves

BINS = FRAME // 2 + 1


def sound(n: int = 2, hops: int = 12) -> Tensor:
    return 0.1 * torch.randn(n, FRAME - HOP + hops * HOP, generator=torch.Generator().manual_seed(0))


def energies(samples: Tensor, window: Tensor) -> Tensor:
    spectrum = torch.stft(samples, FRAME, HOP, FRAME, window, center=False, return_complex=True)
    return spectrum.abs().square()


def test_filters_are_a_fourier_transform() -> None:
    samples = sound()
    found = torch.nn.functional.conv1d(samples[:, None], waves(FRAME)[:, None], stride=HOP).square()
    found = found[:, :BINS] + found[:, BINS:]
    wanted = energies(samples, torch.hann_window(FRAME))
    assert found.shape == wanted.shape == (2, BINS, 12)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, energies(samples, torch.hann_window(FRAME, periodic=False)), atol=1e-5)  # a wrong one


def test_features_against_a_slow_sum() -> None:
    samples = sound(1, 2)
    found = LogBands()(samples)
    assert found.shape == (1, BANDS, 2)
    values = samples[0].double().tolist()
    triangles = bands(BINS).double()
    for hop in (0, 1):
        frame = [values[hop * HOP + i] * (0.5 - 0.5 * math.cos(2 * math.pi * i / FRAME)) for i in range(FRAME)]
        energy = [abs(sum(v * cmath.exp(-2j * math.pi * k * i / FRAME) for i, v in enumerate(frame))) ** 2 for k in range(BINS)]
        for band in range(BANDS):
            heard = sum(float(w) * e for w, e in zip(triangles[band], energy, strict=True))
            assert float(found[0, band, hop]) == pytest.approx((math.log(heard + FLOOR) - MIDDLE) / SPREAD, abs=1e-4)


def test_a_tone_is_heard_in_its_band_and_silence_at_the_floor() -> None:
    time = torch.arange(FRAME - HOP + 20 * HOP) / RATE
    tops = [_hertz(mel(60.0) + (mel(RATE / 2) - mel(60.0)) * (band + 1) / (BANDS + 1)) for band in range(BANDS)]
    for band in (8, 16, 24, 31):
        tone = 0.5 * torch.sin(2 * math.pi * tops[band] * time)
        assert int(LogBands()(tone[None])[0].mean(1).argmax()) == band
    silent = LogBands()(torch.zeros(1, FRAME))
    assert torch.allclose(silent, torch.full_like(silent, (math.log(FLOOR) - MIDDLE) / SPREAD))
    loud, soft = (LogBands()(scale * sound()) for scale in (1.0, 0.1))
    assert float((loud - soft).mean()) == pytest.approx(math.log(100) / SPREAD, rel=0.02)


def test_bands_are_triangles_that_share_out_every_frequency() -> None:
    found = bands(BINS)
    assert found.shape == (BANDS, BINS)
    assert (found.sum(1) > 0).all()  # each hears something
    tops = torch.linspace(mel(60.0), mel(RATE / 2), BANDS + 2)
    hertz = np.array([_hertz(float(m)) for m in tops])
    grid = np.linspace(0, RATE / 2, BINS)
    for band in range(BANDS):  # numpy's interpolation draws the same triangle
        wanted = np.interp(grid, hertz[band : band + 3], [0.0, 1.0, 0.0], left=0.0, right=0.0)
        assert np.allclose(found[band].numpy(), wanted, atol=1e-4)
    between = (grid >= hertz[1]) & (grid <= hertz[-2])
    assert np.allclose(found.sum(0).numpy()[between], 1.0, atol=1e-5)
    assert mel(1000) == pytest.approx(1000, rel=1e-3)  # as the scale was made


def test_features_look_back_alone() -> None:
    samples = sound()
    changed = samples.clone()
    changed[:, FRAME - HOP + 6 * HOP :] += 0.1
    differs = (LogBands()(samples) != LogBands()(changed)).any(1)[0]
    assert not differs[:6].any()
    assert differs[6:].all()


def test_features_are_no_weights() -> None:
    layer = LogBands()
    assert not layer.state_dict()
    assert not list(layer.parameters())


def _hertz(place: float) -> float:
    return 700 * (10 ** (place / 2595) - 1)
