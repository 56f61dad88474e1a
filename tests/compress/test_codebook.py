"""Codebooks against the exact best on the line, and what a runtime makes of the file that holds them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conv_net import conv_net, off
from torch import Tensor, nn

import equipoise as eq
from equipoise.compress.codebook import Codebook, clustered, codebooks
from equipoise.errors import InputError
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.palette import palettized

SOURCE = torch.Generator().manual_seed(0)
INPUTS = torch.randn(200, 3, 8, 8, generator=SOURCE)


def exact(values: Tensor, cost: Tensor, clusters: int) -> float:
    """Least weighted error of any codebook, by dynamic programming over stretches of the sorted values."""
    values, order = values.sort()
    cost, n = cost[order], len(values)

    def lost(i: int, j: int) -> float:
        mean = (cost[i:j] * values[i:j]).sum() / cost[i:j].sum()
        return float((cost[i:j] * (values[i:j] - mean).square()).sum())

    best = [0.0] + [math.inf] * n
    for _ in range(clusters):
        best = [0.0, *(min(best[i] + lost(i, j) for i in range(j)) for j in range(1, n + 1))]
    return best[n]


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_the_codebook_is_near_the_best_there_is(clusters: int) -> None:
    weight = torch.randn(4, 10, generator=SOURCE).double()
    cost = (torch.rand(10, generator=SOURCE).double() * 4).exp()
    book = clustered(weight, cost, clusters)
    off = float((cost * (weight - book.weight).square()).sum())
    least = exact(weight.flatten(), cost.expand_as(weight).flatten(), clusters)
    assert least * (1 - 1e-9) <= off <= 1.15 * least
    alike = clustered(weight, torch.ones(1).double(), clusters)  # the planted wrong answer: what is read is not weighed
    assert float((cost * (weight - alike.weight).square()).sum()) > off * (1 + 1e-4)


def test_few_values_are_kept_and_zeros_stay() -> None:
    few = torch.tensor([[1.0, 2.0, 2.0, 5.0]]).double()
    assert torch.equal(clustered(few, torch.ones(1).double(), 16).weight, few)
    weight = torch.randn(8, 32, generator=SOURCE).double()
    mask = torch.rand(8, 32, generator=SOURCE) < 0.5
    book = clustered(weight * mask, torch.ones(1).double(), 8)
    assert not bool(book.weight[~mask].any())
    assert float((book.weight[mask] != 0).double().mean()) > 0.8
    assert len(book.values) == 8


def net() -> nn.Sequential:
    return conv_net(INPUTS, widths=(32, 64), classes=75)


def test_with_data_each_error_is_made_good_and_zeros_stay() -> None:
    mixed = torch.randn(48, 48, generator=SOURCE) + 2.0
    net, data = nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 4)), torch.randn(400, 48, generator=SOURCE) @ mixed
    mask = torch.rand(32, 48, generator=SOURCE) < 0.7
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(32, 48, generator=SOURCE) * mask)
    books, _ = codebooks(net, clusters=8, data=data, layers=["0"])
    weight = net[0].weight.detach().double()
    alone = clustered(weight, data.double().square().mean(0), 8)
    spread = torch.cov(data.double().T)

    def lost(book: Codebook) -> float:
        error = weight - book.weight
        return float(((error @ spread) * error).sum())

    assert torch.allclose(books["0"].values, alone.values, atol=1e-3)
    assert lost(books["0"]) < 0.7 * lost(alone)
    assert not bool(books["0"].weight[~mask].any())


def test_share_in_one_line() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, blind = (eq.share(model, INPUTS[:2], clusters=16, data=data) for data in (INPUTS, None))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert small.values == {"0": 16, "3": 16, "7": 16}
    assert off(small.model, model, INPUTS) < off(blind.model, model, INPUTS) < 0.1
    assert off(eq.share(model, INPUTS[:2], clusters=256, data=INPUTS).model, model, INPUTS) < 1e-3
    assert "smaller alone" in small.notes[0]


def test_shared_values_are_trained_together() -> None:
    model = net()
    small = eq.share(model, INPUTS[:2], clusters=4, layers=["3"]).model
    taught = eq.distill(small, model, INPUTS, steps=40, hold="shared", lr=3e-3)
    codes, again = (torch.unique(m[3].weight, return_inverse=True)[1] for m in (small, taught))
    assert torch.equal(codes, again)
    assert not torch.equal(small[3].weight, taught[3].weight)
    assert off(taught, model, INPUTS) < 0.8 * off(small, model, INPUTS)
    assert len(eq.distill(small, model, INPUTS, steps=1)[3].weight.unique()) > 4  # without it they part


@pytest.mark.parametrize("options", [{"clusters": 1}, {"clusters": 257}, {"layers": ["nine"]}])
def test_bad_asks_are_told(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        eq.share(net(), INPUTS[:2], **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [16, 256])
def test_the_file_is_smaller_and_answers_the_same_bits(clusters: int) -> None:
    import onnx
    import onnxruntime

    small = eq.share(net(), INPUTS[:2], clusters=clusters)
    content = Exporter().source(small.model, INPUTS[:2], topology="").onnx()
    packed = palettized(content)
    onnx.checker.check_model(onnx.load_from_string(packed), full_check=True)
    weights = sum(p.numel() for p in small.model.parameters() if p.ndim > 1)
    saved = weights * (4 - (0.5 if clusters == 16 else 1))
    assert 0.75 * saved < len(content) - len(packed) <= saved
    assert small.program.size_bytes == len(packed)
    sessions = [onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]) for each in (content, packed)]
    feeds = {sessions[0].get_inputs()[0].name: INPUTS.numpy()}
    plain, found = (session.run(None, feeds)[0] for session in sessions)
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_allclose(found, small.model(INPUTS).detach().numpy(), atol=1e-4)
    broken = onnx.load_from_string(packed)  # the planted wrong answer: the codes stand in another order
    codes = next(t for t in broken.graph.initializer if t.name.endswith(".codes"))
    codes.raw_data = codes.raw_data[::-1]
    session = onnxruntime.InferenceSession(broken.SerializeToString(), providers=["CPUExecutionProvider"])
    assert not np.allclose(session.run(None, feeds)[0], plain)
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = [core.compile_model(core.read_model(each), "CPU") for each in (content, packed)]
    np.testing.assert_array_equal(compiled[1](INPUTS.numpy())[0], compiled[0](INPUTS.numpy())[0])


@pytest.mark.slow
def test_weights_that_share_nothing_stay_as_they_are() -> None:
    content = Exporter().source(net(), INPUTS[:2], topology="").onnx()
    assert len(palettized(content)) == pytest.approx(len(content), abs=64)
