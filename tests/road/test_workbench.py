"""Parts of the workbench with closed forms; the whole of it is driven by test_optimize."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from equipoise.compress.technique import Draft
from equipoise.compress.width import widths
from equipoise.measure.counts import LayerCount, count
from equipoise.records import Plan
from equipoise.road.bench import Workbench, _row, one_thread
from equipoise.runtimes import Target
from equipoise.runtimes.structure import layer_bits
from equipoise.study.store import Store
from equipoise.workloads import Workload


@pytest.mark.parametrize(("size", "menu"), [(64, (64, 48, 32, 24, 16)), (16, (16, 8)), (8, (8,)), (6, (6,)), (20, (20, 16, 8))])
def test_width_menus_start_whole_and_keep_to_the_multiple(size, menu) -> None:
    assert widths(size, 8) == menu


@pytest.mark.parametrize(
    ("kind", "shape", "channels"),
    [("Conv2d", (1, 24, 9, 7), 24), ("Conv1d", (1, 24, 9), 24), ("Linear", (1, 50, 96), 96), ("Linear", (1, 10), 10)],
)
def test_channels_lie_on_the_second_dimension_of_a_map_and_on_the_last_one_of_tokens(kind, shape, channels) -> None:
    row = _row(LayerCount("x", kind, 5, 7, shape), {"x": 8}, torch.nn.Module())
    assert (row.out, row.params, row.macs, row.bits) == (channels, 5, 7, 8)
    assert _row(LayerCount("y", kind, 5, 7, shape), {"x": 8}, torch.nn.Module()).bits == 32


class _Reads(torch.nn.Module):
    """Two layers, of which one is never called: its weights are read, as torchvision's Swin reads those of its attention."""

    def __init__(self, kind: type[torch.nn.Module], *sizes: int) -> None:
        super().__init__()
        self.first, self.read = torch.nn.Linear(6, 8), kind(*sizes)
        self.total = torch.nn.Module()
        self.total.offset = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.read.weight.flatten(1)
        return torch.nn.functional.linear(torch.relu(self.first(x)), weight) + self.total.offset


@pytest.mark.parametrize(("kind", "sizes", "out"), [(torch.nn.Linear, (8, 5), 5), (torch.nn.Conv1d, (8, 7, 1), 7)])
def test_a_layer_that_is_never_called_has_a_row(kind, sizes, out) -> None:
    net = _Reads(kind, *sizes)
    rows = {row.name: row for layer in count(net, torch.randn(2, 6)).by_layer for row in [_row(layer, {}, net)]}
    assert (rows["first"].out, rows["read"].out, rows["total"].out) == (8, out, 1)
    assert sum(row.params for row in rows.values()) == sum(p.numel() for p in net.parameters())


def test_a_layer_of_any_name_may_answer_with_one_number() -> None:
    net = torch.nn.Module()
    assert _row(LayerCount("", "ConvEnergy", 5, 7, (1,)), {}, net).out == 1


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.slow  # exports
def test_what_no_knob_sets_stays_float_in_a_mixed_plan(tmp_path: Path) -> None:
    """A layer without a knob, quantized all the same, cost every plan with one int8 layer what no table knew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv1d(3, 24, 5, padding_mode="circular"),  # such a one offers no precision
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(24 * 12, 32),
            torch.nn.ReLU(),
            torch.nn.Linear(32, 3),
        ).eval()
        x = torch.randn(300, 3, 16)
    with torch.no_grad():
        y = net(x).argmax(1)
    work = Workload(model=net, train=(x[:100], y[:100]), validation=(x[100:200], y[100:200]), test=(x[200:], y[200:]))
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(work, (Target("onnxruntime"),), store.blob)
        assert bench.unset == {"0"}
        source = bench.source(bench.teacher)

        def weights(*int8: str) -> dict[str, int]:
            draft = bench.build(Plan({f"bits.{name}": 8 for name in int8}))
            return layer_bits(bench.compile(draft, source, bench.targets[0]).file("model.onnx"))

        assert weights("3") == {"0": 32, "3": 8, "5": 32}
        assert weights("3", "5") == {"0": 8, "3": 8, "5": 8}


@pytest.mark.slow  # exports
def test_the_untouched_program_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answered twice for its own score, half a minute each of what writes sentences."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), torch.randn(90, 4)
    parts = {role: (x[i : i + 30], x[i : i + 30].argmax(1) % 3) for i, role in ((0, "train"), (30, "validation"), (60, "test"))}
    calls: list[int] = []
    own = Workbench.outputs
    monkeypatch.setattr(Workbench, "outputs", lambda bench, program, n: calls.append(n) or own(bench, program, n))
    with Store.open(tmp_path / "study") as store:
        bench = Workbench(Workload(model=net, **parts), (Target("onnxruntime"),), store.blob)
        scored = bench.score(Plan({}), bench.untouched, fidelity="untouched")
        assert (scored.damage, calls) == (0.0, [30])
        net[0].weight.data.mul_(-1)
        changed = bench.score(Plan({}), Draft(net), fidelity="one-shot")
        assert changed.damage
        assert calls == [30, 30]
