"""Programs of several inputs: named as the model names them, free in batch and, where the code allows it, in length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from many_inputs import LENGTH, Encoder, paired, pairs, sentences
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.batch import Inputs, call, mapped, positional, take
from equipoise.errors import InputError
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.layers import layer_nodes
from equipoise.runtimes.structure import read
from equipoise.workloads.outputs import Chosen

pytestmark = pytest.mark.slow  # exports models for every runtime

IDS, _ = sentences(64)
ENCODER = Chosen(Encoder(), "logits").eval()
EXPORTER = Exporter()
FREE = [name for name in runtimes.available() if name not in ("executorch", "litert")]  # these plan for one length


def numbers(inputs: Inputs) -> Inputs:
    return mapped(inputs, Tensor.numpy)


def answers(model: nn.Module, inputs: Inputs) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return call(model, inputs).numpy()


def shorter(length: int) -> Inputs:
    return mapped(take(IDS, slice(3)), lambda value: value[:, :length])


@pytest.mark.parametrize("name", FREE)
def test_ids_and_mask_at_other_batches_and_lengths(name: str) -> None:
    runtime = runtimes.get(name)
    program = runtime.compile(EXPORTER.source(ENCODER, take(IDS, slice(2)), topology="encoder"))
    session = runtime.load(program)
    for few in (take(IDS, slice(1)), take(IDS, slice(7)), shorter(3), shorter(LENGTH - 1)):
        assert np.allclose(session.run(numbers(few)), answers(ENCODER, few), atol=1e-5)
    fixed = runtime.load(program, batch=2)
    assert np.allclose(fixed.run(numbers(take(IDS, slice(2)))), answers(ENCODER, take(IDS, slice(2))), atol=1e-5)
    blind = {**take(IDS, slice(7)), "attention_mask": torch.ones(7, LENGTH, dtype=torch.long)}
    assert not np.allclose(session.run(numbers(blind)), answers(ENCODER, take(IDS, slice(7))), atol=1e-3)  # the mask is read


class Alone(nn.Module):
    """Takes the ids alone, and makes the mask of them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ENCODER

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(ids, (ids != 0).long())


@pytest.mark.parametrize("name", FREE)
def test_ids_alone_are_free_in_batch_and_length_too(name: str) -> None:
    runtime, net, ids = runtimes.get(name), Alone().eval(), IDS["input_ids"]
    session = runtime.load(runtime.compile(EXPORTER.source(net, ids[:2], topology="alone")))
    for few in (ids[:1], ids[:7, :3], ids[:3, : LENGTH - 1]):
        assert np.allclose(session.run(few.numpy()), answers(net, few), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in runtimes.available() if 8 in runtimes.get(name).precisions])
def test_int8_is_calibrated_on_all_inputs(name: str) -> None:
    runtime = runtimes.get(name)
    source = EXPORTER.source(ENCODER, take(IDS, slice(2)), topology="encoder")
    program = runtime.compile(source, calibration=numbers(IDS), float_layers=frozenset())
    wanted, found = answers(ENCODER, IDS), runtime.load(program).run(numbers(IDS))
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-5 < error < 0.15
    assert set(program.left) == ({"model.token", "model.place"} if name == "executorch" else set())  # it has no int8 tables


def test_inputs_by_position_and_a_number_that_is_no_input() -> None:
    net = paired()
    given = {**positional(pairs(16)[0]), "input_2": 3.0}
    content = Exporter().onnx(net, take(given, slice(2)), topology="pair")
    assert [value.name for value in read(content).graph.input] == ["input_0", "input_1"]
    assert set(layer_nodes(content)) == {"conv", "row", "head"}
    session = runtimes.get("onnxruntime").load(runtimes.Program("onnxruntime", "fp32", {"model.onnx": content}))
    assert np.allclose(session.run(numbers(given)), answers(net, given), atol=1e-5)
    assert not np.allclose(session.run(numbers(given)), answers(net, {**given, "input_2": 1.0}), atol=1e-3)


class Flattened(nn.Module):
    """Reads every place with a weight of its own: it cannot be of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(40, 4), nn.Linear(4 * LENGTH, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores: Tensor = self.head((self.token(input_ids) * attention_mask[..., None]).flatten(1))
        return scores


def test_a_length_that_the_code_fixes_stays_fixed_and_is_tried_once() -> None:
    exporter, net = Exporter(), Flattened().eval()
    content = exporter.onnx(net, take(IDS, slice(2)), topology="flat")
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in read(content).graph.input]
    assert shapes == [["batch", LENGTH], ["batch", LENGTH]]
    tried = exporter.exports
    exporter.onnx(Flattened().eval(), take(IDS, slice(2)), topology="flat")
    assert exporter.exports == tried


def test_a_file_is_filled_again_for_other_weights_and_is_the_same_for_the_same() -> None:
    exporter = Exporter()
    first = exporter.onnx(ENCODER, take(IDS, slice(2)), topology="one")
    other = Chosen(Encoder(), "logits").eval()
    content = exporter.onnx(other, take(IDS, slice(2)), topology="one")
    assert exporter.exports == 1
    session = runtimes.get("onnxruntime").load(runtimes.Program("onnxruntime", "fp32", {"model.onnx": content}))
    assert np.allclose(session.run(numbers(shorter(5))), answers(other, shorter(5)), atol=1e-5)
    assert Exporter().onnx(ENCODER, take(IDS, slice(2)), topology="one") == first


@pytest.mark.parametrize("name", runtimes.available())
def test_what_is_missing_is_told(name: str) -> None:
    runtime = runtimes.get(name)
    session = runtime.load(runtime.compile(EXPORTER.source(ENCODER, take(IDS, slice(2)), topology="encoder")))
    with pytest.raises(InputError, match="attention_mask"):
        session.run({"input_ids": IDS["input_ids"].numpy()})
    with pytest.raises(InputError, match="under its name"):
        session.run(IDS["input_ids"].numpy())
