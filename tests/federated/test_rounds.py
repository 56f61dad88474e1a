"""Rounds: one client is central training, liars cost their share and nothing else, strategies do what they are for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from clouds import SGD, clouds, federation

from equipoise.errors import EquipoiseError
from equipoise.federated.client import Client, objective, round_recipe
from equipoise.federated.draws import generator
from equipoise.federated.messages import Message
from equipoise.federated.rounds import Hall, noised, one_round, outliers, summed
from equipoise.federated.state import Server, Update, change, loaded, norm, travelling
from equipoise.federated.strategies import strategy_of
from equipoise.federated.terms import Faults
from equipoise.federated.transport import InProcess
from equipoise.training import fit


def asked(hall: Hall, server: Server, clients: dict[int, Client], rounds: int = 1) -> tuple[Server, Any]:
    transport = InProcess({number: client.handle for number, client in clients.items()})
    shares: Any = ()
    for _ in range(rounds):
        server, shares = one_round(hall, server, transport)
    return server, shares


def same(one: Server, other: Server, *, within: float = 0.0) -> bool:
    return all(torch.allclose(one.weights[n], v, rtol=0, atol=within) for n, v in other.weights.items())


def test_one_client_is_central_training_bit_for_bit() -> None:
    hall, server, clients, task = federation(clients=1, recipe=SGD, epochs=2.0)
    found, _ = asked(hall, server, clients, rounds=2)
    model = loaded(copy.deepcopy(hall.cuts[1.0].model), server.weights)
    for made in range(2):
        seed = generator(0, "client", made, 0)
        recipe = round_recipe(SGD, made, hall.terms.rounds)
        given = clients[0].data
        model = fit(model, given, loss=task.loss, epochs=2.0, recipe=recipe, generator=seed).model.train()
    central = travelling(model)
    assert all(torch.allclose(found.weights[name], value, rtol=0, atol=1e-6) for name, value in central.items())
    assert not same(found, server, within=1e-3)


def test_clients_of_the_same_data_and_one_full_batch_are_one_client() -> None:
    """One step on all samples: the mean of the clients' gradients by their samples is the gradient of all."""
    recipe = replace(SGD, batch=10_000)
    one, many = (federation(clients=n, recipe=recipe) for n in (1, 4))
    there, here = (asked(hall, server, clients)[0] for hall, server, clients, _ in (one, many))
    assert same(there, here, within=1e-6)
    plain = replace(many[0], strategy=replace(strategy_of("fedavg"), even=True))  # planted: every client counts alike
    assert not same(asked(plain, many[1], many[2])[0], there, within=1e-6)


def test_the_rate_of_a_round_is_that_of_the_whole_run() -> None:
    recipe = replace(SGD, schedule="cosine", lr=0.2)
    rates = [round_recipe(recipe, made, 10).lr for made in range(10)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.2, rel=0.01)
    assert rates[-1] < 0.01
    assert {round_recipe(recipe, made, 10).schedule for made in range(10)} == {"constant"}


