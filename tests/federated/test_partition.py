"""Every sample goes to one client, as unevenly as is asked for."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.federated.partition import LEAST, shared_out
from equipoise.workloads import Split


def split_of(labels: torch.Tensor) -> Split:
    return Split.of((torch.arange(len(labels)).float()[:, None], labels), name="train")


def rows(parts: tuple[Split, ...]) -> list[int]:
    return [row for part in parts for row in part.order.tolist()]


@settings(max_examples=25)
@given(clients=st.integers(1, 12), alpha=st.sampled_from([1e-6, 0.05, 0.5, 10.0, math.inf]), seed=st.integers(0, 50))
def test_every_sample_goes_to_exactly_one_client_and_each_has_some(clients: int, alpha: float, seed: int) -> None:
    split = split_of(torch.arange(120) % 5)
    parts = shared_out(split, clients, alpha=alpha, seed=seed)
    assert len(parts) == clients
    assert Counter(rows(parts)) == Counter(range(120))
    assert min(map(len, parts)) >= LEAST


def skew(alpha: float) -> float:
    """Mean over clients of the share of their most frequent class."""
    parts = shared_out(split_of(torch.arange(2000) % 10), 10, alpha=alpha, seed=1)
    return sum(float(part.targets().bincount(minlength=10).max()) / len(part) for part in parts) / 10


def test_a_small_alpha_is_uneven_and_a_large_one_is_not() -> None:
    assert skew(math.inf) == pytest.approx(0.1, abs=1e-9)
    assert skew(100.0) < 0.16 < skew(0.5) < skew(0.05)
    assert skew(0.05) > 0.5


def test_shares_have_the_mean_and_the_spread_of_a_dirichlet_distribution() -> None:
    """Of one class of n samples a client's share has the mean 1/k and the variance (k - 1) / (k^2 (k alpha + 1))."""
    clients, alpha, found = 4, 2.0, []
    for seed in range(400):
        parts = shared_out(split_of(torch.zeros(1000, dtype=torch.int64)), clients, alpha=alpha, seed=seed, least=0)
        found += [len(part) / 1000 for part in parts]
    share = torch.tensor(found)
    wanted = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert float(share.mean()) == pytest.approx(1 / clients, abs=1e-6)
    assert float(share.var()) == pytest.approx(wanted, rel=0.15)
    assert float(share.var()) != pytest.approx(wanted * (clients * alpha + 1) / (clients * alpha / 2 + 1), rel=0.15)


def test_the_same_seed_shares_out_alike_and_another_does_not() -> None:
    split = split_of(torch.arange(200) % 4)
    one, same, other = (shared_out(split, 5, alpha=0.5, seed=seed) for seed in (3, 3, 4))
    assert rows(one) == rows(same) != rows(other)


def test_values_without_a_class_are_shared_out_by_size() -> None:
    parts = shared_out(split_of(torch.randn(300)), 4, alpha=0.3, seed=0)
    assert Counter(rows(parts)) == Counter(range(300))
    assert len({len(part) for part in parts}) > 1


@pytest.mark.parametrize(
    ("clients", "alpha", "words"),
    [
        (0, 0.5, "clients must be a whole number"),
        (2.5, 0.5, "clients must be a whole number"),
        (31, 0.5, "clients must be at most 30 for 120"),
        (4, 0, "alpha must be a number above 0"),
        (4, math.nan, "alpha must be a number above 0"),
        (4, "1", "alpha must be a number above 0"),
    ],
)
def test_what_cannot_be_shared_out_is_told(clients: object, alpha: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shared_out(split_of(torch.arange(120) % 5), clients, alpha=alpha)  # type: ignore[arg-type]
