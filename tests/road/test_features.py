"""Features of the cost models, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.axes import AXES
from equipoise.budget import parse_budget
from equipoise.compress.width import narrowed
from equipoise.meters import Meters
from equipoise.ops import Op
from equipoise.records import Evaluation, Knob, Plan, ProgramRef, measured
from equipoise.road import prediction
from equipoise.road.facts import TARGET, Act, Layer
from equipoise.road.features import FEATURES, PRIORS, Features, completed, entry, variants
from equipoise.search import Space

SPACE = Space(
    (Knob("width.a", (16, 8)), Knob("depth.block", ("keep", "drop")), Knob("bits.a", (32, 8)), Knob("bits.b", (32, 8)))
)
A, B = Op("conv", 3, 16), Op("conv", 16, 4)
HALF_A, HALF_B = Op("conv", 3, 8), Op("conv", 8, 4)
LAYERS = (
    Layer("a", A, 48, (Act("width.a", (16, 8), ((A,), (HALF_A,))),), "bits.a"),
    Layer(
        "block.b", B, 64,
        (Act("width.a", (16, 8), ((B,), (HALF_B,))), Act("depth.block", ("keep", "drop"), ((B,), ()))), "bits.b",
    ),
)  # fmt: skip
TIMES = {
    entry(A, 32): 10.0, entry(HALF_A, 32): 6.0, entry(B, 32): 20.0, entry(HALF_B, 32): 11.0,
    entry(A, 8): 5.0, entry(HALF_A, 8): 4.0, entry(B, 8): 8.0, entry(HALF_B, 8): 6.0,
}  # fmt: skip
COSTS = Features(SPACE, LAYERS, TIMES, (32, 8))


@pytest.mark.parametrize(
    ("genome", "expected"),
    [
        ((0, 0, 0, 0), (1, 30.0, 0.0, 0, 2)),  # untouched: both layers in fp32
        ((1, 0, 0, 0), (1, 17.0, 0.0, 0, 2)),  # the narrower entries
        ((0, 0, 1, 0), (1, 20.0, 5.0, 1, 2)),  # one change of precision
        ((1, 0, 1, 1), (1, 0.0, 10.0, 0, 2)),
        ((1, 1, 0, 1), (1, 6.0, 0.0, 0, 1)),  # a dropped layer costs nothing and changes nothing
    ],
)
def test_latency_features_are_the_sums_of_their_entries(genome, expected) -> None:
    assert COSTS.latency(np.array([genome]))[0] == pytest.approx(expected)


def test_what_each_layer_adds_sums_to_the_features() -> None:
    genomes = np.array([(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (1, 0, 0, 1)])
    parts = COSTS.by_layer(genomes)
    assert parts[:, :, 1:].sum(axis=1) == pytest.approx(COSTS.latency(genomes)[:, 1:])
    assert not parts[:, :, 0].any()  # what a call takes is no layer's
    assert parts[1, :, 3].tolist() == [0.0, 1.0]  # a border is of the layer behind it


def test_size_features_count_what_is_kept_by_precision() -> None:
    genomes = np.array([(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 0)])
    assert COSTS.size(genomes) == pytest.approx(np.array([(1, 112, 0, 2, 0, 0), (1, 32, 24, 1, 1, 0), (1, 48, 0, 1, 0, 0)]))
    assert COSTS.params(genomes) == pytest.approx(np.array([(1, 112), (1, 56), (1, 48)]))
    assert COSTS.macs(genomes) == pytest.approx(np.array([(1, 112), (1, 56), (1, 48)]))  # on one pixel a MAC a weight


def test_a_layer_put_into_two_is_two_operators() -> None:
    whole, halves = Op("linear", 8, 8), (Op("linear", 8, 2), Op("linear", 2, 8))
    space = Space((Knob("rank.a", (100, 50)), Knob("bits.a", (32, 8))))
    layer = Layer("a", whole, 64, (Act("rank.a", (100, 50), ((whole,), halves)),), "bits.a")
    found = Features(space, (layer,), completed({}, (layer,), (32, 8)), (32, 8))
    rows = found.size(np.array([(0, 0), (1, 0), (1, 1)]))
    assert rows == pytest.approx(np.array([(1, 64, 0, 1, 0, 0), (1, 32, 0, 2, 0, 0), (1, 0, 32, 0, 2, 0)]))
    assert found.latency(np.array([(1, 0)]))[0, -1] == 2


def test_what_a_choice_puts_before_the_model_is_timed_and_there_under_it_alone() -> None:
    """Smaller images must be made first; the times of the layers alone promised half the latency that was then measured."""
    whole = Op("resize", 3, 3, height=8, width=8)
    small, smaller = replace(whole, kernel=(6, 6)), replace(whole, kernel=(4, 4))
    layers = (Layer("resolution", small, 0, (Act("resolution", (8, 6, 4), ((), (small,), (smaller,))),)), *LAYERS)
    space = Space((Knob("resolution", (8, 6, 4)), *SPACE.knobs))
    times = completed({**TIMES, entry(small, 32): 7.0, entry(smaller, 32): 4.0}, layers, (32, 8))
    found = Features(space, layers, times, (32, 8))
    rows = found.latency(np.array([(choice, 0, 0, 0, 0) for choice in range(3)]))
    assert rows == pytest.approx(np.array([(1, 30, 0, 0, 2), (1, 37, 0, 0, 3), (1, 34, 0, 0, 3)]))
    assert found.size(np.array([(2, 0, 0, 0, 0)])) == pytest.approx(np.array([(1, 112, 0, 3, 0, 0)]))
    few = completed({entry(small, 32): 7.0, entry(A, 32): TIMES[entry(A, 32)]}, layers, (32,))  # the time ended early
    assert few[entry(B, 32)] == pytest.approx(B.work * TIMES[entry(A, 32)] / A.work)  # what has no MACs tells no pace
    gone = Features(SPACE, layers, times, (32, 8))
    assert gone.latency(np.array([(0, 0, 0, 0)])) == pytest.approx(np.array([(1, 30, 0, 0, 2)]))
    assert {small, smaller} <= set(variants(layers, {"resolution"}))


def test_without_int8_everything_is_float() -> None:
    only = Features(SPACE, LAYERS, TIMES, (32,))
    assert only.latency(np.array([(0, 0, 1, 1)]))[0] == pytest.approx((1, 30.0, 0.0, 0, 2))


def test_a_choice_that_left_the_menu_leaves_the_features_of_the_others() -> None:
    less = SPACE.restrict({"width.a": [16], "depth.block": ["keep"]})
    assert Features(less, LAYERS, TIMES, (32, 8)).latency(np.array([(0, 0, 1, 0)]))[0] == pytest.approx((1, 20, 5, 1, 2))
    gone = Space(tuple(k for k in SPACE.knobs if k.name != "width.a"))
    assert Features(gone, LAYERS, TIMES, (32, 8)).latency(np.array([(1, 0, 0)]))[0] == pytest.approx((1, 10, 0, 0, 1))


def evaluation(plan: Plan, seconds: float, target: str = "it") -> Evaluation:
    nothing, ref = measured(0.0, "points"), ProgramRef("onnxruntime", "fp32", target, {})
    return Evaluation(plan, "one-shot", nothing, nothing, {"latency_s": measured(seconds, "s")}, program=ref)


def test_the_fit_recovers_a_planted_cost() -> None:
    genomes = np.array(np.meshgrid(*[range(2)] * 4)).T.reshape(-1, 4)
    genomes = np.unique(SPACE.canonical(genomes), axis=0)
    truth = COSTS.latency(genomes) @ np.array([3.0, 1.2, 0.9, 2.0, 0.0])
    seen = [evaluation(SPACE.decode(row), t) for row, t in zip(genomes, truth, strict=True)]
    fitted = prediction.fit("latency_s", SPACE, {"it": COSTS}, seen)
    assert fitted.many(genomes) == pytest.approx(truth, rel=0.05)
    unfitted = prediction.fit("latency_s", SPACE, {"it": COSTS}, [])
    assert not np.allclose(unfitted.many(genomes), truth, rtol=0.05)  # the tables alone do not know the planted overhead


def test_each_target_has_features_and_weights_of_its_own() -> None:
    space = Space((Knob(TARGET, ("x", "y")), *SPACE.knobs))
    slow = {key: 3 * seconds for key, seconds in TIMES.items()}
    both = {"x": Features(space, LAYERS, TIMES, (32, 8)), "y": Features(space, LAYERS, slow, (32,))}
    rows = np.array([(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (1, 0, 0, 1, 1)])
    assert prediction.fit("latency_s", space, both, []).many(rows) == pytest.approx([30.0, 90.0, 90.0])
    seen = [evaluation(space.decode(row), 180.0, "y") for row in rows[1:2]] * 3
    fitted = prediction.fit("latency_s", space, both, seen).many(rows)
    assert fitted[0] == pytest.approx(30.0)  # nothing was measured there: the prior
    assert fitted[1] > 95.0


def test_every_predicted_axis_has_features_and_a_prior_or_follows_from_one_that_has() -> None:
    for axis in AXES.values():
        if axis.predicted:
            base = AXES[axis.of] if axis.of else axis
            assert FEATURES[base.key](COSTS, np.zeros((1, 4), dtype=int)).shape[1] == len(PRIORS[base.key])


def test_bounds_are_on_what_is_read_and_the_tightest_counts() -> None:
    meters = Meters(2, price_per_hour=3.6, grid=360.0)
    found = prediction.bounds(parse_budget("throughput>=1000/s, latency<=5ms, drop<=1, size<=1KB, quality>=90"), meters)
    assert found == {"latency_s": pytest.approx(2e-3), "size_bytes": 1000.0}
    assert prediction.bounds(parse_budget("price<=1$"), meters) == {"latency_s": pytest.approx(2e-3)}
    assert prediction.bounds(parse_budget("carbon<=1g"), meters) == {"energy_j": pytest.approx(1e4)}


def test_what_is_beyond_a_bound_is_told_relative_to_it() -> None:
    rows = np.array([(0, 0, 0, 0), (1, 0, 0, 0)])
    cost = prediction.fit("latency_s", SPACE, {"it": COSTS}, [])
    assert prediction.Bounded((cost,), (17.0,)).excess(rows) == pytest.approx(np.array([[30 / 17 - 1], [0.0]]))
    assert prediction.Bounded((), ()).excess(rows).shape == (2, 0)


WIDE, PAIRED = Op("conv", 3, 16, height=8, width=8), Op("conv", 16, 4, height=8, width=8)
MAPS = (
    Layer("a", WIDE, 48, (Act("width.a", (16, 8), ((WIDE,), (Op("conv", 3, 8, height=8, width=8),))),)),
    Layer("b", PAIRED, 64, (Act("width.a", (16, 8), ((PAIRED,), (Op("conv", 8, 4, height=8, width=8),))),)),
)


def test_operators_that_were_not_timed_are_predicted_from_their_work() -> None:
    timed = {entry(WIDE, 32): 48.0}
    found = completed(timed, MAPS, (32, 8))
    assert set(found) == {entry(op, bits) for op in variants(MAPS) for bits in (32, 8)}
    assert found[entry(WIDE, 32)] == 48.0
    assert found[entry(Op("conv", 3, 8, height=8, width=8), 32)] == pytest.approx(24.0)
    assert found[entry(PAIRED, 32)] == pytest.approx(48.0 * PAIRED.work / WIDE.work)
    assert all(seconds > 0 for seconds in completed({}, MAPS, (32, 8)).values())


def test_only_the_operators_of_knobs_that_are_left_are_timed_whole_layers_first() -> None:
    assert variants(MAPS, frozenset()) == [WIDE, PAIRED]
    assert variants(MAPS)[:2] == [WIDE, PAIRED]
    assert len(variants(MAPS)) == 4


def test_a_depthwise_layer_is_narrowed_on_both_sides_and_a_grouped_one_by_whole_groups() -> None:
    deep, grouped = Op("conv", 16, 16, groups=16), Op("conv", 24, 16, groups=4)
    assert [(o.cin, o.cout, o.groups) for o in (narrowed(deep, 0.5, 1.0), narrowed(deep, 1.0, 0.5))] == [(8, 8, 8)] * 2
    thin = narrowed(grouped, 0.4, 1.0)
    assert (thin.cin, thin.cout, thin.groups) == (8, 16, 4)
