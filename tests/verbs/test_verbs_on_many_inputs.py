"""Each technique in one line, and a profile, of models of several inputs."""

from __future__ import annotations

import pytest
import torch
from many_inputs import Encoder, paired, pairs, sentences, trained

import equipoise as eq
from equipoise.batch import take

pytestmark = pytest.mark.slow  # trains and quantizes models

IDS, LABELS = sentences(256)
BOTH, _ = pairs(256)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_an_encoder_is_pruned_quantized_and_taught() -> None:
    net = trained(steps=60)
    small = eq.prune(net, take(IDS, slice(2)), ratio=0.5, data=IDS)
    assert type(small) is Encoder
    assert small.layers[0].widen.out_features == 32
    quantized = eq.quantize(net, IDS, float_layers=["head"])
    with torch.no_grad():
        wanted = net(**IDS).logits
        assert 1e-5 < off(quantized(**IDS), wanted) < 0.1
        few = {name: value[:5, :7] for name, value in IDS.items()}
        assert off(quantized(**few), net(**few).logits) < 0.1  # shorter sequences too
    taught = eq.distill(small, net, (IDS, LABELS), seconds=2)
    assert type(taught) is Encoder
    with torch.no_grad():
        before, after = ((made(**IDS).logits - wanted).square().mean() for made in (small, taught))
    assert after < before


def test_an_image_and_a_row_are_taken_by_position() -> None:
    net = paired()
    quantized = eq.quantize(net, BOTH)
    with torch.no_grad():
        assert 1e-5 < off(quantized(*BOTH), net(*BOTH)) < 0.1


def test_a_profile_times_all_inputs() -> None:
    found = eq.profile(trained(steps=1), take(IDS, slice(2)), targets=["onnxruntime", "torch"], batch=4, seconds=0.5)
    assert [target.reason for target in found.targets] == ["", ""]
    assert found.counts.macs > 100_000
    assert all(target.memory.added.value is not None for target in found.targets)
