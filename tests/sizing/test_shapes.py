"""The search on shape, on a planted law whose best kernel is not the family's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equipoise.scaling import Available, Law, Run, fit
from equipoise.scaling.runs import BACKWARD
from equipoise.sizing.shapes import Shapes
from equipoise.workloads import family

CNN = family("cnn")
LAW = Law(0.4, 30.0, 60.0, 0.4, 0.4)
FLOPS = 3e12
BEST = 5.0


def available(scale) -> Available:
    params = scale["width"] ** 2 * scale["kernel"] ** 2 * scale["depth"]
    return Available(float(params), 2.0 * params * 64 * scale["resolution"] ** 2, dict(scale))


def made(size: Available, samples: float, *, kernel: float = BEST) -> Run:
    """A run of the planted truth; of `kernel` other than the best costs loss, smaller resolution too."""
    off = 0.15 * math.log(size.scale["kernel"] / kernel) ** 2 + 0.1 * math.log(size.scale["resolution"]) ** 2
    return Run(
        params=size.params,
        samples=samples,
        flops_per_sample=size.flops_per_sample,
        scale=size.scale,
        loss=float(LAW.loss(size.params, samples)) * math.exp(off),
    )


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    ray = tuple(available(CNN.grow(factor)) for factor in (1 / 16, 1 / 4, 1, 4))
    runs = [made(size, c / (BACKWARD * size.flops_per_sample)) for size in ray for c in (FLOPS / 9, FLOPS / 3, FLOPS)]
    return Shapes(CNN, available, ray, fit(runs, seed=0, starts=25, size="params"))


def taught(shapes: Shapes, *, kernel: float = BEST) -> Shapes:
    scales = shapes.star(shapes.ray[2])
    sizes = [available(s) for s in scales]
    return shapes.taught([made(size, FLOPS / (BACKWARD * size.flops_per_sample), kernel=kernel) for size in sizes])


def test_a_star_moves_each_dimension_alone(shapes) -> None:
    base = shapes.ray[2]
    for scale in shapes.star(base):
        assert sum(scale[name] != base.scale[name] for name in scale) == 1
    assert {name for scale in shapes.star(base) for name in scale if scale[name] != base.scale[name]} >= {
        "width",
        "depth",
        "kernel",
    }


def test_on_the_ray_nothing_is_added_to_the_law(shapes) -> None:
    for known in (shapes, taught(shapes)):
        mean, sd = known.shift(list(shapes.ray))
        assert mean.tolist() == [0.0] * len(shapes.ray)
        assert sd.tolist() == [0.0] * len(shapes.ray)


def test_runs_off_the_ray_teach_which_kernel_is_better(shapes) -> None:
    known = taught(shapes)
    size = available(CNN.scale(**{**shapes.ray[2].scale, "kernel": 5}))
    gain = float(known.shift([size])[0][0])
    assert gain == pytest.approx(-0.15 * math.log(3 / 5) ** 2, abs=0.02)  # the ray's own kernel is 3
    other = taught(shapes, kernel=3.0)  # control: where 3 is best, 5 is no gain
    assert float(other.shift([size])[0][0]) > gain + 0.01


def test_the_search_finds_shapes_that_the_taught_law_likes_better(shapes) -> None:
    known = taught(shapes)
    front = known.search(FLOPS, rng=np.random.default_rng(0), hopeful=False)
    assert front
    best, loss = front[0]
    own = min(known._log_loss(size, FLOPS) for size in shapes.ray)
    assert loss <= own + 1e-9
    assert front == known.search(FLOPS, rng=np.random.default_rng(0), hopeful=False)  # the same numbers, the same answer
    work = [size.flops_per_sample for size, _ in front]
    assert work == sorted(work, reverse=True)  # a front: what is worse in loss costs less to serve
    assert best.scale.keys() == CNN.scale().keys()
