"""Graphs made of those of kin: what they compute, which names they hold, and when none is made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from equipoise.compress.blocks import drop, droppable
from equipoise.compress.factorize import factorize
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.kin import grown, parts_of
from equipoise.runtimes.layers import layer_nodes
from equipoise.workloads import family
from equipoise.workloads.task import Shape

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deep(torch.relu(self.wide(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=(2, 1), padding=(1, 0))
        self.first, self.second = Block(8), Block(8)
        self.rows, self.head = nn.Linear(10, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.rows(x).mean((1, 2))))


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def thin(model: nn.Module) -> nn.Module:
    return factorize(model, IMAGES, ranks={"first.wide": (3, 5), "second.wide": 6, "rows": 4, "head": 3, "second.deep": 2})


def shorter(model: nn.Module) -> nn.Module:
    blocks = droppable(model, IMAGES)
    return drop(model, [blocks["first"]])


def biased(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer, width in ((model.first.wide, 16), (model.rows, 12)):  # type: ignore[union-attr]
        layer.bias = nn.Parameter(torch.linspace(-1, 1, width))  # type: ignore[union-attr]
    return model


def all_at_once(model: nn.Module) -> nn.Module:
    return factorize(shorter(biased(model)), IMAGES, ranks={"rows": 4, "second.wide": 6})


CHANGES: tuple[Callable[[nn.Module], nn.Module], ...] = (thin, shorter, biased, all_at_once)


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_of_kin_is_the_exported_one(change: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    changed = change(model)
    exporter = Exporter()
    exporter.onnx(model, IMAGES, topology="whole")
    found = exporter.onnx(changed, IMAGES, topology="changed")
    assert exporter.exports == 1
    exported = Exporter().onnx(changed, IMAGES, topology="changed")
    assert layer_nodes(found).keys() == layer_nodes(exported).keys()
    assert held(found) == held(exported)
    assert [node.op_type for node in onnx.load_from_string(found).graph.node] == [
        node.op_type for node in onnx.load_from_string(exported).graph.node
    ]


def held(content: bytes) -> dict[str, bytes]:
    graph = onnx.load_from_string(content).graph
    return {t.name: numpy_helper.to_array(t).tobytes() for t in graph.initializer if t.name.partition(".")[2]}


WRITES = (
    "writes.0",
    "writes.1",
    "writes.2",
    "reads.1.merge",
    "reads.0.narrow",
    "writes.3,writes.4,writes.5",
    "writes.0,writes.4",
)


@pytest.mark.parametrize("gone", WRITES)
def test_parts_of_what_writes_go_with_what_was_kept_for_them(writes: tuple[nn.Module, Any, Exporter], gone: str) -> None:
    model, example, exporter = writes
    blocks = droppable(model, example)
    shorter, before = drop(model, [blocks[name] for name in gone.split(",")]), exporter.exports
    found = exporter.onnx(shorter, example, topology=gone)
    assert exporter.exports == before  # it was compared with torch: whole, read in parts, and at two lengths
    parts = [type(part).__name__ for part in shorter.writes]  # type: ignore[union-attr]
    assert kept(found) == (2 * parts.count("SelfAttention"), 2 * parts.count("CrossAttention") + 1)


@pytest.fixture(scope="module")
def writes() -> tuple[nn.Module, Any, Exporter]:
    shape = Shape((12,), 30, vocabulary=30, dense=True, written=10)
    generator = torch.Generator().manual_seed(0)
    model = family("transformer").model({"width": 16, "depth": 2, "heads": 2, "expansion": 2}, shape, generator=generator)
    rows = [torch.randint(1, 30, (4, places), generator=generator) for places in (12, 10)]
    exporter, example = Exporter(), {"source": rows[0], "written": rows[1]}
    exporter.onnx(model.eval(), example, topology="whole")
    return model, example, exporter


def test_a_term_of_a_sum_is_left_out_where_the_past_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = Shape((12,), 30, vocabulary=30, dense=True)
    model = family("gpt").model({"width": 16, "depth": 2, "heads": 2}, shape, generator=generator).eval()
    example, exporter = torch.randint(0, 30, (4, 12), generator=generator), Exporter()
    exporter.onnx(model, example, topology="whole")
    blocks = droppable(model, example)
    shorter = drop(model, [blocks["block1.narrow"], blocks["block2.narrow"]])
    assert kept(exporter.onnx(shorter, example, topology="shorter")) == (4, 0)
    assert exporter.exports == 1


def kept(content: bytes) -> tuple[int, int]:
    """How many pasts and memories a file has, numbered from 0 on, each past with a default and what comes next of it."""
    graph = onnx.load_from_string(content).graph
    given, out, defaults = ([value.name for value in values] for values in (graph.input, graph.output, graph.initializer))
    pasts, memories = sum(name.startswith("past_") for name in given), sum(name.startswith("memory_") for name in out)
    assert {f"past_{i}" for i in range(pasts)} <= {*given} & {*defaults}
    assert {f"present_{i}" for i in range(pasts)} | {f"memory_{i}" for i in range(memories)} == {*out} - {"output"}
    return pasts, memories


def test_what_was_only_guessed_is_exported_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.runtimes import export

    def wrong(graph: Any, parts: Any, model: nn.Module) -> Any:
        made = grown(graph, parts, model)
        assert made is not None
        next(node for node in made.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
        return made

    model, exporter = net(), Exporter()
    exporter.onnx(model, IMAGES, topology="whole")
    monkeypatch.setattr(export, "grown", wrong)
    assert held(exporter.onnx(thin(model), IMAGES, topology="thin")) == held(
        Exporter().onnx(thin(model), IMAGES, topology="thin")
    )
    assert exporter.exports == 2


def test_other_modules_make_no_graph() -> None:
    model = net()
    graph = onnx.load_from_string(Exporter().onnx(model, IMAGES, topology="whole"))
    before = graph.SerializeToString()
    other = copy.deepcopy(model)
    other.first = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh())
    assert grown(graph, parts_of(model), other) is None
    other.first = nn.Identity()
    del other.second
    assert grown(graph, parts_of(model), other) is None  # the names of `second` are gone without a stand-in
    padded = copy.deepcopy(model)
    padded.stem = nn.Sequential(*(nn.Conv2d(3, 8, 3, padding_mode="reflect", padding=1), nn.Conv2d(8, 8, 1)))
    assert grown(graph, parts_of(model), padded) is None
    assert grown(graph, parts_of(model), model) is None  # nothing differs: the export itself is at hand
    assert graph.SerializeToString() == before


def test_what_might_do_something_on_other_inputs_is_exported() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.Linear(8, 2)).eval()
    bounded, x, exporter = copy.deepcopy(plain), 0.1 * torch.randn(2, 4), Exporter()
    bounded[1] = nn.Hardtanh(-3, 3)
    exporter.onnx(plain, x, topology="plain")
    kinds = [node.op_type for node in onnx.load_from_string(exporter.onnx(bounded, x, topology="bounded")).graph.node]
    assert exporter.exports == 2
    assert "Clip" in kinds
