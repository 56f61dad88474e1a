from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import equipoise
from equipoise.errors import InputError
from equipoise.runtimes import export, get
from equipoise.runtimes.base import Source
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.layers import layer_nodes
from equipoise.testing.runtimes import FLOAT_BOUND, Probe, error_of


def outputs(content: bytes, inputs: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": inputs.numpy()})[0]


def narrowed(net: Probe, width: int) -> Probe:
    """The probe with its inner convolution pruned to `width` channels."""
    small = Probe(torch.Generator().manual_seed(7)).eval()
    inner, outer = net.inner, net.outer
    small.inner = nn.Conv2d(8, width, 3, stride=2, padding=1)
    small.outer = nn.Conv2d(width, 16, 3, padding=1)
    with torch.no_grad():
        small.inner.weight.copy_(inner.weight[:width])
        small.outer.weight.copy_(outer.weight[:, :width])
    return small


def test_a_pruned_net_is_filled_into_the_template(exporter: Exporter, probe: Source) -> None:
    probe.onnx()
    before = exporter.exports
    assert probe.example is not None
    net = narrowed(Probe(), 10)
    content = exporter.onnx(net, probe.example, topology="probe")
    assert exporter.exports == before
    with torch.inference_mode():
        assert error_of(outputs(content, probe.example), net(probe.example).numpy()) < FLOAT_BOUND
    shapes = {i.name: list(i.dims) for i in onnx.load_from_string(content).graph.initializer}
    assert shapes["inner.weight"] == [10, 8, 3, 3]


def test_the_model_is_left_as_it_was(exporter: Exporter, probe: Source) -> None:
    net = Probe().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert probe.example is not None
    exporter.onnx(net, probe.example, topology="probe")
    assert net.training
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_depthwise_nets_of_all_widths_are_one_export() -> None:
    exporter, images = Exporter(), torch.randn(2, 3, 8, 8)
    for width in (16, 8, 12):
        parts = (nn.Conv2d(3, width, 1), nn.Conv2d(width, 2 * width, 3, groups=width), nn.Conv2d(2 * width, 4, 1))
        net = nn.Sequential(*parts, nn.Flatten(1)).eval()
        content = exporter.onnx(net, images, topology="depthwise")
        with torch.inference_mode():
            assert error_of(outputs(content, images), net(images).numpy()) < FLOAT_BOUND
    assert exporter.exports == 1


def test_a_planted_wrong_weight_is_refused(exporter: Exporter, probe: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = export._fill

    def planted(template: export._Template, weights: export.Weights, model: nn.Module) -> onnx.ModelProto | None:
        graph = fill(template, weights, model)
        assert graph is not None
        for initializer in graph.graph.initializer:
            if initializer.name == "outer.weight":
                value = numpy_helper.to_array(initializer).copy()
                value[3, 2, 1, 1] += 0.5
                initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
        return graph

    monkeypatch.setattr(export, "_fill", planted)
    before = exporter.exports
    assert probe.example is not None
    content = exporter.onnx(Probe().eval(), probe.example, topology="probe")
    assert exporter.exports == before + 1  # the proof failed, so the module itself was exported
    with torch.inference_mode():
        assert error_of(outputs(content, probe.example), Probe()(probe.example).numpy()) < FLOAT_BOUND


def test_nothing_of_this_machine_is_in_the_file(probe: Source) -> None:
    content = probe.onnx()
    places = [
        Path(equipoise.__file__).parents[1],
        Path(__file__).parent,
        Path(torch.__file__).parents[1],
        Path(sys.prefix),
        Path.home(),
    ]
    marks = [str(place).encode() for place in places if len(str(place)) > 1] + [b"site-packages", b"stack_trace", b".py"]
    assert [mark for mark in marks if mark in content] == []
    assert b"outer.weight" in content  # the search can find what is there


def test_layers_are_found_by_their_modules(probe: Source) -> None:
    nodes = layer_nodes(probe.onnx())
    assert nodes == {
        name: (f"{name}/{kind}",)
        for name, kind in zip(("stem", "inner", "outer", "head"), ("Conv", "Conv", "Conv", "Gemm"), strict=True)
    }


def test_shortcuts_and_means_stay_in_layout(probe: Source) -> None:
    kinds = [node.op_type for node in onnx.load_from_string(probe.onnx()).graph.node]
    assert "GlobalAveragePool" in kinds
    assert not {"Slice", "Pad", "ReduceMean"} & set(kinds)


def test_the_exporter_puts_logging_back(exporter: Exporter, probe: Source) -> None:
    probe.onnx()
    assert not logging.getLogger("torch.onnx._internal.exporter._registration").disabled
    assert sys.stdout is not None


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("tuple", "model output must be one tensor"),
        ("scalar", "batch as long as its input"),
        ("nan", "finite"),
    ],
)
def test_an_unusable_output_is_one_clear_error(what: str, message: str) -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> object:
            return {"tuple": (x, x), "scalar": x.sum(), "nan": x * float("nan")}[what]

    exporter = Exporter()
    with pytest.raises(InputError, match=message):
        exporter.onnx(Alone(), torch.ones(2, 4), topology=what)
    assert exporter.exports == 0


