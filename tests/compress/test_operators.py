"""A model's layers as operators: those that what is judged depends on, whatever else runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise import runtimes
from equipoise.compress.operators import operators
from equipoise.compress.trace import record
from equipoise.ops import Op
from equipoise.records import Plan
from equipoise.road.bench import Workbench
from equipoise.runtimes import Target
from equipoise.runtimes.structure import layer_bits
from equipoise.study.store import Store
from equipoise.workloads import Workload


class Heads(nn.Module):
    """Two outputs, of which one is judged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.kind = nn.Linear(6, 16), nn.Linear(16, 3)
        self.aside, self.age = nn.Linear(16, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        return {"kind": self.kind(x), "age": self.age(F.relu(self.aside(x)))}


def test_layers_of_an_output_that_is_not_judged_are_no_operators() -> None:
    class Judged(Heads):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)["kind"]

    x = torch.randn(4, 6)
    assert list(operators(Judged(), x)) == ["stem", "kind"]
    assert list(operators(Heads(), x)) == ["stem", "kind", "aside", "age"]


@pytest.mark.slow  # exports
@pytest.mark.parametrize("choice", [8, "4-weights"])
def test_every_plan_of_a_model_with_an_output_aside_compiles(choice: int | str, tmp_path: Path) -> None:
    """The layers of the other output are not in the file: a plan that set them was refused as one with unknown layers."""
    torch.manual_seed(0)
    x = torch.randn(96, 6)
    net = Heads().eval()
    y = net(x)["kind"].argmax(1)
    splits = {"train": (x[:60], y[:60]), "validation": (x[60:80], y[60:80]), "test": (x[80:], y[80:])}
    work = Workload(model=net, output="kind", **splits)
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(work, (Target("onnxruntime"),), store.blob)
        knobs = [row.knob.name for row in bench.facts.offered if choice in row.knob.menu]
        assert knobs == ["bits.model.stem", "bits.model.kind"]
        for chosen in (knobs, knobs[:1]):
            draft = bench.on_grid(bench.build(Plan(dict.fromkeys(chosen, choice))))
            bits = layer_bits(bench.compile(draft, bench.source(draft.model), bench.targets[0]).file("model.onnx"))
            assert [bits[name.removeprefix("bits.")] < 32 for name in knobs] == [name in chosen for name in knobs]


def test_what_is_written_into_a_view_is_needed() -> None:
    class Into(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out = x.new_zeros(len(x), 8)
            half = out[:, :4]
            half.add_(self.left(x))
            out[:, 4:] = self.right(x)
            return out

    x = torch.randn(3, 6)
    assert list(operators(Into(), x)) == ["left", "right"]
    assert record(Into(), x).needed() == frozenset(), "its origin is not seen, and so everything counts"


@pytest.mark.parametrize("samples", [2, 0])
def test_a_layer_that_no_sample_reaches_is_an_operator_of_one_row(samples: int) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.never, self.table = nn.Linear(6, 4), nn.Linear(6, 4), nn.Embedding(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            out, rows = self.often(x), torch.arange(samples)
            return out.index_add(0, rows, self.never(x[rows]) + self.table(rows))

    found = operators(Routed(), torch.randn(3, 6))
    assert [(name, op.height) for name, op in found.items()] == [("often", 1), ("never", 1), ("table", 1)]


class Places(nn.Embedding):
    """A table of places that is asked by a shape, as Marian's."""

    def forward(self, shape: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        return super().forward(torch.arange(shape[1]))


def test_layers_are_seen_however_they_are_called() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.places, self.head = nn.Embedding(9, 4), Places(7, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(input=self.table(input=ids) + self.places(ids.shape))

    found = operators(Named(), torch.zeros(3, 5, dtype=torch.long))
    assert {name: op.height for name, op in found.items()} == {"table": 5, "head": 5}


class Made(nn.Module):
    """A layer whose weights another one makes of what the model holds, and a table of places."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.places, self.head = nn.Linear(4, 48), nn.Embedding(6, 8), nn.Linear(8, 3)
        self.seed = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.maker(self.seed.tanh()).view(8, 6)
        return self.head(F.relu(F.linear(x, weight)) + self.places(torch.arange(6)).mean(0))


def test_a_layer_that_makes_a_constant_is_no_operator() -> None:
    assert list(operators(Made(), torch.randn(3, 6))) == ["places", "head"]


@pytest.mark.slow  # exports
@pytest.mark.parametrize("choice", [8, "4-weights"])
def test_a_plan_for_a_table_that_the_file_holds_no_more_compiles(choice: int | str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, net = torch.randn(96, 6), Made().eval()
    y = net(x).argmax(1)
    splits = {"train": (x[:60], y[:60]), "validation": (x[60:80], y[60:80]), "test": (x[80:], y[80:])}
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(Workload(model=net, **splits), (Target("onnxruntime"),), store.blob)
        knobs = {row.knob.name: choice for row in bench.facts.offered if choice in row.knob.menu}
        draft = bench.on_grid(bench.build(Plan(knobs)))
        program = bench.compile(draft, bench.source(draft.model), bench.targets[0])
        bits = layer_bits(program.file("model.onnx"))
        assert bits["head"] == (8 if choice == 8 else 4)
        told = "the file holds no weights of it: what it computes is a constant there"
        assert choice == 8 or ("places" in bits) != (program.left.get("places") == told)


class Sound(nn.Module):
    """Convolutions of one dimension, as models of sound have them."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(3, 24, 5, stride=2, padding=2)
        self.deep = nn.Conv1d(24, 24, 3, padding="same", dilation=2, groups=24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.deep(F.relu(self.front(x)))).mean(2))


def test_a_convolution_of_one_dimension_is_one_of_a_single_row() -> None:
    found = operators(Sound(), torch.randn(2, 3, 33))
    assert found["front"] == Op("conv", 3, 24, (1, 5), (1, 2), (0, 2), height=1, width=33, relu=True)
    assert found["deep"] == Op("conv", 24, 24, (1, 3), (1, 1), (0, 2), (1, 2), groups=24, height=1, width=17, relu=True)
    assert found["front"].weights == 3 * 24 * 5


@pytest.mark.slow  # exports
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("choice", [8, "4-weights"])
def test_convolutions_of_one_dimension_offer_their_precision(choice: int | str, target: str, tmp_path: Path) -> None:
    """They offered none, so that a third of a small model of speech stayed in floats."""
    torch.manual_seed(0)
    x = torch.randn(300, 3, 32)
    net = Sound().eval()
    y = net(x).argmax(1)
    work = Workload(model=net, train=(x[:100], y[:100]), validation=(x[100:200], y[100:200]), test=(x[200:], y[200:]))
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(work, (Target(target),), store.blob)
        knobs = ["bits.front", "bits.deep", "bits.head"]
        assert {row.knob.name for row in bench.facts.offered} >= {*knobs}
        draft = bench.on_grid(bench.build(Plan(dict.fromkeys(knobs, choice))))
        program = bench.compile(draft, bench.source(draft.model), bench.targets[0])
        answers = runtimes.get(target).load(program).run(x[:64].numpy())
    agreed = (torch.as_tensor(answers).argmax(1) == y[:64]).float().mean()
    assert agreed >= (0.9 if choice == 8 else 0.7)
