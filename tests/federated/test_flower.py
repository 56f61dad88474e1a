"""The adapter against a stand-in of the few classes of Flower that it uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from clouds import SGD, federation

from equipoise.errors import InputError, MissingExtraError
from equipoise.federated.flower import flower_client, flower_strategy
from equipoise.federated.rounds import one_round
from equipoise.federated.strategies import strategy_of
from equipoise.federated.transport import InProcess


@dataclass
class Parameters:
    arrays: list[np.ndarray]


@dataclass
class FitIns:
    parameters: Parameters
    config: dict[str, Any]


@dataclass
class FitRes:
    parameters: Parameters
    num_examples: int


@dataclass
class Proxy:
    cid: str
    client: Any = None


@dataclass
class Manager:
    proxies: list[Proxy] = field(default_factory=list)

    def sample(self, num_clients: int, min_num_clients: int) -> list[Proxy]:
        assert len(self.proxies) >= min_num_clients
        return self.proxies[:num_clients]


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: ModuleType(name) for name in ("flwr", "flwr.common", "flwr.client", "flwr.server", "flwr.server.strategy")}
    modules["flwr.common"].__dict__.update(
        FitIns=FitIns, ndarrays_to_parameters=Parameters, parameters_to_ndarrays=lambda found: found.arrays
    )
    modules["flwr.client"].__dict__["NumPyClient"] = object
    modules["flwr.server.strategy"].__dict__["Strategy"] = object
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)


@pytest.mark.usefixtures("flower")
def test_rounds_of_flower_are_ours() -> None:
    hall, server, clients, task = federation(recipe=SGD)
    transport = InProcess({number: client.handle for number, client in clients.items()})
    wanted, _ = one_round(hall, one_round(hall, server, transport)[0], transport)
    looked: list[float] = []
    strategy = flower_strategy(
        hall.strategy,
        hall.cuts[1.0].model,
        clients=4,
        look=lambda model: (looked.append(1.0) or 0.5, 90.0),  # type: ignore[func-returns-value]
    )
    manager = Manager([Proxy(str(number), flower_client(client)) for number, client in clients.items()])
    parameters = strategy.initialize_parameters(manager)
    for made in (1, 2):
        asked = strategy.configure_fit(made, parameters, manager)
        results = []
        for proxy, given in reversed(asked):
            arrays, samples, told = proxy.client.fit(given.parameters.arrays, given.config)
            assert told["loss"] > 0
            results.append((proxy, FitRes(Parameters(arrays), samples)))
        parameters, _ = strategy.aggregate_fit(made, results, [])
    for name, array in zip(sorted(wanted.weights), parameters.arrays, strict=True):
        assert torch.allclose(torch.from_numpy(array), wanted.weights[name], atol=1e-5)
        assert array.shape == tuple(wanted.weights[name].shape)
    assert strategy.evaluate(2, parameters) == (0.5, {"quality": 90.0})
    assert strategy.aggregate_fit(3, [], []) == (None, {})
    assert task.outputs == 3


@pytest.mark.usefixtures("flower")
def test_what_flower_cannot_carry_is_told() -> None:
    hall, _, clients, _ = federation()
    with pytest.raises(InputError, match="strategy must be one without control variates"):
        flower_strategy(strategy_of("scaffold"), hall.cuts[1.0].model, clients=4)
    with pytest.raises(InputError, match="parameters must be the 6 tensors"):
        flower_client(clients[0]).fit([np.zeros(3)], {"round": 0})


def test_without_flower_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    hall, _, _, _ = federation()
    with pytest.raises(MissingExtraError, match=r"equipoise\[flower\]"):
        flower_strategy(hall.strategy, hall.cuts[1.0].model, clients=4)
