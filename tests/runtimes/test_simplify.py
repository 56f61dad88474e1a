from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from torch import nn

from equipoise.runtimes.export import Exporter
from equipoise.runtimes.simplify import simplify

FAR = 2**63 - 1


def shortcut(
    *, pads: tuple[int, ...] = (0, 2, 0, 0, 0, 3, 0, 0), value: float = 0.0, start: int = 0, end: int = FAR
) -> ModelProto:
    """Two strided slices, a pad and a mean, as torch exports an option-A shortcut."""
    constants = {
        "starts": np.array([start]),
        "ends": np.array([end]),
        "height": np.array([2]),
        "width": np.array([3]),
        "two": np.array([2]),
        "three": np.array([3]),
        "pads": np.array(pads),
        "value": np.array(value, dtype=np.float32),
        "axes": np.array([-1, 2]),
    }
    nodes = [
        helper.make_node("Slice", ["input", "starts", "ends", "height", "two"], ["a"], name="block/Slice"),
        helper.make_node("Slice", ["a", "starts", "ends", "width", "three"], ["b"], name="block/Slice_2"),
        helper.make_node("Pad", ["b", "pads", "value"], ["c"], name="block/Pad"),
        helper.make_node("ReduceMean", ["c", "axes"], ["output"], name="ReduceMean", keepdims=0),
    ]
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4, 7, 8]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "channels"]),
    ]
    tensors = [numpy_helper.from_array(content, name) for name, content in constants.items()]
    graph = helper.make_graph(nodes, "shortcut", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto) -> np.ndarray:
    checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": np.random.default_rng(0).standard_normal((3, 4, 7, 8), dtype=np.float32)})[0]


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_padded_shortcut_becomes_one_convolution() -> None:
    wanted = run(shortcut())
    model = simplify(shortcut())
    assert kinds(model) == ["Conv", "GlobalAveragePool", "Flatten"]
    assert [initializer.name for initializer in model.graph.initializer] == ["block/Subsample/kernel"]
    np.testing.assert_allclose(run(model), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"value": 1.0}, {"pads": (0, 2, 1, 0, 0, 3, 0, 0)}, {"start": 1}, {"end": 5}, {"pads": (0, -1, 0, 0, 0, 3, 0, 0)}],
    ids=lambda change: next(iter(change)),
)
def test_what_is_no_plain_subsampling_keeps_its_function(change: dict) -> None:
    wanted = run(shortcut(**change))
    model = simplify(shortcut(**change))
    np.testing.assert_allclose(run(model), wanted, rtol=0, atol=1e-6)
    assert "Pad" in kinds(model)
    plain = run(shortcut())
    assert (
        plain.shape != wanted.shape or np.abs(wanted - plain).max() > 1e-3
    )  # the change matters: rewriting it as before would be seen


class Weighed(nn.Module):
    """Rows of a table, added by weights; what else may be like it and is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.kind = kind

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, weights = self.table(tokens), (tokens != 0).float() * 0.5
        if self.kind == "kept":
            return (weights.unsqueeze(-1) * x).sum(1, keepdim=True) + x
        if self.kind == "other axis":
            return (x * weights[:, :, None]).sum(2)
        if self.kind == "repeated":
            return (x * weights[:, :1, None]).sum(1)
        if self.kind == "full":
            return (x * x).sum(1)
        if self.kind == "read twice":
            weighed = x * weights[:, :, None]
            return weighed.sum(1) + weighed[:, 0]
        return (x * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize(
    ("kind", "rewritten"),
    [("mean", True), ("kept", True), ("other axis", False), ("repeated", False), ("full", False), ("read twice", False)],
)
def test_a_sum_by_weights_is_a_product_of_matrices(kind: str, rewritten: bool) -> None:
    model = Weighed(kind).eval()
    tokens = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    content = Exporter().source(model, tokens, topology="").onnx()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert ("MatMul" in kinds(onnx.load_from_string(content))) == rewritten
    assert ("ReduceSum" in kinds(onnx.load_from_string(content))) == (not rewritten or kind == "mean")
    for given in (tokens, tokens[:1] if kind == "repeated" else tokens[:1, :4]):
        with torch.no_grad():
            assert np.allclose(session.run(None, {"input": given.numpy()})[0], model(given).numpy(), atol=1e-6)