def test_a_fixed_batch_is_refused_before_exporting() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 4) * 1

    exporter = Exporter()
    with pytest.raises(InputError, match="model must accept a batch of 1"):
        exporter.onnx(Fixed(), torch.ones(2, 4), topology="fixed")
    assert exporter.exports == 0


def test_an_empty_example_is_refused() -> None:
    with pytest.raises(InputError, match="example must be a batch"):
        Exporter().onnx(nn.Identity(), torch.ones(0, 4), topology="empty")


class Recurrent(nn.Module):
    """Its gates are rearranged on export, so it cannot be filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.gru(self.embed(x))[0][:, -1])
        return scores


class Encoder(nn.Module):
    """Linear layers over three axes are exported transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(self.embed(x)).mean(1))
        return scores


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*_check_is_size.*:FutureWarning")
def test_a_recurrent_net_falls_back_to_its_own_export() -> None:
    exporter, example = Exporter(), torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    for count in (2, 3):  # the template that could not be filled, then one export a model
        net = Recurrent().eval()
        content = exporter.onnx(net, example, topology="gru")
        assert exporter.exports == count
        with torch.inference_mode():
            assert error_of(outputs(content, example), net(example).numpy()) < FLOAT_BOUND
    assert set(layer_nodes(content)) == {"embed", "head"}


@pytest.mark.slow
def test_a_transformer_is_filled_in() -> None:
    exporter, example = Exporter(), torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        net = Encoder().eval()
        content = exporter.onnx(net, example, topology="encoder")
        with torch.inference_mode():
            assert error_of(outputs(content, example), net(example).numpy()) < FLOAT_BOUND
    assert exporter.exports == 1
    assert {"embed", "layer.linear1", "layer.linear2", "layer.self_attn", "layer.self_attn.out_proj"} < set(
        layer_nodes(content)
    )


def test_layers_that_hold_the_same_numbers_each_keep_a_name_of_their_own() -> None:
    """ConViT starts several value projections as the identity: one name for two initializers is no ONNX file."""
    from onnx import TensorProto, helper, numpy_helper

    from equipoise.runtimes.export import _clean, _transposed

    weights = {"a.weight": np.eye(3, dtype=np.float32), "b.weight": np.eye(3, dtype=np.float32)}
    assert _transposed(numpy_helper.from_array(np.eye(3, dtype=np.float32), "val_1"), weights) == ["a.weight.T", "b.weight.T"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "val_1"], ["x"]), helper.make_node("MatMul", ["x", "val_2"], ["output"])],
        "twins",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), name) for name in ("val_1", "val_2")],
    )
    cleaned = _clean(helper.make_model(graph), weights)
    assert [initializer.name for initializer in cleaned.graph.initializer] == ["a.weight.T", "b.weight.T"]
    assert [list(node.input) for node in cleaned.graph.node] == [["input", "a.weight.T"], ["x", "b.weight.T"]]


def test_a_layer_that_is_used_twice_is_exported_once_until_it_is_two() -> None:
    exporter, layer = Exporter(), nn.Linear(6, 6)
    net = nn.Sequential(layer, nn.Tanh(), layer).eval()
    given = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))

    def off() -> float:
        made = get("onnxruntime").compile(exporter.source(net, given, topology="twice"))
        return float(np.abs(get("onnxruntime").load(made).run(given.numpy()) - net(given).detach().numpy()).max())

    assert off() < 1e-6
    with torch.no_grad():
        layer.weight.mul_(0.5)
    assert off() < 1e-6
    assert exporter.exports == 1
    net[2] = nn.Linear(6, 6)
    assert off() < 1e-6


def test_a_first_sample_whose_answer_is_next_to_zero_is_no_reason_to_refuse_the_file() -> None:
    """A whole run of trials ended with it: single precision was held to a share of what had cancelled."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Linear(512, 1, bias=False).eval()
    with torch.no_grad():
        net.weight.normal_(generator=generator)
        x = torch.randn(4, 512, generator=generator)
        row = net.weight[0].double()
        for _ in range(3):
            x[0] -= (x[0].double() @ row / row.square().sum() * row).float()
        assert 0 < float(net(x)[0].abs()) < 1e-3 * float(net(x)[1].abs())
    content = Exporter().onnx(net, x, topology="cancels")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"input": x.numpy()})[0] - net(x).detach().numpy()).max() < 1e-4


class TwoViews(nn.Module):
    """Its head is its table, and reads two views."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x) + self.head(torch.relu(self.mix(x)))  # type: ignore[no-any-return]


def test_a_tied_layer_that_is_called_twice_has_both_nodes() -> None:
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    assert len(layer_nodes(Exporter().onnx(TwoViews().eval(), ids, topology=""))["head"]) == 2
