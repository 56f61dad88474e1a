"""Hits and discounted gains of a ranking: by sorting, by scikit-learn, by hand; ties are shared out, not won."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.errors import InputError
from equipoise.workloads import Quality, metric_of
from equipoise.workloads.meaning import decide
from equipoise.workloads.ranking import Ranked


def drawn(n: int = 40, classes: int = 25, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randint(0, classes, (n,), generator=generator)


def by_sorting(scores: Tensor, right: Tensor, first: int, gain: str) -> list[float]:
    """The slow way: sort, look where it stands."""
    found = []
    for row, wanted in zip(scores.tolist(), right.tolist(), strict=True):
        place = sorted(range(len(row)), key=lambda c, row=row: -row[c]).index(wanted)
        found.append(0.0 if place >= first else 100.0 if gain == "hit" else 100 / math.log2(place + 2))
    return found


@pytest.mark.parametrize("gain", ["hit", "ndcg"])
@pytest.mark.parametrize("first", [1, 3, 10, 30])
def test_like_sorting(gain: Any, first: int) -> None:
    scores, right = drawn()
    found = Ranked(gain, first).read(scores, right)
    wanted = by_sorting(scores, right, first, gain)
    assert found.each is not None
    assert found.each.tolist() == pytest.approx(wanted)
    assert found.value == pytest.approx(sum(wanted) / len(wanted))
    assert found.value != pytest.approx(Ranked(gain, first).read(-scores, right).value) or first == 30  # control


def test_like_scikit_learn() -> None:
    from sklearn.metrics import ndcg_score, top_k_accuracy_score

    scores, right = drawn(seed=3)
    one_hot = torch.nn.functional.one_hot(right, scores.shape[1])
    assert Ranked("ndcg", 5).read(scores, right).value == pytest.approx(100 * ndcg_score(one_hot, scores, k=5))
    wanted = top_k_accuracy_score(right, scores, k=5, labels=range(scores.shape[1]))
    assert Ranked("hit", 5).read(scores, right).value == pytest.approx(100 * wanted)


@pytest.mark.parametrize("gain", ["hit", "ndcg"])
def test_ties_are_the_mean_of_all_orders(gain: Any) -> None:
    scores, right = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]), torch.tensor([2])
    each = []
    for order in permutations((0.0, 0.1, 0.2)):
        apart = scores.clone()
        apart[0, 1:4] += torch.tensor(order)
        each.append(by_sorting(apart, right, 3, gain)[0])
    assert Ranked(gain, 3).read(scores, right).value == pytest.approx(sum(each) / len(each))
    strict = 100.0 if gain == "hit" else 100 / math.log2(3)  # planted: who counts only those above wins every tie
    assert Ranked(gain, 3).read(scores, right).value < strict


def test_a_model_that_scores_all_alike_guesses() -> None:
    _, right = drawn()
    assert Ranked("hit", 5).read(torch.zeros(40, 25), right).value == pytest.approx(100 * 5 / 25)
    assert Ranked("hit", 5).read(torch.full((40, 25), math.nan), right).value == 0
    assert Ranked("hit", 30).read(torch.zeros(40, 25), right).value == pytest.approx(100)


def test_it_is_a_quality_of_class_scores() -> None:
    quality: Quality = Ranked("ndcg", 10)
    metric = metric_of(quality)
    assert (metric.name, metric.maximize, metric.point) == ("NDCG@10", True, "one point is 1 of NDCG@10")
    scores, right = drawn()
    assert metric.read(scores, right).each is not None
    assert decide(scores, right, metric=metric).kind == "softmax"


def test_bad_input() -> None:
    with pytest.raises(InputError, match="quality must be one of hit, ndcg; got 'hits'"):
        Ranked("hits")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="first must be at least 1"):
        Ranked("hit", 0)
    with pytest.raises(InputError, match="one class each"):
        Ranked().read(torch.zeros(3, 4, 2), torch.zeros(3, 2, dtype=torch.int64))
