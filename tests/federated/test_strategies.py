"""Each strategy against its closed form, another way to compute it, and a planted wrong answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from equipoise.errors import InputError
from equipoise.federated.combine import combined, drawn_in, mean, median, trimming
from equipoise.federated.state import Server, Update, clipped, moved, norm
from equipoise.federated.strategies import STRATEGIES, strategy_of

BEGUN = {"w": torch.tensor([1.0, 2.0, 3.0]), "norm.running_var": torch.tensor([1.0])}


def updates_of(*changes: list[float], samples: list[int] | None = None) -> list[Update]:
    counts = samples or [10] * len(changes)
    return [
        Update(number, counts[number], {"w": torch.tensor(change), "norm.running_var": torch.tensor([0.5])})
        for number, change in enumerate(changes)
    ]


def after(name: str, updates: list[Update], server: Server | None = None) -> Server:
    strategy = strategy_of(name)
    return strategy.after(server or strategy.begin(BEGUN, ["w"]), updates, clients=10)


def test_fedavg_is_the_mean_by_samples() -> None:
    found = after("fedavg", updates_of([1.0, 0.0, 0.0], [0.0, 4.0, 0.0], samples=[30, 10]))
    assert torch.allclose(found.weights["w"], BEGUN["w"] + torch.tensor([0.75, 1.0, 0.0]))
    assert not torch.allclose(found.weights["w"], BEGUN["w"] + torch.tensor([0.5, 2.0, 0.0]))  # the planted plain mean
    assert found.weights["norm.running_var"].tolist() == [1.5]
    assert found.round == 1
    assert found.accepted == {0: 1, 1: 1}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("fedadam", "scaffold")])
def test_clients_that_agree_move_the_server_to_what_they_say(name: str) -> None:
    found = after(name, updates_of(*[[0.5, -1.0, 2.0]] * 5))
    assert torch.allclose(found.weights["w"], BEGUN["w"] + torch.tensor([0.5, -1.0, 2.0]))


@settings(max_examples=15)
@given(st.permutations(range(6)))
def test_the_order_of_answers_changes_no_bit(order: list[int]) -> None:
    draws = torch.Generator().manual_seed(0)
    updates = [
        Update(n, 3 + n, {"w": torch.randn(3, generator=draws), "norm.running_var": torch.rand(1, generator=draws)})
        for n in range(6)
    ]
    for name in ("fedavg", "median", "trimmed", "centered"):
        there, here = after(name, updates), after(name, [updates[place] for place in order])
        assert all(torch.equal(there.weights[key], here.weights[key]) for key in BEGUN)


def test_the_mean_is_numpys_bit_for_bit() -> None:
    draws = torch.Generator().manual_seed(1)
    updates = [Update(n, 3 + n, {"w": torch.randn(50, generator=draws)}) for n in range(7)]
    found = combined(updates, {"w": torch.Size([50])}, mean, even=False)["w"]
    total = np.zeros(50)
    for update in updates:
        total = total + update.change["w"].double().numpy() * update.samples
    assert np.array_equal(found.numpy(), total / sum(update.samples for update in updates))


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 7, 10])
def test_robust_rules_are_those_of_numpy_and_scipy(clients: int) -> None:
    values = torch.randn(clients, 40, generator=torch.Generator().manual_seed(clients), dtype=torch.float64)
    held, even = torch.ones_like(values, dtype=torch.bool), torch.ones(clients, dtype=torch.float64)
    assert np.allclose(median(values, even, held).numpy(), np.median(values.numpy(), axis=0))
    assert np.allclose(trimming(0.2)(values, even, held).numpy(), trim_mean(values.numpy(), 0.2, axis=0))
    if clients > 2:
        assert not np.allclose(median(values, even, held).numpy(), values.mean(0).numpy())


@pytest.mark.parametrize("rule", [mean, median, trimming(0.25)])
def test_a_coordinate_is_combined_over_those_that_hold_it(rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    places = {"w": torch.tensor([0, 2])}
    updates = [
        Update(0, 1, {"w": torch.tensor([1.0, 5.0, 1.0])}),
        Update(1, 1, {"w": torch.tensor([3.0, 3.0])}, places=places),
    ]
    found = combined(updates, {"w": torch.Size([3])}, rule, even=True)["w"]
    assert found.tolist() == [2.0, 5.0, 2.0]
    alone = combined(updates[1:], {"w": torch.Size([3])}, rule, even=True)["w"]
    assert alone.tolist() == [3.0, 0.0, 3.0]  # nobody holds the second: it stays


def test_liars_move_the_mean_and_no_robust_rule() -> None:
    honest = [[1.0 + 0.01 * n, 1.0, 1.0] for n in range(8)]
    lied = updates_of(*honest, [-1e6, 1e6, 1e6], [-1e6, 1e6, 1e6])
    for name in ("median", "trimmed:share=0.2", "centered"):
        step = after(name, lied).weights["w"] - BEGUN["w"]
        assert bool(((step >= 0.99) & (step <= 1.08)).all()), name
    assert float((after("fedavg", lied).weights["w"] - BEGUN["w"]).abs().max()) > 1e5


def test_what_few_clients_know_is_in_a_centered_mean_and_in_no_median() -> None:
    """Data that differ from client to client: each has something to say that no other has."""
    own = [[3.0 * (place == n) for place in range(3)] for n in range(3)]
    updates = [Update(n, 1, {"w": torch.tensor(row)}) for n, row in enumerate(own)]
    shapes = {"w": torch.Size([3])}
    assert combined(updates, shapes, median, even=True)["w"].tolist() == [0.0, 0.0, 0.0]
    assert combined(drawn_in(updates, shapes, 0.25), shapes, mean, even=True)["w"].tolist() == [1.0, 1.0, 1.0]
    for lie, moves in ((6.0, 3.0 / 2 / 4), (1e9, 0.0)):
        liar = Update(3, 1, {"w": torch.tensor([0.0, 0.0, -lie])})
        found = combined(drawn_in([*updates, liar], shapes, 0.25), shapes, mean, even=True)["w"]
        assert found.tolist() == pytest.approx([0.75, 0.75, 0.75 - moves], abs=1e-6), "who lies more moves it less"


def test_changes_of_clients_that_hold_parts_are_drawn_in_where_they_hold() -> None:
    places = {"w": torch.tensor([0, 2])}
    updates = [
        Update(0, 1, {"w": torch.tensor([1.0, 5.0, 1.0])}),
        Update(1, 1, {"w": torch.tensor([1.0, 5.0, 1.0])}),
        Update(2, 1, {"w": torch.tensor([100.0, 1.0])}, places=places),
    ]
    found = drawn_in(updates, {"w": torch.Size([3])}, 0.34)
    assert [update.change["w"].tolist() for update in found] == [[1.0, 5.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0]]


def test_a_clipped_liar_moves_the_server_by_no_more_than_the_bound() -> None:
    bound = 0.5
    honest = updates_of([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    liar = Update(2, 2**40, {"w": torch.tensor([1e20, -1e20, 3.0]), "norm.running_var": torch.tensor([0.0])})
    kept = [Update(u.client, u.samples, clipped(u.change, bound)) for u in [*honest, liar]]
    found = after("fedavg", kept)
    assert norm({name: found.weights[name] - BEGUN[name] for name in ("w",)}) <= bound + 1e-6
    assert norm({"w": after("fedavg", [*honest, liar]).weights["w"] - BEGUN["w"]}) > bound


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_bounds_the_norm(size: float, most: float) -> None:
    tensors = {"a": torch.tensor([3.0, 0.0]) * size, "b": torch.tensor([[4.0]]) * size}
    found = clipped(tensors, most)
    assert norm(found) == pytest.approx(min(5 * size, most), rel=1e-5)
    assert float(found["b"] / found["a"][0]) == pytest.approx(4 / 3, rel=1e-5)
    assert clipped(tensors, None).keys() == tensors.keys()


def test_fedadam_is_the_recurrence_of_reddi() -> None:
    rate, first, second, floor, changes = 0.1, 0.9, 0.99, 1e-3, ([1.0, -2.0, 0.0], [0.5, 1.0, 0.0], [2.0, 2.0, 0.0])
    name = f"fedadam:lr={rate}"
    server = strategy_of(name).begin(BEGUN, ["w"])
    x, m, v = BEGUN["w"].double().numpy(), np.zeros(3), np.full(3, floor**2)
    for change in changes:
        server = after(name, updates_of(change, change), server)
        m = first * m + (1 - first) * np.array(change)
        v = second * v + (1 - second) * np.array(change) ** 2
        x = x + rate * m / (np.sqrt(v) + floor)
        assert np.allclose(server.weights["w"].numpy(), x, atol=1e-6)
    assert server.weights["norm.running_var"].tolist() == [2.5]  # statistics take the mean itself
    step = float(after(name, updates_of([1.0, 0, 0])).weights["w"][0] - BEGUN["w"][0])
    corrected = rate * 1.0 / (1.0 + floor)  # of Adam with the bias correction, which the paper's algorithm has not
    assert step == pytest.approx(rate * 0.1 / (0.01 + 0.99 * floor**2) ** 0.5, rel=0.011)
    assert step != pytest.approx(corrected, rel=5e-3)


def test_scaffold_moves_the_control_by_the_share_of_the_clients() -> None:
    strategy = strategy_of("scaffold")
    server = strategy.begin(BEGUN, ["w"])
    sent = [
        Update(n, 10 + 90 * n, {**update.change}, {"w": torch.tensor([1.0, 0.0, 3.0])})
        for n, update in enumerate(updates_of([1.0, 0, 0], [0.0, 1, 0]))
    ]
    found = strategy.after(server, sent, clients=10)
    assert torch.allclose(found.memory["control.w"], torch.tensor([0.2, 0.0, 0.6]))  # 2 of 10 answered
    assert torch.allclose(found.weights["w"], BEGUN["w"] + torch.tensor([0.5, 0.5, 0.0]))  # all alike, whatever their samples


def test_a_variance_never_falls_below_zero() -> None:
    assert moved({"running_var": torch.tensor([0.5])}, {"running_var": torch.tensor([-2.0])})["running_var"].tolist() == [0.0]
    assert moved({"running_mean": torch.tensor([0.5])}, {"running_mean": torch.tensor([-2.0])})["running_mean"].tolist() == [
        -1.5
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fedavgg", "Did you mean 'fedavg'"),
        ("fedprox:nu=1", "number of fedprox must be one of mu"),
        ("fedprox:mu=much", "strategy fedprox mu must be a number"),
        ("fedprox:mu=-1", "strategy mu must be a finite number above 0"),
        ("fedavg:lr=nan", "strategy lr must be a finite number above 0"),
        ("trimmed:share=0.5", "share must be from 0 to below 0.5"),
    ],
)
def test_a_strategy_that_is_none_is_told(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        strategy_of(text)
