"""Every quality and every drop has an interval, in points of the metric, whatever the metric is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch import Tensor

from equipoise.errors import InputError
from equipoise.records import Reading
from equipoise.workloads import METRICS, Metric, Scores
from equipoise.workloads.meaning import scale_of
from equipoise.workloads.metrics import metric_of
from equipoise.workloads.scoring import drop_reading, quality_reading

SOURCE = torch.Generator().manual_seed(3)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float()


def scored(n: int, wrong: int) -> tuple[Any, Tensor]:
    """Outputs of `n` samples of 4 classes of which the first `wrong` are wrong, and the labels."""
    labels = torch.randint(0, 4, (n,), generator=SOURCE)
    outputs = torch.nn.functional.one_hot(labels, 4).float()
    outputs[:wrong] = outputs[:wrong].roll(1, 1)
    return outputs.numpy(), labels


def ends(reading: Reading) -> tuple[float, float]:
    """Both ends of an interval that there must be."""
    assert reading.low is not None
    assert reading.high is not None
    return reading.low, reading.high


def test_drop_is_in_points_and_larger_is_worse_for_every_metric() -> None:
    good, bad = torch.tensor([[0.0, 1.0]] * 4).numpy(), torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]).numpy()
    labels = torch.ones(4, dtype=torch.long)
    assert drop_reading(METRICS["accuracy"], good, bad, labels).get() == pytest.approx(50.0)
    assert drop_reading(METRICS["accuracy"], bad, good, labels).get() == pytest.approx(-50.0)
    near, far, target = (np.full((4, 1), v, dtype=np.float32) for v in (1.0, 3.0, 0.0))
    assert drop_reading(METRICS["mse"], near, far, torch.from_numpy(target)).get() == pytest.approx(8.0)


FORMS = [
    Metric("accuracy", True, top1, scale=100),
    Metric("top1", True, top1, scale=100),
    Metric("top1", True, top1, right, scale=100),
    Metric("top1", True, lambda o, t: 100 * top1(o, t), scale=1),
    Metric("top1", True, lambda o, t: 100 * top1(o, t), right, scale=1),
    Metric("top1", True, lambda o, t: 100 * top1(o, t), lambda o, t: 100 * right(o, t), scale=1),
    Metric("wrong", False, lambda o, t: 1 - top1(o, t), lambda o, t: 1 - right(o, t), scale=100),
    Metric("wrong", False, lambda o, t: 1 - top1(o, t), scale=100),
]


@pytest.mark.parametrize("metric", FORMS, ids=[f"{m.name} {i}" for i, m in enumerate(FORMS)])
def test_one_score_in_every_form_has_one_drop(metric: Metric) -> None:
    (base, labels), (new, _) = scored(400, 20), scored(400, 0)
    new = base.copy()
    new[20:40] = np.roll(new[20:40], 1, axis=1)  # 5 points worse
    ours = drop_reading(METRICS["accuracy"], base, new, labels)
    found = drop_reading(metric, base, new, labels)
    assert found.get() == pytest.approx(5, abs=1e-4) == ours.get()
    assert ends(found) == pytest.approx(ends(ours), abs=0.8)
    quality, mine = quality_reading(metric, new, labels), quality_reading(METRICS["accuracy"], new, labels)
    assert quality.get() == pytest.approx(90 if metric.maximize else 10, abs=1e-4)
    width, expected = (high - low for low, high in map(ends, (quality, mine)))
    assert width == pytest.approx(expected, rel=0.2)


def test_per_sample_values_that_are_not_the_score_are_not_used() -> None:
    base, labels = scored(200, 20)
    odd = Metric("odd", True, lambda o, t: top1(o, t) ** 2, right, scale=100)
    assert odd.read(torch.from_numpy(base), labels).each is None
    assert quality_reading(odd, base, labels).get() == pytest.approx(81)
    assert "bootstrap" in drop_reading(odd, base, base, labels).note


def test_seed_and_resamples_are_told_and_repeat() -> None:
    outputs, targets = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32), torch.randn(50, generator=SOURCE)
    metric = Metric("r2", True, lambda o, t: r2_score(t, o[:, 0]), scale=100)
    first, again = (drop_reading(metric, outputs, 2 * outputs, targets, seconds=60) for _ in range(2))
    assert first == again
    assert first.note == "paired, bootstrap of 400 resamples, seed 0"
    other = drop_reading(metric, outputs, 2 * outputs, targets, seconds=60, seed=1)
    assert other.get() == first.get()
    assert other.low != first.low


def test_r_squared_of_another_world_is_told_by_its_interval() -> None:
    draw = np.random.default_rng(0)
    targets = torch.from_numpy(draw.normal(size=200).astype(np.float32))
    good = (targets.numpy() + 0.2 * draw.normal(size=200)).astype(np.float32)[:, None]
    bad = draw.normal(size=(200, 1)).astype(np.float32)
    metric = Metric("r2", True, lambda o, t: r2_score(t, o[:, 0]), scale=100)
    found = drop_reading(metric, good, bad, targets)
    assert found.low is not None
    assert found.low > 100
    quality = quality_reading(metric, bad, targets)
    assert quality.high is not None
    assert quality.high < 0


def test_ranks_on_a_tiny_split() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    outputs = np.array([0.1, 0.9, 0.4, 0.35, 0.8, 0.2], dtype=np.float32)
    metric = Metric("auc", True, lambda o, t: roc_auc_score(t, o), scale=100)
    found = quality_reading(metric, outputs, labels)
    low, high = ends(found)
    assert low <= found.get() <= high
    assert high - low > 20  # six samples say little
    alone = quality_reading(metric, outputs[:2], labels[:2])  # half of the resamples hold one class
    assert alone.get() == 100


def test_nothing_changed_on_few_samples_is_no_certainty() -> None:
    outputs, labels = scored(40, 2)
    found = drop_reading(METRICS["f1"], outputs, outputs, labels)
    assert found.get() == 0
    assert found.high is not None
    assert found.high == pytest.approx(100 * 1.96 / 40, rel=1e-3)


def test_a_metric_of_values_against_itself_has_no_drop_and_no_interval() -> None:
    targets = torch.randn(500, generator=SOURCE)
    outputs = (targets + 0.1 * torch.randn(500, generator=SOURCE))[:, None].numpy()
    metric = Metric("r2", True, lambda o, t: r2_score(t, o[:, 0]), scale=100)
    found = drop_reading(metric, outputs, outputs, targets)
    assert (found.get(), *ends(found)) == (0.0, 0.0, 0.0)


def test_a_slow_metric_gets_fewer_resamples_and_a_very_slow_one_none() -> None:
    def after(seconds: float) -> Callable[[Tensor, Tensor], float]:
        def metric(outputs: Tensor, targets: Tensor) -> float:
            time.sleep(seconds)
            return float(outputs.std())

        return metric

    outputs, targets = np.random.default_rng(0).normal(size=(30, 1)), torch.zeros(30)
    slow = quality_reading(Metric("slow", True, after(0.01), scale=1), outputs, targets, seconds=0.2)
    assert slow.low is not None
    assert 16 <= int(slow.note.split()[2]) < 100
    began = time.monotonic()
    never = quality_reading(Metric("slow", True, after(0.1), scale=1), outputs, targets, seconds=0.1)
    assert time.monotonic() - began < 3
    assert never.low is None
    assert "too slow" in never.note


def test_one_sample_has_no_spread() -> None:
    outputs, labels = scored(1, 0)
    for metric in (METRICS["f1"], METRICS["accuracy"], METRICS["mse"]):
        wanted = labels if metric.name != "mse" else torch.zeros(1, 4)
        assert quality_reading(metric, outputs, wanted).low is None


def test_an_accuracy_of_all_is_no_certainty() -> None:
    outputs, labels = scored(50, 0)
    found = quality_reading(METRICS["accuracy"], outputs, labels)
    assert (found.get(), found.high) == (100, 100)
    assert found.low == pytest.approx(100 * 50 / (50 + 1.96**2), rel=1e-3)  # Wilson


@pytest.mark.slow
def test_intervals_cover() -> None:
    """The interval of a drop in AUC holds the true one in about 95 of 100 draws of 30 samples."""
    metric = Metric("auc", True, lambda o, t: roc_auc_score(t, o), scale=100)
    draw = np.random.default_rng(1)

    def sample(size: int) -> tuple[Any, Any, Tensor]:
        labels = np.arange(size) % 2
        signal = labels + draw.normal(size=size)
        worse = signal + draw.normal(size=size)
        return signal.astype(np.float32), worse.astype(np.float32), torch.from_numpy(labels)

    truth = float(np.mean([drop_reading(metric, *sample(4000), seconds=0.0).get() for _ in range(20)]))
    found = [ends(drop_reading(metric, *sample(30), seconds=0.1)) for _ in range(100)]
    assert sum(low <= truth <= high for low, high in found) >= 88


def test_a_score_that_is_no_number_names_the_metric() -> None:
    def torn(outputs: Tensor, targets: Tensor) -> float:
        return math.nan

    outputs, targets = np.zeros((20, 2), dtype=np.float32), torch.zeros(20, dtype=torch.long)
    for read in (
        lambda: quality_reading(metric_of(torn), outputs, targets),
        lambda: drop_reading(metric_of(torn), outputs, outputs, targets),
    ):
        with pytest.raises(InputError, match="metric torn must be finite on 20 samples; got nan"):
            read()


class Recall:
    """How many samples have their label among the two best, read from a whole split: an object of the user's own."""

    name = "recall at 2"

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        found = 100.0 * (outputs.topk(2, 1).indices == targets[:, None]).any(1).double()
        return Scores(float(found.mean()), found)


