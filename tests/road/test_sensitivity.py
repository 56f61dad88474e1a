"""Features of the cost models, against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.records import Evaluation, Plan, measured
from equipoise.road import prediction
from equipoise.road.sensitivity import Features, Layer, entry
from equipoise.runtimes.ops import OpSpec
from equipoise.search import Knob, Space

SPACE = Space(
    (Knob("width.a", (16, 8)), Knob("depth.block", ("keep", "drop")), Knob("bits.a", (32, 8)), Knob("bits.b", (32, 8)))
)
A, B = OpSpec("conv", 3, 16), OpSpec("conv", 16, 4)
LAYERS = (
    Layer(A, "a", 48, -1, 0, 2, (), (1.0,), (1.0, 0.5)),
    Layer(B, "block.b", 64, 0, -1, 3, (1,), (1.0, 0.5), (1.0,)),
)
TIMES = {
    entry(A, 32): 10.0,
    entry(OpSpec("conv", 3, 8), 32): 6.0,
    entry(B, 32): 20.0,
    entry(OpSpec("conv", 8, 4), 32): 11.0,
    entry(A, 8): 5.0,
    entry(OpSpec("conv", 3, 8), 8): 4.0,
    entry(B, 8): 8.0,
    entry(OpSpec("conv", 8, 4), 8): 6.0,
}
FEATURES = Features(LAYERS, TIMES, (32, 8))


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
    assert FEATURES.latency(np.array([genome]))[0] == pytest.approx(expected)


def test_size_features_count_what_is_kept_by_precision() -> None:
    rows = FEATURES.size(np.array([(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 0)]))
    assert rows == pytest.approx(np.array([(1, 112, 0, 2), (1, 32, 24, 2), (1, 48, 0, 1)]))


def test_without_int8_everything_is_float() -> None:
    only = Features(LAYERS, TIMES, (32,))
    assert only.latency(np.array([(0, 0, 1, 1)]))[0] == pytest.approx((1, 30.0, 0.0, 0, 2))


def evaluation(plan: Plan, seconds: float) -> Evaluation:
    nothing = measured(0.0, "points")
    return Evaluation(plan, "one-shot", nothing, nothing, {"latency_s": measured(seconds, "s")}, details={"runtime": "it"})


def test_the_fit_recovers_a_planted_cost() -> None:
    genomes = np.array(np.meshgrid(*[range(2)] * 4)).T.reshape(-1, 4)
    genomes = np.unique(SPACE.canonical(genomes), axis=0)
    truth = FEATURES.latency(genomes) @ np.array([3.0, 1.2, 0.9, 2.0, 0.0])
    seen = [evaluation(SPACE.decode(row), t) for row, t in zip(genomes, truth, strict=True)]
    fitted = prediction.fit("latency_s", SPACE, {"it": FEATURES}, seen)
    assert fitted.many(genomes) == pytest.approx(truth, rel=0.05)
    unfitted = prediction.fit("latency_s", SPACE, {"it": FEATURES}, [])
    assert not np.allclose(unfitted.many(genomes), truth, rtol=0.05)  # the tables alone do not know the planted overhead
