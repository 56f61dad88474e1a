"""One graph for several widths: reshapes ask for what a width sets, and tables that were looked up are made anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, load_from_string, numpy_helper
from torch import Tensor, nn

from equipoise.runtimes import export
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.moved import Moved, draw, moved
from equipoise.runtimes.reshapes import _asked, opened


class Attention(nn.Module):
    """Heads of 6 places with a table of biases; their number and the width are written out in the code."""

    def __init__(self, heads: int, length: int = 5) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(12, 3 * heads * 6), nn.Linear(heads * 6, 4)
        self.table = nn.Parameter(torch.randn(2 * length - 1, heads))
        places = torch.arange(length)
        self.register_buffer("index", (places[None] - places[:, None] + length - 1).flatten())

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(n, length, 3, self.heads, 6).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(length, length, -1).permute(2, 0, 1)[None]
        seen = (query @ key.transpose(2, 3) + bias).softmax(-1) @ value
        return self.out(seen.transpose(1, 2).reshape(n, length, self.heads * 6)).mean(1)  # type: ignore[no-any-return]


def made(heads: int) -> nn.Module:
    torch.manual_seed(heads)
    return Attention(heads).eval()


def test_one_export_serves_every_number_of_heads() -> None:
    exporter, x = Exporter(), torch.randn(2, 5, 12)
    files = [exporter.onnx(made(heads), x, topology="attention") for heads in (4, 4, 3, 1)]
    assert exporter.exports == 1
    assert len(files[0]) == len(files[1]) > len(files[2]) > len(files[3])


@pytest.mark.slow
@pytest.mark.parametrize("change", ["reshape", "table"])
def test_a_wrong_filling_is_refused(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """What is made wrong does not answer as torch does: another export is, and it is right."""
    if change == "reshape":
        right = opened

        def wrong(model: Any) -> Any:
            for tensor in right(model).graph.initializer:
                if tensor.name.endswith("/shape") and -1 in (asked := numpy_helper.to_array(tensor)) and len(asked) == 5:
                    turned = np.array([0, 0, -1, 3, 6])
                    tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
            return model

        monkeypatch.setattr(export, "opened", wrong)
    else:
        plain = Moved.of
        monkeypatch.setattr(Moved, "of", lambda self, weight: plain(self, weight[:, ::-1]))
    exporter, x = Exporter(), torch.randn(2, 5, 12)
    for heads in (4, 2):
        exporter.onnx(made(heads), x, topology="attention")
    assert exporter.exports > 1


def reshaped(extents: list[Any], given: list[int]) -> list[int]:
    """What a reshape asks for in a graph after it was opened."""
    node = helper.make_node("Reshape", ["input", "to"], ["output"], name="here/Reshape", allowzero=1)
    tensor = numpy_helper.from_array(np.array(given, dtype=np.int64), "to")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("input", extents), ("output", None))]
    graph = opened(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], [tensor]))).graph
    (asked,) = [numpy_helper.to_array(t) for t in graph.initializer if t.name == graph.node[0].input[1]]
    return [int(extent) for extent in asked]


@pytest.mark.parametrize(
    ("extents", "given", "asked"),
    [
        (["N", 17, 24], [-1, 17, 4, 6], [0, 0, -1, 6]),
        (["N", 17, 72], [-1, 17, 3, 4, 6], [0, 0, 3, -1, 6]),
        (["N", 17, 4, 6], [-1, 17, 24], [0, 0, -1]),
        (["N", 24, 4, 4], [-1, 24, 16], [0, 0, -1]),
        (["N", 8, 8, 24], [-1, 2, 4, 2, 4, 24], [0, 2, 4, 2, 4, -1]),
        (["N", 24], [-1, 24], [0, 0]),
        ([1, 5, 24], [1, 5, 4, 6], [0, 0, -1, 6]),
        (["N", 2, 2, 4, 4, 24], [-1, 16, 24], [-1, 16, 24]),  # windows are counted with the batch
        (["N", "T", 24], [-1, 24], [-1, 24]),
        (["N", 17, 24], [2, 17, 4, 6], [2, 17, 4, 6]),
        (["N", 6, 4], [4, -1, 6], [4, -1, 6]),
        (["N", 0, 4], [-1, 0, 4], [-1, 0, 4]),
    ],
)
def test_what_a_reshape_asks_for(extents: list[Any], given: list[int], asked: list[int]) -> None:
    assert reshaped(extents, given) == asked
    assert _asked([0 if isinstance(extent, str) else extent for extent in extents], given) == asked


def test_only_what_was_moved_is_taken_for_it() -> None:
    generator = np.random.default_rng(0)
    table, other = (generator.standard_normal((9, 3)).astype(np.float32) for _ in range(2))
    index = generator.integers(0, 9, (5, 5))
    constants = {
        "looked up": table[index].transpose(2, 0, 1)[None],
        "turned": table.T,
        "some of it": table[:4, 1],
        "twice it": 2 * table,
        "another": generator.standard_normal((9, 3)).astype(np.float32),
        "one": table[:1, 0],
        "whole numbers": index,
    }
    tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    found = moved(load_from_string(model.SerializeToString()), {"table": table, "other": other})
    assert {name: how.parameter for name, how in found.items()} == dict.fromkeys(("looked up", "turned", "some of it"), "table")
    wider = generator.standard_normal((9, 7)).astype(np.float32)
    np.testing.assert_array_equal(found["looked up"].of(wider), wider[index].transpose(2, 0, 1)[None])
    np.testing.assert_array_equal(found["turned"].of(wider), wider.T)
    np.testing.assert_array_equal(found["some of it"].of(wider), wider[:4, 1])
    np.testing.assert_array_equal(found["turned"].of(wider[:2]), wider[:2].T)
    assert found["looked up"].of(wider[:3]) is None, "places that are looked up are not there"
    table[3, 1] = table[4, 1]
    assert not moved(model, {"table": table}), "of two equal numbers it is not known which one was moved"


def test_weights_of_depthwise_convolutions_are_drawn_in_any_order_of_memory() -> None:
    """Trained with channels last: a resumed study, which first exported such a model, failed."""
    weight = nn.Parameter(torch.zeros(8, 1, 3, 3).to(memory_format=torch.channels_last))
    draw(weight, torch.Generator().manual_seed(0))
    assert len(weight.unique()) == weight.numel()


def test_a_table_is_drawn_without_two_equal_numbers() -> None:
    table = nn.Parameter(torch.zeros(2 * 29 - 1, 29 * 12))
    draw(table, torch.Generator().manual_seed(0))
    plain = torch.empty(table.shape).normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    assert len(plain.unique()) < plain.numel(), "as many as these are not all different by chance"
    assert len(table.unique()) == table.numel()
    assert float((table - plain).ne(0).float().mean()) < 0.01
