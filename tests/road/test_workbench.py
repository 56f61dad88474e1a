"""Parts of the workbench with closed forms; the whole of it is driven by test_optimize."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from equipoise.road.bench import Workbench, one_thread, widths
from equipoise.runtimes import Target
from equipoise.runtimes.structure import layer_bits
from equipoise.study.store import Store
from equipoise.workloads import Workload


@pytest.mark.parametrize(("size", "menu"), [(64, (64, 48, 32, 24, 16)), (16, (16, 8)), (8, (8,)), (6, (6,)), (20, (20, 16, 8))])
def test_width_menus_start_whole_and_keep_to_the_multiple(size, menu) -> None:
    assert widths(size, 8) == menu


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.slow  # exports
def test_what_no_knob_sets_stays_float_in_a_mixed_plan(tmp_path: Path) -> None:
    """A Conv1d offers no precision: quantized all the same, it cost every plan with one int8 layer what no table knew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv1d(3, 24, 5), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24 * 12, 32), torch.nn.ReLU(),
            torch.nn.Linear(32, 3),
        ).eval()  # fmt: skip
        x = torch.randn(300, 3, 16)
    with torch.no_grad():
        y = net(x).argmax(1)
    work = Workload(model=net, train=(x[:100], y[:100]), validation=(x[100:200], y[100:200]), test=(x[200:], y[200:]))
    with Store.open(tmp_path / "study") as store:
        bench = Workbench.prepare(work, (Target("onnxruntime"),), store.blob)
        assert bench.unset == {"0"}
        space, source = bench.space, bench.source(bench.space.untouched, bench.teacher)

        def weights(*int8: str) -> dict[str, int]:
            plan = space.untouched.but({f"bits.{name}": 8 for name in int8})
            return layer_bits(bench.compile(plan, source).file("model.onnx"))

        assert weights("3") == {"0": 32, "3": 8, "5": 32}
        assert weights("3", "5") == {"0": 8, "3": 8, "5": 8}
