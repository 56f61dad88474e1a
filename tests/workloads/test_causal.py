"""Language models of Hugging Face's library read on: rotary positions and shared heads, learned positions and tied weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hugging_face import INSTALLED, VOCABULARY, made

from equipoise import runtimes
from equipoise.errors import InputError
from equipoise.runtimes.decoding import TOLERANCE, Reader, hold
from equipoise.runtimes.export import Exporter
from equipoise.workloads.causal import Causal

pytestmark = pytest.mark.skipif(not INSTALLED, reason="the extra text")


@pytest.fixture(scope="module", params=["Llama", "GPT2"])
def model(request: pytest.FixtureRequest) -> Causal:
    net = Causal(made(request.param)[0]).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():  # at their initial values positions hardly matter
            weight.normal_(std=0.2, generator=generator)
    return net


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


def test_in_parts_it_gives_what_it_gives_at_once(model: Causal, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(model, tokens)
    read_on = model.read_on
    monkeypatch.setattr(model, "read_on", lambda some, past: read_on(some, past[::-1]))
    with pytest.raises(InputError, match="read in parts"):
        hold(model, tokens)


@pytest.mark.slow
def test_its_file_reads_on(model: Causal, tokens: torch.Tensor) -> None:
    program = runtimes.get("onnxruntime").compile(Exporter().source(model, tokens, topology=""))
    reader = Reader(program)
    found = np.concatenate([reader.on(part) for part in np.split(tokens.numpy(), (5, 6, 7), 1)], -1)
    wanted = model(tokens).detach().numpy()
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()
