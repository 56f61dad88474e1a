"""Folding against the model itself, with BatchNorms planted that must not be folded."""

from __future__ import annotations

import pytest
import torch
from nets import EASY, TextEncoder, fingerprint, made, settled
from torch import Tensor, nn

from equipoise.compress.fold import fold
from equipoise.compress.trace import NORMS, record


def norms_in(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


@pytest.mark.parametrize("name", EASY)
def test_folded_model_answers_the_same_and_holds_no_batch_norm(name: str) -> None:
    model, inputs = made(name)
    before = fingerprint(model)
    folded = fold(model, inputs[:2])
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), model(inputs), atol=1e-5, rtol=1e-5)
    assert norms_in(folded) == 0 < norms_in(model)
    assert fingerprint(model) == before


def test_the_comparison_can_fail() -> None:
    model, inputs = made("cnn")
    folded = fold(model, inputs[:2])
    folded[0].bias.data += 0.05
    with torch.no_grad():
        assert not torch.allclose(folded(inputs), model(inputs), atol=1e-5, rtol=1e-5)


class Planted(nn.Module):
    """Each `kind` gives the BatchNorm a reason to stay."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3, track_running_stats=kind != "no statistics")
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x) if self.kind == "before" else self.conv(x)
        if self.kind == "in place":
            y.mul_(2)
        z = self.bn(y)
        if self.kind == "read elsewhere":
            z = z + y
        if self.kind == "norm twice":
            z = self.bn(z)
        if self.kind == "layer twice":
            z = self.conv(z)
        if self.kind == "before":
            z = self.conv(z)
        return self.head(z.mean((2, 3)))


@pytest.mark.parametrize("kind", ["read elsewhere", "norm twice", "layer twice", "in place", "no statistics", "before"])
def test_a_batch_norm_that_cannot_be_folded_stays(kind: str) -> None:
    inputs = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = settled(Planted(kind), inputs)
    folded = fold(model, inputs[:2])
    assert norms_in(folded) == 1
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), model(inputs), atol=1e-5, rtol=1e-5)


def test_transposed_and_one_dimensional_layers_fold() -> None:
    inputs = torch.randn(8, 3, 10, generator=torch.Generator().manual_seed(0))
    model = settled(
        nn.Sequential(
            nn.Conv1d(3, 4, 3),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.ConvTranspose1d(4, 5, 3, stride=2),
            nn.BatchNorm1d(5),
        ),
        inputs,
    )
    folded = fold(model, inputs[:2])
    assert norms_in(folded) == 0
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), model(inputs), atol=1e-5, rtol=1e-5)


def test_tape_sees_through_the_encoder_and_knows_its_readers() -> None:
    model = TextEncoder().eval()
    tape = record(model, torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0)))
    call = tape.call_of("encoder.layers.0.linear2")
    assert call is not None
    assert [reader.op for reader in tape.consumers(call.outputs[0])] == ["add"]
    assert tape.shapes[tape.outputs[0]] == (2, 3)