def test_fedprox_adds_the_gradient_of_the_distance() -> None:
    hall, server, _, task = federation()
    model = loaded(copy.deepcopy(hall.cuts[1.0].model), server.weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    inputs, targets = task.train.take(20).tensors()
    grads = []
    for name in ("fedavg", "fedprox:mu=0.5"):
        model.zero_grad()
        added = objective(task.loss, SGD, strategy_of(name), dict(server.weights), {})
        loss = task.loss(model(inputs), targets) if added is None else added(model, inputs, targets)
        torch.autograd.backward(loss)
        grads.append([parameter.grad.clone() for parameter in model.parameters()])  # type: ignore[union-attr]
    for plain, drawn in zip(*grads, strict=True):
        assert torch.allclose(drawn - plain, torch.full_like(plain, 0.5 * 0.1), atol=1e-6)


def test_scaffold_begins_with_plain_gradients_and_then_corrects_by_the_controls() -> None:
    """After a round of one full-batch step each, c_i is client i's gradient at the server's weights, and c their mean."""
    hall, server, clients, task = federation(strategy="scaffold", recipe=replace(SGD, batch=10_000))
    found, _ = asked(hall, server, clients)
    model = loaded(copy.deepcopy(hall.cuts[1.0].model), server.weights).train()
    means: dict[str, torch.Tensor] = {}
    for client in clients.values():
        model.zero_grad()
        inputs, targets = client.data.tensors()  # type: ignore[attr-defined]
        torch.autograd.backward(task.loss(model(inputs), targets))
        kept = client.memory.read(0)
        for name, parameter in model.named_parameters():
            assert torch.allclose(kept[f"control.{name}"], parameter.grad, atol=1e-5)  # type: ignore[arg-type]
            means[name] = means.get(name, 0) + parameter.grad / len(clients)  # type: ignore[operator]
    for name, value in means.items():
        assert torch.allclose(found.memory[f"control.{name}"], value, atol=1e-5)
    second, _ = asked(hall, found, clients)
    for client in clients.values():  # one more step: each goes along the mean gradient, not along its own
        kept = client.memory.read(1)
        assert any(not torch.allclose(kept[f"control.{n}"], client.memory.read(0)[f"control.{n}"]) for n in means)
    assert second.round == 2


def test_an_answer_that_did_not_count_leaves_no_trace_in_a_clients_memory() -> None:
    hall, server, clients, _ = federation(strategy="scaffold", recipe=SGD)
    first, _ = asked(hall, server, clients)
    there, _ = asked(hall, first, clients)
    again, _ = asked(hall, first, clients)  # the round is made again, as after a crash before it was recorded
    assert same(there, again)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "must be finite"),
        ("shape", "of shape"),
        ("giant", "another order"),
        ("replay", "an answer counts once"),
    ],
)
def test_a_liar_costs_its_share_of_the_round_and_nothing_else(fault: str, words: str) -> None:
    hall, server, clients, _ = federation(recipe=SGD, faults=Faults(**{fault: 1}))
    found, shares = asked(hall, server, clients, rounds=2)
    assert [share.client for share in shares if share.lost] == [3]
    assert words in shares[3].lost
    assert all(bool(value.isfinite().all()) for value in found.weights.values())
    honest = {number: client for number, client in clients.items() if number != 3}
    terms = replace(hall.terms, faults=Faults(), scales=(1.0, 1.0, 1.0, 0.0))
    alone, _ = asked(replace(hall, terms=terms), server, {n: replace(c, terms=terms) for n, c in honest.items()}, rounds=2)
    if fault != "replay":  # whose first answer was a good one
        assert same(found, alone)


def test_clients_die_by_chance_and_the_round_goes_on_without_them() -> None:
    hall, server, clients, _ = federation(clients=8, recipe=SGD, faults=Faults(die=0.4))
    transport = InProcess({number: client.handle for number, client in clients.items()})
    lost = []
    for _ in range(12):
        server, shares = one_round(hall, server, transport)
        lost.append(sum(bool(share.lost) for share in shares))
    assert server.round == 12
    assert 12 * 8 * 0.2 < sum(lost) < 12 * 8 * 0.6


def test_without_a_quorum_it_ends_with_one_clear_error() -> None:
    hall, server, clients, _ = federation(recipe=SGD, quorum=1.0, faults=Faults(nan=2))
    with pytest.raises(EquipoiseError, match=r"round 1 must have answers of 4 of 4 clients; got 2 \(client 2: .*client 3: "):
        asked(hall, server, clients)


def test_a_client_whose_model_raises_costs_its_share() -> None:
    hall, server, clients, _ = federation(recipe=SGD)

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of luck")

    found, shares = asked(hall, server, {**clients, 1: replace(clients[1], loss=broken)})
    assert shares[1].lost == "it failed: RuntimeError: out of luck"
    assert found.round == 1


def test_a_late_answer_does_not_count() -> None:
    hall, server, clients, _ = federation(recipe=SGD, limit_s=0.3, faults=Faults(late=1))
    _, shares = asked(hall, server, clients)
    assert "it was late" in shares[3].lost


def test_of_three_changes_the_one_of_another_order_is_left_out() -> None:
    sizes = {0: 1.0, 1: 2.0, 2: 30.0}
    updates = {n: Update(n, 1, {"w": torch.tensor([size])}) for n, size in sizes.items()}
    assert outliers(updates) == (2,)
    assert outliers({**updates, 2: Update(2, 1, {"w": torch.tensor([15.0])})}) == ()
    assert outliers({0: updates[0], 2: updates[2]}) == ()


def test_a_masked_round_is_a_plain_one_to_the_step_of_its_integers() -> None:
    plain, masked = (federation(recipe=SGD, secure=secure) for secure in (False, True))
    there, here = (asked(hall, server, clients, rounds=2)[0] for hall, server, clients, _ in (plain, masked))
    assert same(there, here, within=1e-5)
    assert here.accepted == dict.fromkeys(range(4), 2)