class Corpus:
    """A corpus score: no mean over samples, in points, less is better."""

    name, maximize, unit = "edit rate", False, "edits"

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        wrong = (outputs.argmax(1) != targets).double()
        return Scores(float(200 * wrong.sum() / (len(targets) + wrong.sum())))


def test_an_object_that_reads_a_split_is_a_metric_like_any_other() -> None:
    (base, labels), new = scored(400, 0), scored(400, 0)[0]
    new = base.copy()
    new[:40] = 1.0 - new[:40]  # the label is the worst of four: 10 points of recall
    recall, corpus = (metric_of(quality) for quality in (Recall(), Corpus()))
    assert (recall.name, recall.maximize, corpus.maximize, corpus.unit) == ("recall at 2", True, False, "edits")
    found = drop_reading(recall, base, new, labels)
    assert found.get() == pytest.approx(10.0)
    assert found.note == "paired"
    rate = drop_reading(corpus, base, new, labels)
    assert rate.get() == pytest.approx(200 * 40 / 440)
    assert "bootstrap" in rate.note
    assert ends(rate)[0] < rate.get() < ends(rate)[1]


def test_what_is_read_must_be_scores() -> None:
    class Bare:
        def read(self, outputs: Tensor, targets: Tensor) -> float:
            return 1.0

    outputs, labels = scored(10, 0)
    with pytest.raises(InputError, match=r"Scores\(value, each\)"):
        quality_reading(metric_of(Bare()), outputs, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["accuracy", "f1", "mse", "loss", "anything at all"])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("unit", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("values", ["none", "fractions", "as scored"])
def test_names_directions_and_scales_of_the_user_decide_nothing_by_themselves(
    name: str, maximize: bool, unit: float, values: str
) -> None:
    """A share of 1, of 100 or of 1000, of right answers or of wrong ones, under names that are ours or not."""

    def shares(outputs: Tensor, targets: Tensor) -> Tensor:
        hit = (outputs.argmax(1) == targets).double()
        return hit if maximize else 1 - hit

    each = None if values == "none" else lambda o, t: shares(o, t) * (unit if values == "as scored" else 1.0)
    metric = Metric(name, maximize, lambda o, t: unit * shares(o, t).mean(), each)
    base, labels = scored(400, 20)
    new = base.copy()
    new[20:40] = np.roll(new[20:40], 1, axis=1)
    scale = scale_of(metric, torch.from_numpy(base), labels)
    assert scale == (100.0 if unit == 1.0 else 1.0)
    settled = replace(metric, scale=scale)
    points = 100 if unit == 1.0 else unit
    found = drop_reading(settled, base, new, labels)
    assert found.get() == pytest.approx(0.05 * points)
    low, high = ends(found)
    assert low == pytest.approx(0.0286 * points, rel=0.35)
    assert high == pytest.approx(0.0714 * points, rel=0.35)
    scores = settled.read(torch.from_numpy(new), labels)
    assert scores.value == pytest.approx((0.9 if maximize else 0.1) * points)
    if values == "as scored" or (values == "fractions" and unit != 1000.0):
        assert scores.each is not None
        assert float(scores.each.mean()) == pytest.approx(scores.value)  # one unit
