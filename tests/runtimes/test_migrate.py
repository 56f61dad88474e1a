"""Scale migration: the function stays, int8 comes nearer to it, and a tensor that gains nothing keeps its form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from equipoise.runtimes import Source, migrate, qdq, seen
from equipoise.runtimes.equalize import same
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.onnxruntime import OnnxRuntime

Array = np.ndarray[Any, Any]


class Block(nn.Module):
    """A normalization that hands on two large channels of 32, to two products and (`residual`) to the sum after them."""

    def __init__(self, *, residual: bool, large: float) -> None:
        super().__init__()
        self.norm, self.wide, self.gate = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(32, 64)
        self.back, self.residual = nn.Linear(64, 32), residual
        with torch.no_grad():
            self.norm.weight[[3, 17]] *= large
            self.norm.bias.uniform_(-0.2, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        made: Tensor = self.back(torch.relu(self.wide(x)) * self.gate(x).sigmoid())
        return x + made if self.residual else made


def made(*, residual: bool, large: float = 30.0) -> tuple[bytes, ModelProto, Array]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, inputs = Block(residual=residual, large=large).eval(), torch.randn(96, 5, 32)
    content = Exporter().onnx(net, inputs[:2], topology=f"{residual}")
    return content, onnx.shape_inference.infer_shapes(onnx.load_from_string(content)), inputs.numpy()


def moved(model: ModelProto, inputs: Array, *, left: tuple[str, ...] = ()) -> tuple[ModelProto, dict[str, Array]]:
    nodes = [node for node in model.graph.node if node.name not in left]
    layers = qdq._layers(model, nodes)
    reading = seen.read(model, [link.tensor for link in migrate.links(model, layers)], layers, inputs)
    return migrate.migrated(model, reading, {name: node for name, (node, _) in layers.items()}, levels=127, rule="mse")


@pytest.mark.parametrize("residual", [False, True])
def test_the_function_stays_and_int8_comes_nearer(residual: bool) -> None:
    content, model, inputs = made(residual=residual)
    before = model.SerializeToString()
    found, gains = moved(model, inputs)
    assert model.SerializeToString() == before
    assert same(found, model, inputs[:16])
    assert len(gains) == 1
    (by,) = gains.values()
    assert max(by[[3, 17]]) < 0.5 * np.median(by)  # the large channels are those made smaller
    added = [node.op_type for node in found.graph.node if node.name not in {old.name for old in model.graph.node}]
    assert added == (["Mul"] if residual else [])  # where products alone read it, the normalization takes it up

    wrong = ModelProto()
    wrong.CopyFrom(found)
    target = next(tensor for tensor in wrong.graph.initializer if tensor.name.startswith("wide.weight"))
    target.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(target) * np.float32(1.01), target.name))
    assert not same(wrong, model, inputs[:16])  # the proof would see one per cent

    plain, even = (error_of(content, inputs, qdq.Rounding(equalize=how)) for how in (False, True))
    assert even < 0.5 * plain


def error_of(content: bytes, inputs: Array, how: qdq.Rounding) -> float:
    runtime, source = OnnxRuntime(how), Source.of_onnx(content)
    exact = runtime.load(runtime.compile(source)).run(inputs)
    program = runtime.compile(source, calibration=inputs, float_layers=frozenset())
    return float(np.square(runtime.load(program).run(inputs) - exact).mean())


def test_a_tensor_of_even_channels_keeps_its_form() -> None:
    _, model, inputs = made(residual=False, large=1.0)
    found, gains = moved(model, inputs)
    assert not gains
    assert found.SerializeToString() == model.SerializeToString()


def test_a_product_that_stays_in_floats_reads_what_it_read() -> None:
    _, model, inputs = made(residual=False)
    (link,) = migrate.links(model, qdq._layers(model, model.graph.node))
    left = link.readers[0]
    found, gains = moved(model, inputs, left=(left.name,))
    assert gains
    assert same(found, model, inputs[:16])
    held = [{t.name: numpy_helper.to_array(t) for t in graph.graph.initializer} for graph in (model, found)]
    np.testing.assert_array_equal(held[0][left.input[1]], held[1][left.input[1]])
