"""Whether a program answers alike: of one that rounds its inputs in the range of a request, the same request."""

from __future__ import annotations

import torch
from torch import nn

from equipoise import runtimes
from equipoise.runtimes import Target
from equipoise.runtimes.export import Exporter
from equipoise.ship.recheck import _steady


def test_a_program_with_dynamic_ranges_is_held_to_its_own_requests() -> None:
    torch.manual_seed(0)
    net, samples = nn.Sequential(nn.Linear(32, 4, bias=False), nn.Tanh()).eval(), torch.randn(8, 32)
    samples[0] *= 1e-3  # among the others nothing is left of it
    source = Exporter().source(net, samples, topology="")
    program = runtimes.get("onnxruntime").compile(source, schemes={"0": "8-dynamic"})
    session = runtimes.get("onnxruntime").load(program)
    together, alone = (session.run(samples[:n].numpy())[0] for n in (8, 1))
    assert abs(together - alone).max() > 0.1 * abs(alone).max(), "the example tells them apart"
    assert _steady("program", program, Target("onnxruntime"), samples).ok
    assert _steady("program", program, Target("onnxruntime", batch=8), samples).ok