def test_a_masked_round_survives_the_dead() -> None:
    hall, server, clients, _ = federation(clients=6, recipe=SGD, secure=True, faults=Faults(die=0.25))
    found, _ = asked(hall, server, clients, rounds=4)
    plain, _, others, _ = federation(clients=6, recipe=SGD, quorum=4 / 6, faults=Faults(die=0.25))
    there, _ = asked(plain, server, others, rounds=4)
    assert same(found, there, within=1e-4)


def test_noise_has_the_deviation_that_is_stated_and_one_client_no_more_than_its_norm() -> None:
    hall, server, _, _ = federation(clip=0.5, noise=2.0, share=0.5)
    zero = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in server.weights.items()}
    drawn = [noised(replace(hall, noise_seed=seed), server, zero) for seed in range(40)]
    moved = torch.cat([(one.weights[n] - v).flatten() for one in drawn for n, v in server.weights.items()])
    wanted = 2.0 * 0.5 / (0.5 * 4)  # z C over the number that is asked on the average
    assert float(moved.std()) == pytest.approx(wanted, rel=5 / (2 * len(moved)) ** 0.5)
    liar = Update(0, 10**9, {name: torch.full_like(value, 1e6) for name, value in server.weights.items()})
    assert norm(summed([liar], server, 0.5)) == pytest.approx(0.5, rel=1e-5)


def test_eight_bits_come_near_and_cost_a_quarter() -> None:
    full, small = (federation(recipe=SGD, bits=bits, rounds=10) for bits in (32, 8))
    (there, plain), (here, packed) = (asked(hall, server, clients, rounds=10) for hall, server, clients, _ in (full, small))
    gone = norm(change(here.weights, full[1].weights))
    assert norm(change(here.weights, there.weights)) < 0.1 * gone
    assert packed[0].up_bytes < plain[0].up_bytes
    tensors = sum(value.numel() for value in there.weights.values())
    assert plain[0].up_bytes - packed[0].up_bytes == pytest.approx(3 * tensors, abs=1500)


def test_what_rounding_left_is_sent_the_next_time() -> None:
    hall, server, clients, _ = federation(recipe=SGD, bits=8)
    asked(hall, server, clients)
    left = clients[0].memory.read(0)
    assert left
    assert max(float(value.abs().max()) for value in left.values()) > 0


def test_narrow_clients_send_and_receive_less_and_the_server_learns_from_all() -> None:
    hall, server, clients, task = federation(recipe=SGD, scales=(1.0, 0.5), rounds=20)
    found, shares = asked(hall, server, clients, rounds=20)
    assert shares[1].up_bytes < 0.7 * shares[0].up_bytes
    assert shares[1].down_bytes < 0.7 * shares[0].down_bytes
    inputs, targets = task.validation.tensors()
    model = loaded(hall.cuts[1.0].model, found.weights).eval()
    assert task.metric.score(model(inputs), targets) > 80


def test_a_question_that_no_client_knows_is_refused() -> None:
    _, _, clients, _ = federation()
    facts = {"round": 0, "attempt": 0, "nonce": "n", "client": 0, "since": -1}
    for kind, words in (("dance", "message kind must be"), ("shares", "nonce must be that of a round whose keys")):
        with pytest.raises(EquipoiseError, match=words):
            clients[0].handle(Message(kind, {**facts, "keys": {}, "threshold": 2}))


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam:lr=0.1", "scaffold", "median", "trimmed", "centered"])
def test_every_strategy_learns(strategy: str) -> None:
    hall, server, clients, task = federation(strategy=strategy, recipe=replace(SGD, lr=0.2), rounds=12, epochs=2.0, alpha=1.0)
    found, _ = asked(hall, server, clients, rounds=12)
    inputs, targets = task.validation.tensors()
    assert task.metric.score(loaded(hall.cuts[1.0].model, found.weights).eval()(inputs), targets) > 80


def poisoned(strategy: str, **faults: int) -> float:
    hall, server, clients, task = federation(
        clouds(1500),
        replace(SGD, lr=0.2),
        clients=10,
        strategy=strategy,
        rounds=8,
        alpha=100.0,
        faults=Faults(**faults),
    )
    found, _ = asked(hall, server, clients, rounds=8)
    inputs, targets = task.validation.tensors()
    return task.metric.score(loaded(hall.cuts[1.0].model, found.weights).eval()(inputs), targets)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["sign", "noise", "labels"])
def test_two_of_ten_that_poison_are_borne_by_robust_strategies(fault: str) -> None:
    clean = poisoned("fedavg")
    for strategy in ("median", "trimmed:share=0.2", "centered"):
        assert poisoned(strategy, **{fault: 2}) > clean - 3, strategy
    if fault == "sign":
        assert poisoned("fedavg", sign=2) < clean - 20  # what the others are for
