"""Parts of the workbench with closed forms; the whole of it is driven by test_optimize."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.compress.width import widths
from equipoise.measure.counts import LayerCount
from equipoise.records import Plan
from equipoise.road.bench import Workbench, _row, damage, one_thread
from equipoise.runtimes import Target
from equipoise.runtimes.structure import layer_bits
from equipoise.study.store import Store
from equipoise.workloads import Workload
from equipoise.workloads.meaning import Divergence

LABELS, VALUES = Divergence("softmax"), Divergence("values")


def test_damage_of_classifiers_is_the_divergence() -> None:
    reference, outputs = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert damage(reference, outputs + 3.0, LABELS) == pytest.approx(expected)  # logits may be shifted
    assert damage(reference, reference, LABELS) == pytest.approx(0.0)
    assert damage(outputs, reference, LABELS) != pytest.approx(expected)  # the direction matters


def test_damage_of_regressors_is_relative() -> None:
    reference = np.array([[0.0], [2.0], [4.0]])
    assert damage(reference, reference + 1.0, VALUES) == pytest.approx(1 / torch.tensor(reference).var().item())
    assert damage(10 * reference, 10 * (reference + 1.0), VALUES) == pytest.approx(damage(reference, reference + 1.0, VALUES))


def test_damage_of_yes_or_no_outputs_counts_each_on_its_own() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    reference, outputs = np.array([[logit(0.5), logit(0.9)]]), np.array([[logit(0.25), logit(0.9)]])
    expected = 0.5 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))  # the other output is the same: a mean of two
    several = Divergence("bernoulli")
    assert damage(reference, outputs, several) == pytest.approx(expected)
    assert damage(reference, reference + 3.0, several) > 0.1  # a shift is seen, as softmax would not
    assert damage(reference, reference + 3.0, Divergence("softmax")) == pytest.approx(0.0)
    chances = (np.array([[0.5, 0.9]]), np.array([[0.25, 0.9]]))
    assert damage(*chances, Divergence("bernoulli", probabilities=True)) == pytest.approx(expected)


def test_damage_of_probabilities_is_not_squashed_twice() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert damage(p, q, Divergence("softmax", probabilities=True)) == pytest.approx(expected)
    assert damage(p, q, Divergence("softmax")) != pytest.approx(expected, rel=0.1)  # control
    assert damage(np.log(p), np.log(q), Divergence("softmax")) == pytest.approx(expected)
    sure = damage(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), Divergence("softmax", probabilities=True))
    assert 10 < sure < math.inf


def test_damage_of_values_counts_each_output_in_its_own_spread() -> None:
    reference = np.array([[0.0, 0.0, 7.0], [1.0, 1000.0, 7.0], [2.0, 2000.0, 7.0]])  # the last never moves
    small, large = (damage(reference, reference + np.array(by), VALUES) for by in ([1.0, 0, 0], [0, 1000.0, 0]))
    assert small == pytest.approx(large) == pytest.approx(1 / 3)
    assert damage(reference, reference + np.array([0, 0, 1.0]), VALUES) < 1e-6


def test_damage_finds_the_classes_where_they_lie() -> None:
    draw = np.random.default_rng(0)
    reference, outputs = draw.normal(size=(3, 4, 5)), draw.normal(size=(3, 4, 5))
    last = damage(reference, outputs, Divergence("softmax", axis=2))
    assert last == pytest.approx(damage(reference.swapaxes(1, 2), outputs.swapaxes(1, 2), Divergence("softmax")))
    assert last != pytest.approx(damage(reference, outputs, Divergence("softmax")))


@pytest.mark.parametrize(("size", "menu"), [(64, (64, 48, 32, 24, 16)), (16, (16, 8)), (8, (8,)), (6, (6,)), (20, (20, 16, 8))])
def test_width_menus_start_whole_and_keep_to_the_multiple(size, menu) -> None:
    assert widths(size, 8) == menu


@pytest.mark.parametrize(
    ("kind", "shape", "channels"),
    [("Conv2d", (1, 24, 9, 7), 24), ("Conv1d", (1, 24, 9), 24), ("Linear", (1, 50, 96), 96), ("Linear", (1, 10), 10)],
)
def test_channels_lie_on_the_second_dimension_of_a_map_and_on_the_last_one_of_tokens(kind, shape, channels) -> None:
    row = _row(LayerCount("x", kind, 5, 7, shape), {"x": 8})
    assert (row.out, row.params, row.macs, row.bits) == (channels, 5, 7, 8)
    assert _row(LayerCount("y", kind, 5, 7, shape), {"x": 8}).bits == 32


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
            torch.nn.Conv1d(3, 24, 5),
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
